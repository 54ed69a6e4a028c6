from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from replug_client.cli.score import Kind, score
from replug_client.errors import CorpusError, PromptTooLongError, SupervisorUnavailableError
from replug_client.supervisor.fake import FakeSupervisor, hashed_log_probs
from replug_client.supervisor.prompts import PromptBuilder
from replug_client.supervisor.protocol import Prompt
from replug_client.supervisor.triples import count_pairs, read_triples, score_triples
from tests.supervisor.fake_server import MODEL, FakeServer, running
from tests.supervisor.reference import DEMO_LM, reference_log_probs
from tests.supervisor.test_prompts import Letters

Line = dict[str, Any]
GOOD: Line = {
    "query": "a = 1\n",
    "continuation": "b = é\n",
    "passages": ["", "b = é\n" * 9, "数" * 400],
    "id": "007",
}
Run = Callable[..., list[Line]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def command(*lines: Line | str, **options: Any) -> list[Line]:
        source, target = tmp_path / "triples.jsonl", tmp_path / "scores.jsonl"
        source.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
        settings: dict[str, Any] = {
            "supervisor": Kind.LOCAL,
            "model": str(DEMO_LM),
            "dtype": "float32",
            "device": "cpu",
            "cache_dir": tmp_path / "cache",
        }
        score(source, target, **(settings | options))
        return [json.loads(line) for line in target.read_text().splitlines()]

    return command


def test_each_line_comes_back_with_its_scores(run: Run) -> None:
    (line,) = run(GOOD)
    assert {key: line[key] for key in GOOD} == GOOD
    assert line.keys() - GOOD.keys() == {"log_likelihoods", "num_tokens", "num_bytes"}
    assert line["num_bytes"] == 7
    assert len(line["log_likelihoods"]) == 3
    assert line["log_likelihoods"][1] > line["log_likelihoods"][0]  # it stands in that passage


def test_with_tokens_the_sums_and_the_independent_figures_agree(run: Run) -> None:
    (line,) = run(GOOD, with_tokens=True)
    for ids, log_probs, total in zip(
        line["prompt_ids"], line["token_log_probs"], line["log_likelihoods"], strict=True
    ):
        assert ids[0] == 0
        assert len(ids) <= 1 + 128 + 1 + 20
        assert log_probs == pytest.approx(
            reference_log_probs(Prompt(tuple(ids), line["num_tokens"])), abs=1e-5
        )
        assert total == pytest.approx(sum(log_probs), abs=1e-6)


def test_a_second_run_takes_everything_from_the_cache(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(GOOD)
    assert "3 asked for, 0 from the cache" in capsys.readouterr().err
    assert run(GOOD) == first
    assert "0 asked for, 3 from the cache" in capsys.readouterr().err


def test_the_manifest_says_what_made_the_file(run: Run, tmp_path: Path) -> None:
    run(GOOD, separator=r"\n\n", retrieved_max_length=5)
    manifest = json.loads((tmp_path / "scores.jsonl.manifest.json").read_text())
    assert manifest["prompt"] == {"retrieved_max_length": 5, "separator": "\n\n", "with_tokens": False}
    assert (manifest["lines"], manifest["pairs"]) == (1, 3)
    assert len(manifest["supervisor"]["fingerprint"]) == 64


BAD = {
    '{"query": 1, "continuation": "b", "passages": []}': '"query" must be a text, found int',
    '{"continuation": "b", "passages": []}': '"query" must be a text, found nothing',
    '{"query": "a", "continuation": "", "passages": []}': '"continuation" is empty',
    '{"query": "a", "continuation": "b"}': '"passages" must be a list of texts, found nothing',
    '{"query": "a", "continuation": "b", "passages": "p"}': '"passages" must be a list',
    '{"query": "a", "continuation": "b", "passages": ["p", null]}': '"passages, number 2" must be a text',
    '{"query": "\\ud800", "continuation": "b", "passages": []}': "half of a surrogate pair",
    '{"query": "a", "continuation": "b", "passages": [], "x": NaN}': "NaN is no JSON",
    "[1]": "expected an object",
    '{"query": ': "no JSON",
}


@pytest.mark.parametrize(("line", "message"), BAD.items(), ids=BAD.values())
def test_a_bad_line_is_named_before_anything_is_scored(
    run: Run, tmp_path: Path, line: str, message: str
) -> None:
    with pytest.raises(CorpusError, match=r"triples\.jsonl, line 3: ") as caught:
        run(GOOD, "", line)
    assert message in str(caught.value)
    assert not (tmp_path / "scores.jsonl").exists()
    assert not (tmp_path / "cache").exists()


def test_all_bad_lines_are_counted_and_the_first_ten_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\n" + b"\xff\n" * 12)
    with pytest.raises(CorpusError, match=r"(?s)line 2: byte 1 is no UTF-8.*line 11: .*and 2 more bad lines"):
        count_pairs(path)


def test_bom_crlf_and_blank_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "triples.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + (json.dumps(GOOD) + "\r\n\r\n").encode() * 2)
    assert [triple.place for triple in read_triples(path)] == [f"{path}, line 1", f"{path}, line 3"]
    assert count_pairs(path) == (2, 6)


@pytest.mark.parametrize("name", ["empty.jsonl", "missing.jsonl"])
def test_no_lines_are_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(CorpusError, match=name):
        count_pairs(tmp_path / name)


def test_a_pair_that_is_too_long_is_named(run: Run, tmp_path: Path) -> None:
    long = {"query": "x = 1\n" * 1000, "continuation": "y", "passages": ["", "p"]}
    with pytest.raises(PromptTooLongError, match=r"triples\.jsonl, line 2, passage 1: "):
        run(GOOD, long)
    assert not (tmp_path / "scores.jsonl").exists()


def letters(max_prompt_tokens: int = 1000) -> PromptBuilder:
    return PromptBuilder(
        Letters(), retrieved_max_length=3, max_prompt_tokens=max_prompt_tokens, separator="|"
    )


def test_a_large_file_is_scored_in_order_with_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    lines = [{"query": str(n), "continuation": "yes", "passages": ["p"] * (n % 4)} for n in range(2000)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    read = 0

    def counted() -> Iterator[Any]:
        nonlocal read
        for triple in read_triples(path):
            read += 1
            yield triple

    fake = FakeSupervisor()
    results = score_triples(counted(), fake, Letters(), letters())
    first = next(results)
    assert read < 1500
    found = [first, *results]
    fake.close()
    assert [line["query"] for line in found] == [line["query"] for line in lines]
    for n, line in enumerate(found):
        ids = (1, *map(ord, f"p|{n}yes"))
        expected = sum(hashed_log_probs(Prompt(ids, 3)))
        assert line["log_likelihoods"] == pytest.approx([expected] * (n % 4), abs=1e-5)
        assert (line["num_tokens"], line["num_bytes"]) == (3, 3)


def test_an_interrupted_run_asks_only_for_what_is_missing(run: Run) -> None:
    """The server dies half way; started again, it gets the other half."""
    lines = [GOOD | {"query": f"q{number}"} for number in range(400)]
    died = False

    def die(server: FakeServer, payload: dict[str, Any], body: Any) -> tuple[int, Any] | None:
        return (401, {"error": "gone"}) if not died and len(server.requests) > 8 else None

    with running(FakeServer(mischief=die, log_probs=hashed_log_probs)) as server:
        options = {
            "supervisor": Kind.SERVER,
            "model": MODEL,
            "base_url": [server.base_url],
            "tokenizer": None,
            "concurrency": "1",
        }
        with pytest.raises(Exception, match="gone"):
            run(*lines, **options)
        asked = sum(len(request["prompt"]) for request in server.requests[2:8])
        died = True
        server.requests.clear()
        assert len(run(*lines, **options)) == 400
        again = sum(len(request["prompt"]) for request in server.requests[2:-1])  # the last: the canary
        assert asked > 0
        assert asked + again == 1200
        assert server.complaints == []


def test_no_server_is_an_error_that_says_where_it_was_looked_for(run: Run) -> None:
    with pytest.raises(SupervisorUnavailableError, match=r"127\.0\.0\.1:1/v1"):
        run(GOOD, supervisor=Kind.SERVER, base_url=["http://127.0.0.1:1/v1"])
