from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

from replug_client.errors import OptionError, SupervisorError, WrongAnswerError
from replug_client.supervisor.local import LocalSupervisor
from replug_client.supervisor.open import CACHE_FILE, SupervisorOptions, open_supervisor
from replug_client.supervisor.options import LocalOptions
from replug_client.supervisor.protocol import Prompt, Score
from tests.supervisor.contract import random_prompts
from tests.supervisor.reference import DEMO_LM

_FLOAT32 = LocalOptions(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def demo() -> Iterator[LocalSupervisor]:
    with LocalSupervisor.load(str(DEMO_LM), _FLOAT32) as supervisor:
        yield supervisor


def passage_pairs() -> list[Prompt]:
    """Passages of several lengths, each before several queries of several lengths."""
    rng = random.Random(7)
    prompts = []
    for length in (20, 30, 31, 31, 60):
        passage = tuple(rng.choices(range(5, 6000), k=length))
        for _ in range(4):
            tail = tuple(rng.choices(range(5, 6000), k=rng.randint(2, 40)))
            prompts.append(Prompt((0, *passage, 200, *tail), rng.randint(1, len(tail) - 1)))
    rng.shuffle(prompts)
    return prompts


class CountingModel:
    """Counts the tokens that go through a model."""

    def __init__(self, model: Any) -> None:
        self.tokens = 0
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: object, args: object, kwargs: dict[str, Any]) -> None:
        self.tokens += kwargs["input_ids"].numel()


def test_a_shared_prefix_is_run_once_and_the_scores_are_the_same() -> None:
    prompts = passage_pairs()
    scores, tokens = [], []
    for share in (True, False):
        options = LocalOptions(device="cpu", dtype="float32", batch_tokens=200, share_prefixes=share)
        with LocalSupervisor.load(str(DEMO_LM), options) as supervisor:
            counter = CountingModel(supervisor._model)
            scores.append(supervisor.score(prompts))
            tokens.append(counter.tokens)
    for shared, plain in zip(*scores, strict=True):
        assert np.abs(shared.token_log_probs - plain.token_log_probs).max() <= 1e-5
    assert tokens[0] < 0.7 * tokens[1]


def test_only_the_continuations_rows_become_logits(demo: LocalSupervisor) -> None:
    rows: list[int] = []
    head = demo._model.get_output_embeddings()
    hook = head.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[1]))
    demo.score([Prompt(tuple(range(5, 105)), 10), Prompt(tuple(range(6, 106)), 10)])
    hook.remove()
    assert rows == [10]


@pytest.mark.parametrize(
    "model",
    [
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=6144, n_positions=256, n_embd=32, n_layer=2, n_head=2)),
        lambda: MistralForCausalLM(
            MistralConfig(
                vocab_size=6144,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=256,
                sliding_window=8,
            )
        ),
    ],
    ids=["learned positions", "sliding window"],
)
def test_other_architectures_are_scored_exactly(model: Any) -> None:
    torch.manual_seed(0)
    made = model().eval()
    with LocalSupervisor(made, "tiny", _FLOAT32) as supervisor:
        prompts = passage_pairs()
        for prompt, score in zip(prompts, supervisor.score(prompts), strict=True):
            with torch.no_grad():
                log_probs = torch.log_softmax(made(torch.tensor([prompt.ids])).logits[0], dim=-1)
            first = len(prompt.ids) - prompt.num_continuation
            expected = [log_probs[i - 1, prompt.ids[i]].item() for i in range(first, len(prompt.ids))]
            assert np.abs(score.token_log_probs - np.array(expected)).max() <= 1e-5


def test_the_fingerprint_is_that_of_the_weights_and_the_dtype(demo: LocalSupervisor) -> None:
    with LocalSupervisor.load(str(DEMO_LM), LocalOptions(device="cpu", dtype="bfloat16")) as half:
        assert half.fingerprint != demo.fingerprint
    model: Any = AutoModelForCausalLM.from_pretrained(DEMO_LM, dtype=torch.float32)
    with LocalSupervisor(model, "elsewhere", _FLOAT32) as same:
        assert same.fingerprint == demo.fingerprint
    with torch.no_grad():
        model.get_input_embeddings().weight[6000, 0] += 1e-3  # of a token that the canary does not hold
    with LocalSupervisor(model, "lm", _FLOAT32) as other:
        assert other.fingerprint != demo.fingerprint


def test_bfloat16_is_near_float32(demo: LocalSupervisor) -> None:
    prompts = random_prompts(16)
    with LocalSupervisor.load(str(DEMO_LM), LocalOptions(device="cpu", dtype="bfloat16")) as half:
        for exact, near in zip(demo.score(prompts), half.score(prompts), strict=True):
            assert near.log_likelihood / near.num_tokens == pytest.approx(
                exact.log_likelihood / exact.num_tokens, abs=0.1
            )


def test_ids_of_another_tokenizer_are_refused(demo: LocalSupervisor) -> None:
    with pytest.raises(SupervisorError, match=r"the pair: .*6144.*--tokenizer"):
        demo.score([Prompt((0, 6144), 1, "the pair")])


def test_a_log_prob_that_is_not_finite_is_an_error_that_names_the_pair() -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(DEMO_LM, dtype=torch.float32)
    with LocalSupervisor(model, "lm", _FLOAT32) as supervisor:
        with torch.no_grad():
            model.get_input_embeddings().weight[4000] = float("nan")
        with pytest.raises(WrongAnswerError, match="the pair"):
            supervisor.score([Prompt((0, 4000, 5), 1, "the pair")])


def test_closing_ends_a_long_submission_after_the_batch_in_hand() -> None:
    options = LocalOptions(device="cpu", dtype="float32", batch_tokens=128)
    supervisor = LocalSupervisor.load(str(DEMO_LM), options)
    begun = threading.Event()
    scored: list[int] = []

    def take(positions: Sequence[int], scores: Sequence[Score]) -> None:
        scored.extend(positions)
        begun.set()

    future = supervisor.submit(random_prompts(500), take)
    assert begun.wait(60)
    supervisor.close()
    assert isinstance(future.exception(timeout=30), SupervisorError)
    assert 0 < len(scored) < 500


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("no/such/model", _FLOAT32, "no causal LM could be loaded from 'no/such/model'"),
        (str(DEMO_LM), LocalOptions(dtype="int3"), "unknown dtype 'int3'"),
        (str(DEMO_LM), LocalOptions(device="abacus"), "device 'abacus'"),
    ],
)
def test_what_cannot_be_loaded_says_why(name: str, options: LocalOptions, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        LocalSupervisor.load(name, options)


def test_opened_with_its_tokenizer_and_its_cache(tmp_path: Path) -> None:
    options = SupervisorOptions(str(DEMO_LM), kind="local", cache_dir=tmp_path, local=_FLOAT32)
    supervisor, tokenizer = open_supervisor(options)
    prompt = Prompt((0, *tokenizer.encode("import os\n")), 2)
    supervisor.score([prompt])
    supervisor.close()
    assert (tmp_path / CACHE_FILE).exists()
    again, _ = open_supervisor(options)
    again.score([prompt])
    assert (again.stats.hits, again.stats.misses) == (1, 0)
    again.close()


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(OptionError, match="server or local"):
        open_supervisor(SupervisorOptions("m", kind="telepathy"))  # type: ignore[arg-type]
