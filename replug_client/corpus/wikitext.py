"""Plain text as documents: WikiText's form, where `` = Title = `` begins an article, or a whole file as one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from replug_client.corpus.records import Document
from replug_client.corpus.rows import Advance, file_errors
from replug_client.errors import CorpusError

TEXT_SUFFIXES = (".txt", ".tokens", ".raw", ".text")
# `` = Valkyria Chronicles III = `` is an article; `` = = Gameplay = = `` a section of one.
IS_TITLE = re.compile(r"\s?= (?!= )(.*[^=\s]) =\s*")


def text_documents(path: Path, advance: Advance = lambda _: None) -> Iterator[Document]:
    """Documents of a UTF-8 text file, streamed.

    Where its first line that is not blank is an article's heading of WikiText, each article is a document, its
    heading included (``title`` in ``extra``); else the whole file is one. Ids are the file's name and a number.

    Args:
        path: The file.
        advance: Called with the number of bytes read, as they are read.

    Raises:
        CorpusError: no such file, bytes that are not UTF-8, or nothing in it.
    """
    count = 0
    with file_errors(path):
        try:
            with path.open(encoding="utf-8-sig", newline="") as stream:
                for title, text in articles(_told(stream, advance)):
                    count += 1
                    yield Document(f"{path.stem}/{count}", text, {} if title is None else {"title": title})
        except UnicodeDecodeError as error:
            raise CorpusError(
                f"{path}: not UTF-8 ({error}). Convert it first, for example with iconv."
            ) from error
    if not count:
        raise CorpusError(f"{path}: an empty file, expected a text. Fill it.")


def articles(lines: Iterable[str]) -> Iterator[tuple[str | None, str]]:
    """Title and text of each article, or ``None`` and the whole text where the first line is no heading.

    A heading stands after a blank line, as WikiText writes it; a line of that form inside a paragraph is text.
    """
    title: str | None = None
    collected: list[str] = []
    begun, split, after_blank = False, False, True
    for line in lines:
        heading = IS_TITLE.fullmatch(line) if after_blank else None
        if heading is not None and (split or not begun):
            if begun and split:
                yield title, "".join(collected)
                collected = []
            split, title = True, heading[1]
        after_blank = not line.strip()
        begun = begun or not after_blank
        collected.append(line)
    if begun:
        yield title, "".join(collected)


def _told(lines: Iterable[str], advance: Advance) -> Iterator[str]:
    for line in lines:
        advance(len(line.encode()))
        yield line
