"""Answers from the real vLLM, held against the same LM in this process; and `replug answer` with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from replug_client.inference.answerer import Answerer, AnswererOptions
from replug_client.inference.generation import GenerationOptions
from replug_client.supervisor.client import RemoteSupervisor
from replug_client.supervisor.endpoint import Endpoint
from replug_client.supervisor.local import LocalSupervisor
from replug_client.supervisor.options import LocalOptions
from replug_client.supervisor.tokenizer import FolderTokenizer
from tests.end_to_end.commands import replug
from tests.end_to_end.conftest import DEMO_LM, VllmServer
from tests.inference.code_passages import PASSAGES, PREFIX, SIMILARITIES
from tests.retriever.tiny import WORDS, saved_encoder


@pytest.fixture(scope="module")
def tokenizer() -> FolderTokenizer:
    return FolderTokenizer.load(str(DEMO_LM), local_only=True)


@pytest.fixture(scope="module")
def remote(vllm_server: VllmServer) -> Iterator[RemoteSupervisor]:
    with RemoteSupervisor(Endpoint.open(vllm_server.base_url), vllm_server.model) as supervisor:
        yield supervisor


@pytest.fixture(scope="module")
def local() -> Iterator[LocalSupervisor]:
    with LocalSupervisor.load(str(DEMO_LM), LocalOptions(device="cpu", dtype="float32")) as supervisor:
        yield supervisor


@pytest.mark.parametrize("look_ahead", [0, 4])
def test_the_servers_ensemble_is_the_exact_one(
    remote: RemoteSupervisor, local: LocalSupervisor, tokenizer: FolderTokenizer, look_ahead: int
) -> None:
    options = GenerationOptions(max_tokens=32)
    how = AnswererOptions(temperature_score=0.2, look_ahead=look_ahead)
    found = Answerer(remote, tokenizer, how).answer(PREFIX, PASSAGES, SIMILARITIES, "ensemble", options)
    exact = Answerer(local, tokenizer, how).answer(PREFIX, PASSAGES, SIMILARITIES, "ensemble", options)
    assert found.tokens == exact.tokens
    assert found.text == exact.text
    assert found.log_probs == pytest.approx(exact.log_probs, abs=1e-4)
    assert [weight.posterior for weight in found.weights] == pytest.approx(
        [weight.posterior for weight in exact.weights], abs=1e-3
    )
    assert all(found.certain)
    assert 0 < max(found.dropped_mass) < 1
    print(f"look_ahead {look_ahead}: dropped {sum(found.dropped_mass) / 32:.3f} of the mass in the mean")


@pytest.mark.parametrize("combination", ["concat", "none", "ensemble-answers"])
def test_what_the_server_generates_itself_is_what_the_model_does(
    remote: RemoteSupervisor, local: LocalSupervisor, tokenizer: FolderTokenizer, combination: str
) -> None:
    options = GenerationOptions(max_tokens=16)
    found = Answerer(remote, tokenizer).answer(PREFIX, PASSAGES, SIMILARITIES, combination, options)
    exact = Answerer(local, tokenizer).answer(PREFIX, PASSAGES, SIMILARITIES, combination, options)
    assert (found.tokens, found.text, found.finish_reason) == (exact.tokens, exact.text, exact.finish_reason)
    assert found.log_probs == pytest.approx(exact.log_probs, abs=1e-4)
    assert [choice.text for choice in found.choices] == [choice.text for choice in exact.choices]


@pytest.mark.parametrize("combination", ["concat", "ensemble"])
def test_seeds_and_stop_strings_hold_over_the_server(
    remote: RemoteSupervisor, tokenizer: FolderTokenizer, combination: str
) -> None:
    answerer = Answerer(remote, tokenizer, AnswererOptions(posterior=False))

    def sampled(seed: int, stop: tuple[str, ...] = ()) -> str:
        options = GenerationOptions(max_tokens=16, temperature=0.9, top_p=0.9, seed=seed, stop=stop)
        return answerer.answer(PREFIX, PASSAGES, SIMILARITIES, combination, options).text

    text = sampled(5)
    assert sampled(5) == text
    assert sampled(6) != text
    stop = text[6:9]
    assert sampled(5, (stop,)) == text[: text.index(stop)]


def test_the_command_answers_with_the_server(vllm_server: VllmServer, tmp_path: Path) -> None:
    encoder = saved_encoder(tmp_path / "encoder")
    rows = [{"id": f"p{i}", "text": " ".join(WORDS[i : i + 6])} for i in range(8)]
    (tmp_path / "passages.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = ["--passages", tmp_path / "passages.jsonl", "--retriever", encoder, "--cache_dir", tmp_path]
    given += ["--model", vllm_server.model, "--tokenizer", DEMO_LM, "--base_url", vllm_server.base_url]
    done = replug("answer", "word1 word2", *given, "--max_tokens", 8, "--n_docs", 3, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["tokens"]) == 8
    assert sum(passage["posterior"] for passage in found["passages"]) == pytest.approx(1)
