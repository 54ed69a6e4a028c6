"""The model of a server, held against the same one in this process: tokens, bounds, faults."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from replug_client.errors import SupervisorError, WrongAnswerError
from replug_client.inference.answerer import Answerer, AnswererOptions
from replug_client.inference.generation import GenerationOptions
from replug_client.inference.remote import RemoteModel
from replug_client.inference.steps import MixedToken, generate
from replug_client.supervisor.client import RemoteSupervisor
from tests.inference.lm_server import END, FullContexts, LMServer, next_log_probs
from tests.supervisor.client_tools import connect, start
from tests.supervisor.fake_server import Body, FakeServer

CONTEXTS = [(3, 10, 11, 12), (4, 20, 12), (5, 30, 31, 32, 33, 12)]
WEIGHTS = np.log([0.5, 0.3, 0.2])


class Numbers:
    """A tokenizer of numbers: the text of token 17 is ``"17 "``."""

    bos_id = None
    end_ids = frozenset([END])

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(f"{token} " for token in ids)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def serve(stack: ExitStack, server: LMServer | None = None) -> tuple[LMServer, RemoteSupervisor]:
    server = server or LMServer()
    start(stack, server)
    supervisor = connect(stack, server)
    stack.callback(lambda: server.complaints == [] or pytest.fail(str(server.complaints)))
    return server, supervisor


def both(
    supervisor: RemoteSupervisor, options: GenerationOptions, **how: Any
) -> tuple[list[MixedToken], list[MixedToken]]:
    model = RemoteModel(supervisor, end_ids=[END], **how)
    remote = list(generate(model.contexts(CONTEXTS), WEIGHTS, options))
    return remote, list(generate(FullContexts(CONTEXTS), WEIGHTS, options))


@pytest.mark.parametrize("look_ahead", [0, 4])
@pytest.mark.parametrize("knows_token_ids", [True, False])
def test_the_greedy_mixture_is_the_one_of_the_whole_vocabulary(
    stack: ExitStack, look_ahead: int, knows_token_ids: bool
) -> None:
    _, supervisor = serve(stack, LMServer(knows_token_ids=knows_token_ids))
    remote, exact = both(supervisor, GenerationOptions(max_tokens=24), top_log_probs=8, look_ahead=look_ahead)
    assert [step.token.id for step in remote] == [step.token.id for step in exact]
    for step, reference in zip(remote, exact, strict=True):
        assert step.token.log_prob == pytest.approx(reference.token.log_prob, abs=1e-5)
        assert step.log_probs == pytest.approx(reference.log_probs, abs=1e-5)
        assert step.certain


def test_the_dropped_mass_is_what_the_tops_leave(stack: ExitStack) -> None:
    _, supervisor = serve(stack)
    contexts = RemoteModel(supervisor, top_log_probs=6, look_ahead=0).contexts(CONTEXTS)
    (step,) = generate(contexts, WEIGHTS, GenerationOptions(max_tokens=1))
    rows = np.exp([next_log_probs(context) for context in CONTEXTS])
    tops = np.sort(rows, axis=1)[:, -6:].sum(axis=1)
    # Tokens that were asked for exactly are known as well: no more is dropped than what the tops leave.
    assert 0 < step.dropped <= np.exp(WEIGHTS) @ (1 - tops) + 1e-9


def test_all_is_known_where_the_tops_hold_it(stack: ExitStack) -> None:
    _, supervisor = serve(stack)
    model = RemoteModel(supervisor, top_log_probs=20)
    equal = [CONTEXTS[0]] * 3
    remote = list(generate(model.contexts(equal), WEIGHTS, GenerationOptions(max_tokens=12)))
    plain = list(generate(FullContexts(equal[:1]), np.zeros(1), GenerationOptions(max_tokens=12)))
    assert [step.token.id for step in remote] == [step.token.id for step in plain]


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_what_is_drawn_for_certain_is_what_the_whole_vocabulary_gives(stack: ExitStack, top_p: float) -> None:
    _, supervisor = serve(stack)
    certain = 0
    for seed in range(6):
        options = GenerationOptions(max_tokens=8, temperature=1.0, top_p=top_p, seed=seed)
        remote, exact = both(supervisor, options, top_log_probs=20)
        for step, reference in zip(remote, exact, strict=False):
            if not step.certain or step.token.id != reference.token.id:
                assert not step.certain
                break
            certain += 1
    assert certain > 12


def test_what_was_generated_ahead_saves_requests_and_changes_nothing(stack: ExitStack) -> None:
    server, supervisor = serve(stack)
    counts = []
    for look_ahead in (0, 6):
        before = len(server.generations)
        model = RemoteModel(supervisor, end_ids=[END], look_ahead=look_ahead)
        # With equal contexts the server's own greedy tokens are those of the mixture.
        steps = list(
            generate(model.contexts([CONTEXTS[1]] * 2), WEIGHTS[:2] - np.log(0.8), GenerationOptions(14))
        )
        counts.append((len(server.generations) - before, [step.token.id for step in steps]))
    (without, tokens), (with_ahead, same) = counts
    assert tokens == same
    assert (without, with_ahead) == (len(tokens), -(-len(tokens) // 7))


def test_tokens_that_end_a_text_are_learnt_from_the_server(stack: ExitStack) -> None:
    _, supervisor = serve(stack)
    ending = next(
        (3, a, b) for a in range(5, 60) for b in range(5, 60) if next_log_probs((3, a, b)).argmax() == END
    )
    model = RemoteModel(supervisor)
    steps = list(generate(model.contexts([ending]), np.zeros(1), GenerationOptions(max_tokens=5)))
    assert [step.token.id for step in steps] == [END]
    assert steps[0].token.ends


def test_plain_generation_is_streamed_and_is_the_models_own(stack: ExitStack) -> None:
    server, supervisor = serve(stack)
    answerer = Answerer(supervisor, Numbers(), AnswererOptions(separator="9"))
    answer = answerer.answer("12", ["10 11", "20"], None, "concat", GenerationOptions(max_tokens=10))
    exact = list(
        generate(FullContexts([(20, 9, 10, 11, 9, 12)]), np.zeros(1), GenerationOptions(max_tokens=10))
    )
    assert list(answer.tokens) == [step.token.id for step in exact]
    assert answer.log_probs == pytest.approx([step.token.log_prob for step in exact], abs=1e-5)
    assert server.generations[-1]["stream"] is True
    assert server.generations[-1]["prompt"] == [[20, 9, 10, 11, 9, 12]]


def test_a_server_that_stops_at_its_end_token_ends_the_text(stack: ExitStack) -> None:
    _, supervisor = serve(stack)
    ending = next(
        (3, a, b) for a in range(5, 60) for b in range(5, 60) if next_log_probs((3, a, b)).argmax() == END
    )
    answer = Answerer(supervisor, Numbers()).answer(" ".join(map(str, ending)), combination="none")
    assert (answer.tokens, answer.text, answer.finish_reason) == ((END,), "", "end")


def test_whole_answers_come_from_one_request(stack: ExitStack) -> None:
    server, supervisor = serve(stack)
    answerer = Answerer(supervisor, Numbers(), AnswererOptions(posterior=False, separator="9"))
    before = len(server.generations)
    options = GenerationOptions(max_tokens=5)
    answer = answerer.answer("12", ["10", "20", "10"], [1.0, 0.0, 1.0], "ensemble-answers", options)
    assert len(server.generations) == before + 1
    assert len(server.generations[-1]["prompt"]) == 3
    e = np.e
    assert [choice.share for choice in answer.choices] == pytest.approx(
        [2 * e / (2 * e + 1), 1 / (2 * e + 1)]
    )
    assert answer.weights[0].posterior is None


def test_many_questions_at_once_get_their_own_answers(stack: ExitStack) -> None:
    _, supervisor = serve(stack)
    answerer = Answerer(supervisor, Numbers(), AnswererOptions(separator="9"))
    options = GenerationOptions(max_tokens=6)
    questions = [str(number) for number in range(12, 24)]
    alone = [answerer.answer(question, ["10", "20"], None, "ensemble", options) for question in questions]
    with ThreadPoolExecutor(6) as threads:
        together = list(
            threads.map(
                lambda question: answerer.answer(question, ["10", "20"], None, "ensemble", options), questions
            )
        )
    assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]


class Faults:
    """Spoils some of the generating requests, and notes how often."""

    def __init__(self, *kinds: str) -> None:
        self.kinds = list(kinds)
        self.spoilt: list[str] = []

    def __call__(self, server: FakeServer, payload: dict[str, Any], body: Body) -> tuple[int, Body] | None:
        if "top_k" not in payload or not self.kinds:
            return None
        kind = self.kinds.pop(0)
        self.spoilt.append(kind)
        if kind == "hang up":
            return 200, None
        if kind == "busy":
            return 429, {"error": "busy"}
        if kind == "cut off" and isinstance(body, str):
            return 200, "".join(part + "\n\n" for part in body.split("\n\n")[:3])
        if kind == "strings" and isinstance(body, dict):
            for choice in body["choices"]:
                choice["logprobs"]["tokens"] = ["word"]
            return 200, body
        if kind == "logits" and isinstance(body, dict):
            for choice in body["choices"]:
                top = choice["logprobs"]["top_logprobs"][0]
                choice["logprobs"]["top_logprobs"][0] = {token: value + 9 for token, value in top.items()}
            return 200, body
        return 200, "<html>"


@pytest.mark.parametrize("fault", ["hang up", "busy", "html", "strings"])
@pytest.mark.parametrize("combination", ["ensemble", "concat"])
def test_what_passes_is_asked_again(stack: ExitStack, fault: str, combination: str) -> None:
    server, supervisor = serve(stack)
    answerer = Answerer(supervisor, Numbers(), AnswererOptions(separator="9"))
    options = GenerationOptions(max_tokens=6)
    expected = answerer.answer("12", ["10", "20"], None, combination, options)
    faults = server.mischief = Faults(fault)
    assert answerer.answer("12", ["10", "20"], None, combination, options).tokens == expected.tokens
    assert faults.spoilt == [fault]


def test_a_stream_that_breaks_off_goes_on_where_it_was(stack: ExitStack) -> None:
    server, supervisor = serve(stack)
    answerer = Answerer(supervisor, Numbers(), AnswererOptions(separator="9"))
    options = GenerationOptions(max_tokens=9)
    expected = answerer.answer("12", ["10"], None, "concat", options)
    server.mischief = Faults("cut off", "cut off")
    assert answerer.answer("12", ["10"], None, "concat", options).tokens == expected.tokens
    asked = [payload for payload in server.generations if payload.get("stream")][-3:]
    assert [payload["max_tokens"] for payload in asked] == [9, 6, 3]
    assert asked[1]["prompt"][0] == [*asked[0]["prompt"][0], *expected.tokens[:3]]


def test_a_server_that_names_no_ids_or_gives_no_log_probs_is_refused(stack: ExitStack) -> None:
    server, supervisor = serve(stack)
    answerer = Answerer(supervisor, Numbers())
    server.mischief = Faults(*["strings"] * 9)
    with pytest.raises(WrongAnswerError, match=r"return_tokens_as_token_ids.*--supervisor local"):
        answerer.answer("12", ["10"], None, "ensemble")
    server.mischief = Faults(*["logits"] * 9)
    with pytest.raises(WrongAnswerError, match="raw_logprobs"):
        answerer.answer("12", ["10"], None, "ensemble")


def test_a_top_that_the_server_does_not_give_is_refused_with_its_words(stack: ExitStack) -> None:
    _, supervisor = serve(stack)
    answerer = Answerer(supervisor, Numbers(), AnswererOptions(top_log_probs=21))
    with pytest.raises(SupervisorError, match="too many logprobs"):
        answerer.answer("12", ["10"], None, "ensemble")


def test_whoever_has_heard_enough_may_go(stack: ExitStack) -> None:
    _, supervisor = serve(stack)
    answerer = Answerer(supervisor, Numbers())
    for combination in ("concat", "ensemble"):
        pieces = answerer.stream("12", ["10"], None, combination)
        assert next(pieces)
        pieces.close()
    assert answerer.answer("12", ["10"], None, "concat", GenerationOptions(max_tokens=2)).tokens
