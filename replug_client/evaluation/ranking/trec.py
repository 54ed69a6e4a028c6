"""Rankings and judgements in TREC's format, which trec_eval, ir_measures, pytrec_eval and ranx read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from replug_client.artefacts import atomic_write
from replug_client.evaluation.ranking.measures import Qrels, Ranked

_TO_ENCODE = re.compile(r"[\s%]")


def id_writer(ids: Iterable[str]) -> Callable[[str], str]:
    """How ids are written: as they are, or, where any holds white space, percent-encoded (white space and ``%``).

    The format separates by white space, so an id such as ``docs/read me.txt`` would be two columns.
    """
    if not any(re.search(r"\s", id_) for id_ in ids):
        return str
    return lambda id_: _TO_ENCODE.sub(
        lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), id_
    )


def write_run(path: Path, run: Ranked, tag: str, written: Callable[[str], str] = str) -> None:
    """``query Q0 passage rank score tag`` a line, best first, ranks from 1."""
    with atomic_write(path, "w") as stream:
        for query, found in run.items():
            for rank, (passage, score) in enumerate(found, 1):
                stream.write(f"{written(query)} Q0 {written(passage)} {rank} {score!r} {tag}\n")


def write_qrels(path: Path, qrels: Qrels, written: Callable[[str], str] = str) -> None:
    """``query 0 passage gain`` a line."""
    with atomic_write(path, "w") as stream:
        for query, judged in qrels.items():
            for passage, gain in judged.items():
                stream.write(f"{written(query)} 0 {written(passage)} {gain}\n")
