"""The in-process model: plain generation is transformers' own, and the mixture is eq. 2 by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from replug_client.errors import OptionError, PromptTooLongError, SupervisorError
from replug_client.inference.answerer import Answerer, AnswererOptions
from replug_client.inference.generation import GenerationOptions
from replug_client.supervisor.fake import FakeSupervisor
from replug_client.supervisor.local import LocalSupervisor
from replug_client.supervisor.options import LocalOptions
from replug_client.supervisor.prompts import PromptBuilder
from replug_client.supervisor.tokenizer import FolderTokenizer
from tests.inference.code_passages import PASSAGES, PREFIX, SIMILARITIES

DEMO_LM = Path(__file__).parents[2] / "demo" / "lm"


@pytest.fixture(scope="module")
def tokenizer() -> FolderTokenizer:
    return FolderTokenizer.load(str(DEMO_LM), local_only=True)


@pytest.fixture(scope="module")
def supervisor() -> Iterator[LocalSupervisor]:
    with LocalSupervisor.load(str(DEMO_LM), LocalOptions(device="cpu")) as supervisor:
        yield supervisor


@pytest.fixture(scope="module")
def answerer(supervisor: LocalSupervisor, tokenizer: FolderTokenizer) -> Answerer:
    return Answerer(supervisor, tokenizer, AnswererOptions(temperature_score=0.2))


def greedy(ids: tuple[int, ...], max_tokens: int) -> list[int]:
    """What transformers itself generates."""
    model = AutoModelForCausalLM.from_pretrained(DEMO_LM, dtype=torch.float32)
    output = model.generate(torch.tensor([ids]), max_new_tokens=max_tokens, do_sample=False)
    return [int(token) for token in output[0, len(ids) :]]


def context(tokenizer: FolderTokenizer, passages: tuple[str, ...]) -> tuple[int, ...]:
    builder = PromptBuilder(tokenizer, retrieved_max_length=128, max_prompt_tokens=1024)
    return builder.context(passages, tokenizer.encode(PREFIX))


@pytest.mark.parametrize("combination", ["concat", "ensemble", "ensemble-answers"])
def test_one_passage_is_plain_greedy_generation(
    answerer: Answerer, tokenizer: FolderTokenizer, combination: str
) -> None:
    answer = answerer.answer(PREFIX, PASSAGES[:1], [0.3], combination, GenerationOptions(max_tokens=24))
    assert list(answer.tokens) == greedy(context(tokenizer, PASSAGES[:1]), 24)
    assert answer.weights[0].prior == pytest.approx(1)
    assert answer.weights[0].posterior == pytest.approx(1)


def test_no_passage_is_plain_generation_and_concat_has_the_best_passage_last(
    answerer: Answerer, tokenizer: FolderTokenizer
) -> None:
    options = GenerationOptions(max_tokens=16)
    none = answerer.answer(PREFIX, combination="none", options=options)
    assert list(none.tokens) == greedy(context(tokenizer, ()), 16)
    assert none.weights == ()
    concat = answerer.answer(PREFIX, PASSAGES, SIMILARITIES, "concat", options)
    assert list(concat.tokens) == greedy(context(tokenizer, PASSAGES[::-1]), 16)


def test_equal_passages_are_one_passage(answerer: Answerer) -> None:
    options = GenerationOptions(max_tokens=24)
    one = answerer.answer(PREFIX, PASSAGES[1:2], None, "ensemble", options)
    three = answerer.answer(PREFIX, PASSAGES[1:2] * 3, [0.9, 0.1, 0.4], "ensemble", options)
    assert three.tokens == one.tokens
    assert three.log_probs == pytest.approx(one.log_probs, abs=1e-5)
    assert [weight.posterior for weight in three.weights] == pytest.approx(
        [weight.prior for weight in three.weights], abs=1e-4
    )


def test_each_token_is_the_most_probable_of_the_mixture_by_definition(
    answerer: Answerer, tokenizer: FolderTokenizer
) -> None:
    """Eq. 2 without cache, padding or batch: a whole forward pass for each passage and token."""
    answer = answerer.answer(PREFIX, PASSAGES, SIMILARITIES, "ensemble", GenerationOptions(max_tokens=12))
    weights = np.exp(np.array(SIMILARITIES) / 0.2)
    weights /= weights.sum()
    model = AutoModelForCausalLM.from_pretrained(DEMO_LM, dtype=torch.float32).eval()
    contexts = [context(tokenizer, (passage,)) for passage in PASSAGES]
    evidence = np.log(weights)
    for at, token in enumerate(answer.tokens):
        rows = []
        for ids in contexts:
            with torch.inference_mode():
                logits = model(torch.tensor([[*ids, *answer.tokens[:at]]])).logits[0, -1]
            rows.append(torch.log_softmax(logits.double(), -1).numpy())
        mixture = weights @ np.exp(rows)
        assert token == mixture.argmax()
        assert answer.log_probs[at] == pytest.approx(np.log(mixture[token]), abs=1e-4)
        evidence += [row[token] for row in rows]
    posterior = np.exp(evidence - evidence.max())
    assert [weight.prior for weight in answer.weights] == pytest.approx(weights)
    assert [weight.posterior for weight in answer.weights] == pytest.approx(
        posterior / posterior.sum(), abs=1e-3
    )
    assert answer.dropped_mass == (0.0,) * 12
    assert all(answer.certain)


def test_weights_behind_a_concatenated_text_are_what_each_passage_gives_it(
    answerer: Answerer, supervisor: LocalSupervisor, tokenizer: FolderTokenizer
) -> None:
    answer = answerer.answer(PREFIX, PASSAGES, SIMILARITIES, "concat", GenerationOptions(max_tokens=10))
    builder = PromptBuilder(tokenizer, retrieved_max_length=128, max_prompt_tokens=1024)
    prompts = [builder.build(p, tokenizer.encode(PREFIX), answer.tokens) for p in PASSAGES]
    logs = np.array([score.log_likelihood for score in supervisor.score(prompts)])
    expected = np.exp(np.array(SIMILARITIES) / 0.2 + logs - logs.max())
    assert [weight.posterior for weight in answer.weights] == pytest.approx(
        expected / expected.sum(), abs=1e-4
    )


def test_the_same_seed_gives_the_same_text_and_another_one_another(answerer: Answerer) -> None:
    def sampled(seed: int) -> str:
        options = GenerationOptions(max_tokens=24, temperature=1.0, top_p=0.95, seed=seed)
        return answerer.answer(PREFIX, PASSAGES, SIMILARITIES, "ensemble", options).text

    assert sampled(1) == sampled(1)
    assert len({sampled(seed) for seed in range(4)}) == 4


def test_a_small_top_p_is_greedy(answerer: Answerer) -> None:
    plain = answerer.answer(PREFIX, PASSAGES, None, "ensemble", GenerationOptions(max_tokens=16))
    options = GenerationOptions(max_tokens=16, temperature=1.0, top_p=1e-6, seed=5)
    assert answerer.answer(PREFIX, PASSAGES, None, "ensemble", options).tokens == plain.tokens


@pytest.mark.parametrize("combination", ["concat", "ensemble", "ensemble-answers"])
def test_a_stop_string_ends_the_text_before_it_and_pieces_add_up(
    answerer: Answerer, combination: str
) -> None:
    whole = answerer.answer(PREFIX, PASSAGES[:2], None, combination, GenerationOptions(max_tokens=24)).text
    stop = whole[5:9]
    options = GenerationOptions(max_tokens=24, stop=("never this", stop))
    pieces = answerer.stream(PREFIX, PASSAGES[:2], None, combination, options)
    written = []
    while True:
        try:
            written.append(next(pieces))
        except StopIteration as end:
            answer = end.value
            break
    assert answer.text == whole[: whole.index(stop)] == "".join(written)
    assert answer.finish_reason == "stop"


def test_answers_that_are_equal_put_their_weights_together(answerer: Answerer) -> None:
    passages = (PASSAGES[0], PASSAGES[2], PASSAGES[0])
    options = GenerationOptions(max_tokens=8)
    answer = answerer.answer(PREFIX, passages, [0.1, 0.2, 0.1], "ensemble-answers", options)
    weights = np.exp(np.array([0.1, 0.2, 0.1]) / 0.2)
    weights /= weights.sum()
    assert [choice.share for choice in answer.choices] == pytest.approx([weights[0] + weights[2], weights[1]])
    single = answerer.answer(PREFIX, PASSAGES[:1], None, "concat", options)
    assert answer.text == single.text
    assert answer.choices[0].text == single.text.strip()


def test_shares_by_likelihood_are_the_answers_probabilities_under_the_mixture(
    supervisor: LocalSupervisor, tokenizer: FolderTokenizer
) -> None:
    weighing = Answerer(supervisor, tokenizer, AnswererOptions(answer_weights="likelihood"))
    options = GenerationOptions(max_tokens=6)
    answer = weighing.answer(PREFIX, PASSAGES, None, "ensemble-answers", options)
    singles = [weighing.answer(PREFIX, [passage], None, "concat", options) for passage in PASSAGES]
    builder = PromptBuilder(tokenizer, retrieved_max_length=128, max_prompt_tokens=1024)
    likelihoods = {}
    for single in singles:
        prompts = [builder.build(p, tokenizer.encode(PREFIX), single.tokens) for p in PASSAGES]
        rows = np.array([score.token_log_probs for score in supervisor.score(prompts)], dtype=np.float64)
        likelihoods[single.text.strip()] = float(np.prod(np.exp(rows).mean(axis=0)))
    total = sum(likelihoods.values())
    found = {choice.text: choice.share for choice in answer.choices}
    assert found == pytest.approx({text: value / total for text, value in likelihoods.items()}, rel=1e-3)
    assert answer.choices[0].share == max(found.values())


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_asked(answerer: Answerer) -> None:
    with pytest.raises(PromptTooLongError, match=r"passage 1: \d+ tokens and up to 1024 .* --max_tokens"):
        answerer.answer(PREFIX, PASSAGES, None, "ensemble", GenerationOptions(max_tokens=1024))
    with pytest.raises(PromptTooLongError, match="the prompt: "):
        answerer.stream(PREFIX, PASSAGES * 20, None, "concat")  # at once, not with the first piece


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((PREFIX, ()), "at least one passage"),
        ((PREFIX, PASSAGES, [0.1]), "3 passages with 1 similarities"),
        ((PREFIX, PASSAGES, [0.1, float("nan"), 0.2]), "NaN"),
        ((PREFIX, PASSAGES, None, "product"), "--combination must be one of"),
        (("\ud800", PASSAGES), "UTF-8"),
    ],
)
def test_what_cannot_work_is_said(answerer: Answerer, arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        answerer.answer(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "--max_tokens"),
        ({"temperature": -1}, "--temperature"),
        ({"temperature": float("nan")}, "--temperature"),
        ({"top_p": 0}, "--top_p"),
        ({"stop": ("",)}, "--stop"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        GenerationOptions(**options)  # type: ignore[arg-type]


def test_ids_of_another_tokenizer_are_refused(supervisor: LocalSupervisor) -> None:
    class Far(FolderTokenizer):
        def encode(self, text: str) -> list[int]:
            return [100_000]

    far = Far.__new__(Far)
    far.bos_id = 0
    with pytest.raises(SupervisorError, match="vocabulary of 6144"):
        Answerer(supervisor, far).answer("x", ["y"])


def test_a_supervisor_that_only_scores_is_refused(tokenizer: FolderTokenizer) -> None:
    supervisor = FakeSupervisor()
    with pytest.raises(OptionError, match="only scores"):
        Answerer(supervisor, tokenizer)
    supervisor.close()
