"""Scoring through the command and the client, against a real vLLM and an independent computation."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from replug_client.errors import OptionError, SupervisorRequestError
from replug_client.supervisor.cache import ScoreCache
from replug_client.supervisor.cached import CachedSupervisor
from replug_client.supervisor.client import ClientOptions, RemoteSupervisor
from replug_client.supervisor.endpoint import Endpoint
from replug_client.supervisor.formats import FORMATS
from replug_client.supervisor.protocol import Prompt, Score
from replug_client.supervisor.server_tokenizer import ServerTokenizer
from replug_client.supervisor.tokenizer import FolderTokenizer, check_same_ids
from tests.end_to_end.commands import replug
from tests.end_to_end.conftest import DEMO_LM, MAX_MODEL_LEN, ROOT, VllmServer
from tests.supervisor.contract import Subject, SupervisorContract, random_prompts

TOLERANCE = 1e-4  # nats per token
RETRIEVED_MAX_LENGTH = 128
LINES, PASSAGES = 52, 4

SCRIPTS = [
    "abc XYZ_09",
    "àéîõüß",
    "λογος ня",
    "数据模型語言",
    "עברית عربي",
    "हिन्दी ไทย",
    "😀👩‍💻🏳️‍🌈",
    "e\u0301\u200d\ufeff",
    "\t\r\n\x00\x7f\u202e",
]


def code(rng: random.Random, characters: int) -> str:
    source = sources()
    start = rng.randrange(len(source) - characters)
    return source[start : start + characters]


def unicode(rng: random.Random, characters: int) -> str:
    return "".join(rng.choice(rng.choice(SCRIPTS)) for _ in range(characters))


@cache
def sources() -> str:
    return "".join(path.read_text() for path in sorted((ROOT / "replug_client" / "supervisor").glob("*.py")))


@pytest.fixture(scope="module")
def triples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """208 triples: of each line's passages one empty, one code, one unicode, one over-long."""
    rng = random.Random(20240229)
    path = tmp_path_factory.mktemp("triples") / "triples.jsonl"
    kinds: list[Callable[[random.Random, int], str]] = [code, unicode]
    with path.open("w", encoding="utf-8") as stream:
        for number in range(LINES):
            query, continuation = rng.choice(kinds), rng.choice(kinds)
            passages = ["", code(rng, rng.randint(1, 500)), unicode(rng, rng.randint(1, 60)), code(rng, 3000)]
            rng.shuffle(passages)
            record = {
                "id": f"{number:03}",
                "query": query(rng, rng.randint(0, 120)),
                "continuation": continuation(rng, rng.randint(1, 120)),
                "passages": passages,
            }
            stream.write(json.dumps(record, ensure_ascii=number % 2 == 0) + "\n")
    return path


@cache
def independent() -> Callable[[str, str, str], tuple[list[int], np.ndarray[Any, Any]]]:
    """Plain transformers: prompt ids, and the continuation's log-probs, by full logits in float32."""
    tokenizer: Any = AutoTokenizer.from_pretrained(DEMO_LM)
    model: Any = AutoModelForCausalLM.from_pretrained(DEMO_LM, dtype=torch.float32)
    torch.set_num_threads(1)  # the server has the cores; two thread pools at once take ten times as long

    def ids_of(text: str) -> list[int]:
        # "</s>" in a passage of source code is text; the token of that name ends a document.
        return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def compute(passage: str, query: str, continuation: str) -> tuple[list[int], np.ndarray[Any, Any]]:
        head = ids_of(passage)[:RETRIEVED_MAX_LENGTH] + ids_of("\n") if passage else []
        target = ids_of(continuation)
        ids = [tokenizer.bos_token_id, *head, *ids_of(query), *target]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0]
        log_probs = torch.log_softmax(logits, dim=-1)
        before = range(len(ids) - len(target) - 1, len(ids) - 1)
        return ids, np.array(
            [float(log_probs[row, token]) for row, token in zip(before, target, strict=True)]
        )

    return compute


def largest_difference(output: Path) -> float:
    """Check a ``--with_tokens`` output line by line; nats per token, over all pairs."""
    largest = 0.0
    pairs = 0
    for line in output.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        for passage, ids, found, total in zip(
            record["passages"],
            record["prompt_ids"],
            record["token_log_probs"],
            record["log_likelihoods"],
            strict=True,
        ):
            expected_ids, expected = independent()(passage, record["query"], record["continuation"])
            assert ids == expected_ids
            assert len(found) == len(expected) == record["num_tokens"]
            largest = max(largest, float(np.abs(np.array(found) - expected).max()))
            assert total == pytest.approx(expected.sum(), abs=1e-2)
            pairs += 1
        assert record["num_bytes"] == len(record["continuation"].encode())
    assert pairs == LINES * PASSAGES
    return largest


