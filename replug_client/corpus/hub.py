"""Data sets in BEIR's form on the hub, as folders in BEIR's form here.

Three layouts are in use. Each has a configuration ``corpus`` and one ``queries``, and the judgements are:
a configuration ``qrels`` (NanoBEIR), the configuration ``default`` (MTEB), or a data set ``<name>-qrels`` (BEIR).
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from replug_client.corpus.archives import give_name
from replug_client.corpus.beir import CORPUS_NAME, QRELS_NAME, QUERIES_NAME
from replug_client.errors import CorpusError, DownloadError
from replug_client.progress import progress

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_DEFAULT_SPLIT = "test"


def fetch_hub(
    name: str, cache_dir: Path, *, split: str | None = None, source: str | None = None
) -> tuple[Path, str]:
    """A folder in BEIR's form with a hub data set's corpus, queries and the judgements of one split.

    Args:
        name: ``owner/name`` on the hub.
        cache_dir: The folder lies in ``cache_dir/hub``; a folder that is there is taken.
        split: Of the judgements; None: ``test``, or the only one there is.
        source: What ``datasets.load_dataset`` is given instead of ``name``: a folder of the same layout.

    Returns:
        The folder, and the split whose judgements it holds.

    Raises:
        DownloadError: it cannot be fetched; says what to put where.
        CorpusError: it has another form, or no such split.
    """
    folder = cache_dir / "hub" / f"{name.replace('/', '--')}--{split or 'default'}"
    if not folder.is_dir():
        _materialise(source or name, folder, split)
    found = sorted(path.stem for path in (folder / QRELS_NAME).glob("*.tsv"))
    if split not in found and len(found) != 1:
        raise CorpusError(
            f"{folder / QRELS_NAME}: expected one file of judgements, found {', '.join(found) or 'none'}."
        )
    return folder, split if split in found else found[0]


def _materialise(source: str, folder: Path, split: str | None) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        place, config = _judgements(source, folder)
        judged, rows = _load(place, config, [split or _DEFAULT_SPLIT, config], folder, asked=split)
        (temporary / QRELS_NAME).mkdir()
        _write_qrels(temporary / QRELS_NAME / f"{judged}.tsv", rows, place)
        for config, file in (("corpus", CORPUS_NAME), ("queries", QUERIES_NAME)):
            _, rows = _load(source, config, [judged, config, "train"], folder)
            _write_rows(temporary / file, rows, f"Fetching {config}")
        give_name(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _judgements(source: str, folder: Path) -> tuple[str, str]:
    """Data set and configuration that hold the judgements."""
    configs = _ask("get_dataset_config_names", source, folder)
    if missing := {"corpus", "queries"} - set(configs):
        raise CorpusError(
            f"{source}: no configuration {', '.join(sorted(missing))}; found {', '.join(configs)}. Expected a data set "
            "in BEIR's form: corpus, queries, and qrels or default."
        )
    for config in ("qrels", "default"):
        if config in configs:
            return source, config
    other = f"{source}-qrels"
    return other, _ask("get_dataset_config_names", other, folder)[0]


def _ask(function: str, source: str, folder: Path, *rest: str) -> Any:
    import datasets

    try:
        return getattr(datasets, function)(source, *rest)
    except (OSError, ConnectionError, ValueError, RuntimeError) as error:
        raise DownloadError(
            f"{source}: cannot be fetched from the hub ({type(error).__name__}: {error}). Without a network: put "
            f"{CORPUS_NAME}, {QUERIES_NAME} and {QRELS_NAME}/<split>.tsv into the folder {folder}, or name a folder "
            "that holds them."
        ) from error


def _load(
    source: str, config: str, preferred: Sequence[str], folder: Path, asked: str | None = None
) -> tuple[str, Any]:
    """The first of the preferred splits that is there, or the only one; with its rows."""
    splits = _ask("get_dataset_split_names", source, folder, config)
    found = next((split for split in preferred if split in splits), splits[0] if len(splits) == 1 else None)
    if found is None or (asked is not None and asked not in splits and len(splits) > 1):
        raise CorpusError(
            f"{source}, {config}: no split {preferred[0]!r}; found {', '.join(splits)}. Choose with --split."
        )
    import datasets

    try:
        return found, datasets.load_dataset(source, config, split=found)
    except (OSError, ConnectionError, ValueError, RuntimeError) as error:
        raise DownloadError(
            f"{source}, {config}: cannot be fetched ({type(error).__name__}: {error})."
        ) from error


def _write_rows(path: Path, rows: Any, description: str) -> None:
    columns = [name for name in ("_id", "title", "text") if name in rows.column_names]
    if "_id" not in columns and "id" in rows.column_names:
        rows, columns = rows.rename_column("id", "_id"), ["_id", *columns]
    with path.open("w", encoding="utf-8") as stream, progress(description, len(rows), "rows") as advance:
        for row in rows.select_columns(columns):
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            advance(1)


def _write_qrels(path: Path, rows: Iterable[dict[str, Any]], source: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(
            stream, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None, lineterminator="\n"
        )
        writer.writerow(["query-id", "corpus-id", "score"])
        for row in rows:
            if "query-id" not in row or "corpus-id" not in row:
                raise CorpusError(
                    f"{source}: judgements with {', '.join(row)}; expected query-id and corpus-id."
                )
            found = row["corpus-id"]
            for passage in found if isinstance(found, list) else [found]:
                # NanoBEIR names the relevant passages only, without a gain.
                gain = row.get("score", 1)
                writer.writerow([row["query-id"], passage, int(gain)])
