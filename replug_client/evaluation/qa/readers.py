"""Files of questions: JSON, JSONL, CSV, TSV and Parquet; MMLU's folders and DPR's pairs, as they are published."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from replug_client.corpus.rows import Place, file_errors, refuse_bad_bytes
from replug_client.corpus.text_files import delimited_records, delimited_rows, jsonl_records
from replug_client.errors import CorpusError
from replug_client.evaluation.qa.questions import LETTERS, Question, list_in, question_of

logger = logging.getLogger(__name__)

_MMLU_CHOICES = 4
_MMLU_SPLIT = re.compile(r"_(?:test|val|dev|train)$")
_BATCH_ROWS = 1024

_Records = Iterator[tuple[Place, dict[str, Any]]]


def read_questions(paths: Sequence[Path]) -> list[Question]:
    """All questions of some files and folders, in order.

    The suffix says how a file is read, and what stands in it which form it is:

    - `.json`: a list of records, or TriviaQA's object with ``Data``; `.jsonl`: a record a line (NQ-open);
      `.parquet`: as the hub has MMLU, NQ-open and TriviaQA;
    - `.csv`, `.tsv`: with a header, or MMLU's six columns without one (question, A, B, C, D, letter; the subject is
      the file's name), or DPR's pairs without one (question, tab, list of answers);
    - a folder: its `.csv` files, by name (MMLU's ``test/``).

    See :func:`~replug_client.evaluation.qa.questions.question_of` for what a record holds.

    Raises:
        CorpusError: a file that cannot be read, a record that is no question, no question at all, or an id that
            stands twice; names file, row and column.
    """
    files = question_files(paths)
    questions: list[Question] = []
    seen: dict[str, Place] = {}
    for file in files:
        found = len(questions)
        with file_errors(file):
            for place, record in _records(file):
                question = question_of(place, record)
                if question.id in seen:
                    raise place.error(
                        f"the id {question.id!r} also stands in {seen[question.id]}. Give each question one of its own."
                    )
                seen[question.id] = place
                questions.append(question)
        if len(questions) == found:
            raise CorpusError(f"{file}: no question in it. Expected at least one.")
    return questions


def question_files(paths: Sequence[Path]) -> list[Path]:
    """The files that :func:`read_questions` reads.

    Raises:
        CorpusError: a folder without any.
    """
    return [file for path in paths for file in _files(path)]


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.csv"))
    if not files:
        raise CorpusError(f"{path}: a folder without .csv files, expected MMLU's. Name the files themselves.")
    return files


def _records(path: Path) -> _Records:
    readers: dict[str, Callable[[Path], _Records]] = {
        ".json": _json_records,
        ".jsonl": jsonl_records,
        ".csv": _delimited_records,
        ".tsv": _delimited_records,
        ".parquet": _parquet_records,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise CorpusError(
            f"{path}: suffix {path.suffix!r}, expected one of {', '.join(readers)}. Rename or convert the file."
        )
    return reader(path)


def _json_records(path: Path) -> _Records:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise CorpusError(
            f"{path}: not JSON ({error}). A file with an object on each line is called .jsonl."
        ) from error
    if isinstance(value, dict):
        value = next((value[name] for name in ("Data", "data", "questions") if name in value), value)
    if not isinstance(value, list):
        raise CorpusError(f"{path}: found {type(value).__name__}, expected a list of questions.")
    for number, record in enumerate(value, 1):
        place = Place(str(path), number)
        if not isinstance(record, dict):
            raise place.error(f"found {type(record).__name__}, expected an object with 'question'.")
        yield place, record


def _delimited_records(path: Path) -> _Records:
    """With a header, or one of the two forms that are published without."""
    comma = "\t" if path.suffix.lower() == ".tsv" else ","
    first = _first_row(comma, path)
    if not first or any(name in first for name in ("question", "Question")):
        return delimited_records(comma, path, ())
    if _is_mmlu(first):
        return _mmlu_records(path)
    pair = _first_row("\t", path)
    if len(pair) == 2 and list_in(pair[1]) is not None:
        return _dpr_records(path)
    raise CorpusError(
        f"{path}, line 1, column 'question': no column of this name, but {', '.join(map(repr, first))[:200]}. Expected"
        " a header with 'question' and 'answer', or MMLU's six columns (question, A, B, C, D, letter), or DPR's two"
        " (question, tab, list of answers)."
    )


def _first_row(delimiter: str, path: Path) -> list[str]:
    place, row = next(delimited_rows(delimiter, path), (Place(str(path), 0, 1), []))
    refuse_bad_bytes(place, {str(number): cell for number, cell in enumerate(row, 1)})
    return row


def _is_mmlu(row: Sequence[str]) -> bool:
    return len(row) == _MMLU_CHOICES + 2 and row[-1].strip() in LETTERS[:_MMLU_CHOICES] and bool(row[-1])


def _mmlu_records(path: Path) -> _Records:
    """MMLU as Hendrycks et al. 2021 publish it: no header, one file a subject, `anatomy_test.csv`."""
    subject = _MMLU_SPLIT.sub("", path.stem).replace("_", " ")
    for place, row in _without_header(",", path):
        if not _is_mmlu(row):
            raise place.error(
                f"found {len(row)} columns, the last {row[-1][:20]!r}; expected question, A, B, C, D and the letter of"
                " the right one.",
                column="answer",
            )
        yield (
            place,
            {
                "question": row[0],
                "choices": row[1:-1],
                "answer": LETTERS.index(row[-1].strip()),
                "subject": subject,
            },
        )


def _dpr_records(path: Path) -> _Records:
    """DPR's `nq-test.qa.csv` and `trivia-test.qa.csv` (Karpukhin et al. 2020): question, tab, a list of answers."""
    for place, row in _without_header("\t", path):
        answers = list_in(row[1]) if len(row) == 2 else None
        if answers is None:
            raise place.error(
                f"found {len(row)} columns{'' if len(row) != 2 else f', the second {row[1][:40]!r}'}; expected the"
                " question, a tab and a list of answers.",
                column="answers",
            )
        yield place, {"question": row[0], "answers": answers}


def _without_header(delimiter: str, path: Path) -> Iterator[tuple[Place, list[str]]]:
    for place, row in delimited_rows(delimiter, path):
        place = Place(place.file, place.record + 1, place.line)
        refuse_bad_bytes(place, {str(number): cell for number, cell in enumerate(row, 1)})
        yield place, row


def _parquet_records(path: Path) -> _Records:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.open("rb").close()  # Python's errors for a missing file or a folder, not Arrow's
    try:
        with pq.ParquetFile(path) as file:
            # Hub files carry whole evidence documents beside the question; they are not needed.
            wanted = [
                name for name in file.schema_arrow.names if name not in ("entity_pages", "search_results")
            ]
            rows = chain.from_iterable(
                batch.to_pylist() for batch in file.iter_batches(_BATCH_ROWS, columns=wanted)
            )
            for number, record in enumerate(rows, 1):
                yield Place(str(path), number), record
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(f"{path}: cannot be read as Parquet ({error}). Write the file again.") from error