@pytest.fixture(scope="module")
def scored(vllm_server: VllmServer, triples: Path) -> Path:
    """The triples' scores by the command, with the server's tokens, kept in a cache beside them."""
    output = triples.with_name("scores.jsonl")
    done = score_command(vllm_server, triples, output)
    assert done.returncode == 0, done.stderr
    return output


def score_command(
    server: VllmServer, triples: Path, output: Path, *flags: object, model: str = "demo-lm"
) -> Any:
    return replug(
        "score", "--input", triples, "--output", output, "--model", model, "--base-url", server.base_url,
        "--tokenizer", DEMO_LM, "--with-tokens", "--cache-dir", triples.parent / "cache",
        "--retrieved-max-length", RETRIEVED_MAX_LENGTH, *flags,
    )  # fmt: skip


def test_the_command_agrees_with_plain_transformers(
    scored: Path, record_testsuite_property: Callable[[str, object], None]
) -> None:
    difference = largest_difference(scored)
    print(f"largest difference per token, vLLM to transformers: {difference:.2e} nats")
    record_testsuite_property("largest_difference_nats", difference)
    assert 0 < difference <= TOLERANCE  # 0 would mean that the two are not independent


def test_the_second_run_asks_the_server_for_nothing_but_the_probe(
    vllm_server: VllmServer, triples: Path, scored: Path
) -> None:
    before = vllm_server.prompts_answered()
    again = triples.with_name("again.jsonl")
    done = score_command(vllm_server, triples, again)
    assert done.returncode == 0, done.stderr
    assert again.read_bytes() == scored.read_bytes()
    assert vllm_server.prompts_answered() - before == PROBE_PROMPTS
    assert f"0 asked for, {distinct(scored)} from the cache" in done.stderr


PROBE_PROMPTS = 3  # the canary alone, then beside its first part


def distinct(output: Path) -> int:
    """How many different pairs an output holds."""
    pairs = set()
    for line in output.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        pairs |= {(tuple(ids), record["num_tokens"]) for ids in record["prompt_ids"]}
    return len(pairs)


