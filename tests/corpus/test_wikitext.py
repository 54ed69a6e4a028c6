"""Text files as documents: WikiText's articles, or the whole file."""

from __future__ import annotations

from pathlib import Path

import pytest

from replug_client.corpus.readers import read_documents
from replug_client.corpus.records import Document
from replug_client.corpus.wikitext import articles, text_documents
from replug_client.errors import CorpusError

# The form of wiki.train.tokens: a space before each line, headings between blank lines.
ARTICLES = (
    " \n = Robert Boulter = \n \n Robert is an actor . \n \n = = Career = = \n \n He said \n = nothing = \n"
    " = = = 2000 – 2005 = = = \n \n \n = C = C = \n \n Equal . \n"
)


def test_each_article_is_a_document_with_its_heading_and_its_sections() -> None:
    first, second = articles(ARTICLES.splitlines(keepends=True))
    assert first[0] == "Robert Boulter"
    assert "= = Career = =" in first[1]
    assert " = nothing = \n" in first[1], "no blank line before it: text"
    assert second == ("C = C", " = C = C = \n \n Equal . \n")
    assert first[1] + second[1] == ARTICLES


def test_a_file_that_begins_with_no_heading_is_one_document(tmp_path: Path) -> None:
    text = "x = 1\n\n = Title = \n\ntext\r\n"
    assert list(articles([text])) == [(None, text)]
    path = tmp_path / "book.txt"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert list(text_documents(path)) == [Document("book/1", text)]


@pytest.mark.parametrize("name", ["wiki.test.tokens", "wiki.test.raw", "WIKI.TXT"])
def test_documents_of_a_text_file_come_with_ids_and_titles(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(ARTICLES, encoding="utf-8")
    read: list[int] = []
    documents = list(read_documents(path, advance=read.append))
    assert [document.id for document in documents] == [f"{path.stem}/1", f"{path.stem}/2"]
    assert documents[0].extra == {"title": "Robert Boulter"}
    assert sum(read) == path.stat().st_size


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b" \n\n", "empty file"),
        (b"caf\xe9 au lait", "not UTF-8"),
        (None, "no such file"),
    ],
)
def test_a_text_file_that_cannot_be_read_is_named(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CorpusError, match=message) as caught:
        list(read_documents(path))
    assert str(path) in str(caught.value)
