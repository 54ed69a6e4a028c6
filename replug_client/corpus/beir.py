"""BEIR's data sets (Thakur et al. 2021): the form of their files, and where they are published."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from replug_client.corpus.archives import unzip
from replug_client.corpus.download import Checksum, DownloadOptions, fetch
from replug_client.corpus.readers import checked_passages
from replug_client.corpus.records import Passage
from replug_client.corpus.rows import Advance, Columns, Place, file_errors, passage_of
from replug_client.corpus.text_files import jsonl_records
from replug_client.errors import CorpusError, OptionError

BEIR_URL = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets"
CORPUS_NAME = "corpus.jsonl"
QUERIES_NAME = "queries.jsonl"
QRELS_NAME = "qrels"

# As BEIR's own table of data sets gives them: https://github.com/beir-cellar/beir/wiki/Datasets-available
BEIR_MD5 = {
    "arguana": "8ad3e3c2a5867cdced806d6503f29b99",
    "climate-fever": "8b66f0a9126c521bae2bde127b4dc99d",
    "cqadupstack": "4e41456d7df8ee7760a7f866133bda78",
    "dbpedia-entity": "c2a39eb420a3164af735795df012ac2c",
    "fever": "5a818580227bfb4b35bb6fa46d9b6c03",
    "fiqa": "17918ed23cd04fb15047f73e6c3bd9d9",
    "hotpotqa": "f412724f78b0d91183a0e86805e16114",
    "msmarco": "444067daf65d982533ea17ebd59501e4",
    "nfcorpus": "a89dba18a62ef92f7d323ec890a0d38d",
    "nq": "d4d3d2e48787a744b6f6e691ff534307",
    "quora": "18fb154900ba42a600f84b839c173167",
    "scidocs": "38121350fc3a4d2f48850f6aff52e4a9",
    "scifact": "5f7d1de60b170fc8027bb7898e2efca1",
    "trec-covid": "ce62140cb23feb9becf6270d0d1fe6d1",
    "webis-touche2020": "46f650ba5a527fc69e0a6521c5a23563",
}
# BEIR reports this one on its development queries; the test queries are TREC-DL's.
_SPLITS = {"msmarco": "dev"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

Qrels = dict[str, dict[str, int]]
"""Query id to passage id to gain, as the files give it; what is not named is not relevant."""


def default_split(name: str) -> str:
    """The split that BEIR reports for a data set: ``test``, but for MS MARCO ``dev``."""
    return _SPLITS.get(name, "test")


def is_beir_folder(folder: Path) -> bool:
    """Whether a folder holds one data set in BEIR's form."""
    return (folder / CORPUS_NAME).is_file() and (folder / QUERIES_NAME).is_file()


def fetch_beir(
    name: str, cache_dir: Path, *, base_url: str = BEIR_URL, options: DownloadOptions | None = None
) -> Path:
    """The folder of one of BEIR's published data sets, fetched and unpacked the first time.

    The zip file lies in ``cache_dir/beir``, the folder beside it; either may be put there by hand.

    Args:
        name: As in :data:`BEIR_MD5`; another name has no published hash, and the first download is believed.
        cache_dir: Where data sets are kept.
        base_url: The folder on the web that holds ``<name>.zip``.
        options: Retries and time-outs.

    Raises:
        OptionError: not a name.
        DownloadError: it cannot be fetched; says what to put where.
        ArtefactError: the archive is damaged or hostile.
    """
    if not _NAME.fullmatch(name):
        raise OptionError(f"{name!r} is not the name of a data set: expected one like scifact.")
    folder = cache_dir / "beir" / name
    if folder.is_dir():
        return folder
    archive = folder.with_name(f"{name}.zip")
    md5 = BEIR_MD5.get(name)
    fetch(
        f"{base_url}/{name}.zip",
        archive,
        checksum=None if md5 is None else Checksum("md5", md5),
        mend=_offline(name, archive, folder),
        options=options,
    )
    return unzip(archive, folder)


def _offline(name: str, archive: Path, folder: Path) -> str:
    md5 = BEIR_MD5.get(name)
    return (
        f"Without a network: put {name}.zip{f' (md5 {md5})' if md5 else ''} there as {archive}, or its content "
        f"({CORPUS_NAME}, {QUERIES_NAME}, {QRELS_NAME}/) as the folder {folder}."
    )


