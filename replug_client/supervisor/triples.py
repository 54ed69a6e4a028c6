"""JSON Lines of query, continuation and passages in, the same with log-likelihoods out."""

from __future__ import annotations

import codecs
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from replug_client.errors import CorpusError
from replug_client.supervisor.prompts import PromptBuilder
from replug_client.supervisor.protocol import Prompt, Score, StreamingSupervisor
from replug_client.supervisor.tokenizer import SupervisorTokenizer

_SHOWN = 10
_PAIRS_PER_SUBMISSION = 1024  # enough to keep a server full, and for a local LM to find shared prefixes
_SUBMISSIONS = 2


@dataclass(frozen=True, slots=True)
class Triple:
    """One line of input.

    Attributes:
        place: File and line, for messages.
        record: The whole object, as read; its other fields are kept.
    """

    place: str
    record: dict[str, Any]
    query: str
    continuation: str
    passages: tuple[str, ...]


def read_triples(path: Path) -> Iterator[Triple]:
    """The file's triples, one line at a time; blank lines are passed over.

    Raises:
        CorpusError: a line that is none; names file, line and field.
    """
    for triple, error in _read(path):
        if error is not None:
            raise error
        if triple is not None:
            yield triple


def count_pairs(path: Path) -> tuple[int, int]:
    """Lines and (line, passage) pairs of a file, all of it checked, so that a bad line costs no scoring.

    Raises:
        CorpusError: names the bad lines (the first ten, and how many there are).
    """
    lines = pairs = 0
    errors: list[CorpusError] = []
    for triple, error in _read(path):
        if error is not None:
            errors.append(error)
        if triple is not None:
            lines += 1
            pairs += len(triple.passages)
    if errors:
        more = f"\n... and {len(errors) - _SHOWN} more bad lines" if len(errors) > _SHOWN else ""
        raise CorpusError("\n".join(map(str, errors[:_SHOWN])) + more)
    if not lines:
        raise CorpusError(f"{path}: the file is empty; expected lines like {_EXAMPLE}")
    return lines, pairs


def score_triples(
    triples: Iterable[Triple],
    supervisor: StreamingSupervisor,
    tokenizer: SupervisorTokenizer,
    builder: PromptBuilder,
    *,
    with_tokens: bool = False,
    advance: Callable[[int], None] = lambda count: None,
) -> Iterator[dict[str, Any]]:
    """Score line by line, in order; two submissions are under way at a time, so memory stays bounded.

    Query and continuation are encoded each on its own. Yields each record with ``log_likelihoods``
    (summed, nats, one per passage), ``num_tokens`` and ``num_bytes`` (of the continuation); with
    ``with_tokens`` also ``prompt_ids`` and ``token_log_probs``, a list per passage. ``advance`` is told of
    pairs as they are scored, from any thread.

    Raises:
        SupervisorError: names line and passage.
    """
    under_way: deque[tuple[list[Triple], list[Prompt], Future[list[Score]]]] = deque()
    for lines in _windows(triples):
        prompts = [prompt for line in lines for prompt in _prompts(line, tokenizer, builder)]
        future = supervisor.submit(prompts, lambda positions, _: advance(len(positions)))
        under_way.append((lines, prompts, future))
        if len(under_way) == _SUBMISSIONS:
            yield from _results(*under_way.popleft(), with_tokens=with_tokens, tokenizer=tokenizer)
    while under_way:
        yield from _results(*under_way.popleft(), with_tokens=with_tokens, tokenizer=tokenizer)


def _prompts(line: Triple, tokenizer: SupervisorTokenizer, builder: PromptBuilder) -> Iterator[Prompt]:
    query, continuation = tokenizer.encode(line.query), tokenizer.encode(line.continuation)
    for number, passage in enumerate(line.passages, start=1):
        yield builder.build(passage, query, continuation, f"{line.place}, passage {number}")


def _results(
    lines: list[Triple],
    prompts: list[Prompt],
    future: Future[list[Score]],
    *,
    with_tokens: bool,
    tokenizer: SupervisorTokenizer,
) -> Iterator[dict[str, Any]]:
    pairs = zip(prompts, future.result(), strict=True)
    for line in lines:
        scored = [next(pairs) for _ in line.passages]
        result = line.record | {
            "log_likelihoods": [score.log_likelihood for _, score in scored],
            "num_tokens": scored[0][1].num_tokens if scored else len(tokenizer.encode(line.continuation)),
            "num_bytes": len(line.continuation.encode("utf-8")),
        }
        if with_tokens:
            result["prompt_ids"] = [list(prompt.ids) for prompt, _ in scored]
            result["token_log_probs"] = [score.token_log_probs.tolist() for _, score in scored]
        yield result


def _windows(triples: Iterable[Triple]) -> Iterator[list[Triple]]:
    window: list[Triple] = []
    pairs = 0
    for triple in triples:
        window.append(triple)
        pairs += len(triple.passages)
        if pairs >= _PAIRS_PER_SUBMISSION:
            yield window
            window, pairs = [], 0
    if window:
        yield window


_EXAMPLE = '{"query": "...", "continuation": "...", "passages": ["...", ""]}'


def _read(path: Path) -> Iterator[tuple[Triple | None, CorpusError | None]]:
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if not line.strip():
                    continue
                place = f"{path}, line {number}"
                try:
                    yield _triple(place, line), None
                except ValueError as error:
                    yield None, CorpusError(f"{place}: {error}")
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror})") from error


def _triple(place: str, line: bytes) -> Triple:
    """Parse a line; ``ValueError`` says what is wrong with it."""
    try:
        record = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start + 1} is no UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON ({error.msg}, column {error.colno}); expected {_EXAMPLE}") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(record, dict):
        raise ValueError(f"expected an object such as {_EXAMPLE}, found {type(record).__name__}")
    for key in ("query", "continuation"):
        _check_text(key, record.get(key))
    if not record["continuation"]:
        raise ValueError('"continuation" is empty, so there is nothing to score')
    passages = record.get("passages")
    if not isinstance(passages, list):
        raise ValueError(f'"passages" must be a list of texts, found {_kind(passages)}')
    for number, passage in enumerate(passages, start=1):
        _check_text(f"passages, number {number}", passage)
    return Triple(place, record, record["query"], record["continuation"], tuple(passages))


def _check_text(key: str, value: Any) -> None:
    if not isinstance(value, str):
        raise ValueError(f'"{key}" must be a text, found {_kind(value)}')
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f'"{key}": character {error.start + 1} is half of a surrogate pair') from error


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