def test_in_process_and_remote_agree(triples: Path, scored: Path) -> None:
    output = triples.with_name("local.jsonl")
    done = replug(
        "score", "--input", triples, "--output", output, "--model", DEMO_LM, "--supervisor", "local",
        "--with-tokens", "--cache-dir", triples.parent / "local-cache", "--dtype", "float32",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    largest = 0.0
    for ours, theirs in zip(output.read_text().splitlines(), scored.read_text().splitlines(), strict=True):
        local, remote = json.loads(ours), json.loads(theirs)
        assert local["prompt_ids"] == remote["prompt_ids"]
        for first, second in zip(local["token_log_probs"], remote["token_log_probs"], strict=True):
            largest = max(largest, float(np.abs(np.subtract(first, second)).max()))
    print(f"largest difference per token, in process to vLLM: {largest:.2e} nats")
    assert largest <= TOLERANCE


def test_an_unknown_model_is_refused_with_what_is_served(vllm_server: VllmServer, triples: Path) -> None:
    done = score_command(vllm_server, triples, triples.with_name("never.jsonl"), model="other-lm")
    assert done.returncode == 2
    assert "does not serve 'other-lm'; it serves 'demo-lm'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not triples.with_name("never.jsonl").exists()


def test_a_prompt_that_is_too_long_is_named_and_never_sent(vllm_server: VllmServer, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    good = {"query": "a = 1\n", "continuation": "b = 2\n", "passages": [""]}
    long = {"query": "x = 1\n" * 600, "continuation": "b = 2\n", "passages": ["def f(): pass"]}
    path.write_text(f"{json.dumps(good)}\n{json.dumps(long)}\n")
    before = vllm_server.prompts_answered()
    done = score_command(vllm_server, path, tmp_path / "out.jsonl")
    assert done.returncode == 1
    assert f"{path}, line 2, passage 1" in done.stderr
    assert f"takes {MAX_MODEL_LEN - 1}" in done.stderr
    assert vllm_server.prompts_answered() - before == PROBE_PROMPTS


# Those that vLLM has on a CPU; vllm-generate is held to its code in test_vllm_generate_contract.py.
CPU_FORMATS = [f for f in FORMATS if f.name in ("vllm", "openai-echo")]


@pytest.fixture(params=[f.name for f in CPU_FORMATS], scope="module")
def remote(request: pytest.FixtureRequest, vllm_server: VllmServer) -> Iterator[RemoteSupervisor]:
    formats = [f for f in FORMATS if f.name == request.param]
    client = Endpoint.open(vllm_server.base_url)
    with RemoteSupervisor(client, vllm_server.model, ClientOptions(concurrency=4), formats) as supervisor:
        assert supervisor.format == request.param
        yield supervisor


def test_a_refused_prompt_does_not_lose_its_neighbours(remote: RemoteSupervisor) -> None:
    prompts = random_prompts(8, seed=77)
    poisoned = Prompt((0, 5, 999_999, 7), 1, "example 3, passage 'poisoned'")
    everything = [*prompts[:3], poisoned, *prompts[3:]]
    handed: dict[int, Score] = {}

    def take(positions: Sequence[int], scores: Sequence[Score]) -> None:
        handed.update(zip(positions, scores, strict=True))

    with pytest.raises(SupervisorRequestError, match="example 3, passage 'poisoned'"):
        remote.submit(everything, take).result()
    assert sorted(handed) == [position for position in range(9) if position != 3]
    kept = [handed[position] for position in sorted(handed)]
    for first, second in zip(kept, remote.score(prompts), strict=True):
        assert np.abs(first.token_log_probs - second.token_log_probs).max() <= TOLERANCE


def test_both_formats_have_one_fingerprint(vllm_server: VllmServer) -> None:
    fingerprints = set()
    for wire_format in CPU_FORMATS:
        client = Endpoint.open(vllm_server.base_url)
        with RemoteSupervisor(client, vllm_server.model, formats=[wire_format]) as supervisor:
            fingerprints.add(supervisor.fingerprint)
    assert len(fingerprints) == 1


def test_the_folder_of_a_served_model_is_a_name_for_it(vllm_server: VllmServer) -> None:
    with RemoteSupervisor(Endpoint.open(vllm_server.base_url), "demo/../demo/lm") as supervisor:
        assert supervisor.name == vllm_server.model


class TestContract(SupervisorContract):
    """All that a supervisor must do, in both formats, against the real server."""

    @pytest.fixture(params=[False, True], ids=["plain", "cached"])
    def subject(
        self, request: pytest.FixtureRequest, remote: RemoteSupervisor, tmp_path: Path
    ) -> Iterator[Subject]:
        from tests.supervisor.reference import reference_log_probs

        if not request.param:
            yield Subject(remote, reference_log_probs, TOLERANCE)
            return
        cache = ScoreCache(tmp_path / "scores.sqlite")
        yield Subject(CachedSupervisor(remote, cache), reference_log_probs, TOLERANCE)
        cache.close()


@pytest.fixture(scope="module")
def pair(vllm_server: VllmServer) -> tuple[ServerTokenizer, FolderTokenizer]:
    server = ServerTokenizer(vllm_server.base_url, vllm_server.model)
    return server, FolderTokenizer.load(str(DEMO_LM), local_only=True)


class TestServerTokenizer:
    """vLLM's ``/tokenize`` held against the folder's tokenizer."""

    @pytest.mark.parametrize("seed", range(8))
    def test_ids_offsets_and_text_are_the_same(
        self, pair: tuple[ServerTokenizer, FolderTokenizer], seed: int
    ) -> None:
        server, folder = pair
        rng = random.Random(seed)
        text = code(rng, 200) + unicode(rng, 60)
        assert server.encode(text) == folder.encode(text)
        assert server.encode_with_offsets(text) == folder.encode_with_offsets(text)
        assert server.decode(folder.encode(text)) == text
        check_same_ids(folder, server, "demo-lm")

    def test_another_tokenizer_is_noticed(self, pair: tuple[ServerTokenizer, FolderTokenizer]) -> None:
        server, folder = pair

        class Shifted(FolderTokenizer):
            def encode(self, text: str) -> list[int]:
                return [token + 1 for token in folder.encode(text)]

        shifted = Shifted.__new__(Shifted)
        with pytest.raises(OptionError, match="--tokenizer"):
            check_same_ids(shifted, server, "demo-lm")