class BeirSource:
    """The passages of a ``corpus.jsonl``: ``_id``, ``title`` and ``text`` a line, streamed.

    Attributes:
        path: The file.
        empty: Passages with neither title nor text, which are left out; counted anew by each iteration.
    """

    def __init__(self, path: Path, *, join_title: bool = True, advance: Advance = lambda _: None) -> None:
        """Open the file; nothing is read yet.

        Args:
            path: The file.
            join_title: The text becomes title, space, text, which is what BEIR's encoders and BM25 are given.
                Otherwise the title stands in ``Passage.title`` alone, or is the text where there is no other.
            advance: Called with the number of bytes read, as they are read.
        """
        self.path = path
        self.empty = 0
        self._join_title = join_title
        self._advance = advance

    @property
    def name(self) -> str:
        """The path, as it was given."""
        return str(self.path)

    def __iter__(self) -> Iterator[Passage]:
        return checked_passages(self.name, self._located, "_id")

    def _located(self) -> Iterator[tuple[Place, Passage]]:
        self.empty = 0
        with file_errors(self.path):
            for place, value in jsonl_records(self.path, self._advance):
                passage = beir_passage(place, value, self._join_title)
                if passage is None:
                    self.empty += 1
                else:
                    yield place, passage


def beir_passage(place: Place, value: dict[str, Any], join_title: bool) -> Passage | None:
    """A row of BEIR's form as a passage; None where it has neither title nor text.

    Raises:
        CorpusError: no id, or values that are not text.
    """
    title, text = (value.get(name) or "" for name in ("title", "text"))
    for name, part in (("title", title), ("text", text)):
        if not isinstance(part, str):
            raise place.error(f"found {type(part).__name__}, expected text.", column=name)
    joined = f"{title} {text}".strip() if join_title else text.strip() and text
    joined = joined or title
    if not joined.strip():
        return None
    cells = {"_id": value["_id"]} if "_id" in value else {}
    return passage_of(place, {**cells, "text": joined, "title": title or None}, Columns(id="_id"))


def read_beir_queries(path: Path, wanted: Collection[str] | None = None) -> dict[str, str]:
    """Query id to text, of a ``queries.jsonl`` with ``_id`` and ``text`` a line.

    Args:
        path: The file.
        wanted: Keep only these; None keeps all.

    Raises:
        CorpusError: a row without id or text, or an id twice.
    """
    queries: dict[str, str] = {}
    with file_errors(path):
        for place, value in jsonl_records(path):
            query = _query(place, value)
            if wanted is None or query[0] in wanted:
                if query[0] in queries:
                    raise place.error(f"duplicate id {query[0]!r}. Query ids are unique.", column="_id")
                queries[query[0]] = query[1]
    return queries


def _query(place: Place, value: dict[str, Any]) -> tuple[str, str]:
    id_, text = value.get("_id"), value.get("text")
    if isinstance(id_, int) and not isinstance(id_, bool):
        id_ = str(id_)
    if not isinstance(id_, str) or not id_ or not isinstance(text, str):
        raise place.error(f"found _id {id_!r} and text {text!r}; expected two texts. Fill them in.")
    return id_, text


def read_qrels(path: Path) -> Qrels:
    """Judgements: BEIR's three columns (query, passage, gain; with or without a header) or TREC's four.

    Raises:
        CorpusError: other columns, a gain that is no whole number, or two gains for one pair.
    """
    qrels: Qrels = {}
    with file_errors(path), path.open(encoding="utf-8-sig", newline="") as stream:
        first = stream.readline()
        stream.seek(0)
        # Quotes mean nothing here: ids may hold them.
        tabbed = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        rows: Iterator[list[str]] = tabbed if "\t" in first else (line.split() for line in stream)
        try:
            for number, row in enumerate(rows, 1):
                if row and not (number == 1 and _is_header(row)):
                    _add(qrels, Place(str(path), number, number), row)
        except UnicodeDecodeError as error:
            raise CorpusError(f"{path}: not UTF-8 ({error}). Convert it.") from error
    if not qrels:
        raise CorpusError(
            f"{path}: no judgement in it. Expected query, passage and gain a line, tabs between."
        )
    return qrels


def _is_header(row: list[str]) -> bool:
    return _gain(row[-1]) is None


def _gain(text: str) -> int | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if value.is_integer() else None


def _add(qrels: Qrels, place: Place, row: list[str]) -> None:
    query, *_, passage, gain_text = row if len(row) in (3, 4) else ("", "", "")
    gain = _gain(gain_text)
    if not query or not passage or gain is None:
        raise place.error(f"found {row!r}; expected query, passage and a whole number, tabs between.")
    judged = qrels.setdefault(query, {})
    if judged.setdefault(passage, gain) != gain:
        raise place.error(f"{query!r} and {passage!r} were judged {judged[passage]} before, and here {gain}.")
