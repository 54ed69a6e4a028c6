"""A data set in BEIR's form as the files that replug's other commands read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from replug_client.corpus.beir import (
    CORPUS_NAME,
    QRELS_NAME,
    QUERIES_NAME,
    beir_passage,
    is_beir_folder,
    read_beir_queries,
    read_qrels,
)
from replug_client.corpus.records import Passage
from replug_client.corpus.rows import file_errors
from replug_client.corpus.sources.conversion import Conversion, Converted, skipping
from replug_client.corpus.sources.inputs import hashed
from replug_client.corpus.sources.judged import QREL_COLUMNS
from replug_client.corpus.text_files import jsonl_records
from replug_client.errors import CorpusError
from replug_client.progress import progress


@dataclass(frozen=True, slots=True)
class BeirOptions:
    """What of it.

    Attributes:
        split: Whose judgements: ``test``, ``dev``, ``train``.
        join_title: The text becomes title, space, text, as BEIR's own figures are made; else the title is a column.
    """

    split: str = "test"
    join_title: bool = True


Item = tuple[str, tuple[str, ...]] | Passage | None


def conversion(folder: Path, options: BeirOptions) -> Conversion[Item]:
    """What makes ``passages``, ``queries`` (those with judgements) and ``qrels.tsv`` of a BEIR folder.

    Raises:
        CorpusError: it is none, or has no such split.
    """
    qrels_path = folder / QRELS_NAME / f"{options.split}.tsv"
    if not is_beir_folder(folder):
        raise CorpusError(
            f"{folder}: no BEIR folder; expected {CORPUS_NAME}, {QUERIES_NAME} and {QRELS_NAME}/ in it."
        )
    if not qrels_path.is_file():
        there = ", ".join(sorted(path.stem for path in qrels_path.parent.glob("*.tsv"))) or "none"
        raise CorpusError(f"{qrels_path}: no such file. Name another --split; there is {there}.")
    paths = [folder / CORPUS_NAME, folder / QUERIES_NAME, qrels_path]

    def items() -> Iterator[Item]:
        with progress("Reading passages", paths[0].stat().st_size, "B") as advance, file_errors(paths[0]):
            for place, value in jsonl_records(paths[0], advance):
                yield beir_passage(place, value, options.join_title)
        qrels = read_qrels(qrels_path)
        queries = read_beir_queries(paths[1], qrels.keys())
        for query, judged in qrels.items():
            if query not in queries or not queries[query].strip():
                yield "judged queries without text", (query,)
                continue
            yield "queries", (query, queries[query])
            for passage, gain in judged.items():
                yield "qrels.tsv", (query, passage, str(gain))

    return Conversion(
        "beir",
        asdict(options),
        hashed(paths),
        {"passages": ("id", "title", "text"), "queries": ("id", "text"), "qrels.tsv": QREL_COLUMNS},
        lambda skip: skipping(items(), skip),
        _convert,
    )


_COLUMNS: dict[str, Sequence[str]] = {"queries": ("id", "text"), "qrels.tsv": QREL_COLUMNS}


def _convert(item: Item) -> Converted:
    converted = Converted()
    if item is None:
        converted.left_out["empty passages"] += 1
    elif isinstance(item, Passage):
        converted.add("passages", id=item.id, title=item.title or "", text=item.text)
    elif item[0] in _COLUMNS:
        converted.rows.append((item[0], dict(zip(_COLUMNS[item[0]], item[1], strict=True))))
    else:
        converted.left_out[item[0]] += 1
    return converted
