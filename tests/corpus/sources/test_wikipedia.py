"""Wikipedia: what is skipped and counted, what is taken off, and the hub's copy read the same way."""

from __future__ import annotations

import bz2
from pathlib import Path
from xml.sax.saxutils import escape

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from replug_client.corpus.readers import open_source
from replug_client.corpus.sources.conversion import convert
from replug_client.corpus.sources.pieces import PieceOptions
from replug_client.corpus.sources.wiki_markup import Markup
from replug_client.corpus.sources.wikipedia import WikipediaOptions, conversion
from replug_client.errors import CorpusError

ADA = """{{Infobox person|name=Ada|note=[[x]]}}
'''Ada''' ({{IPA|x}}; born 1815) is a [[scientist|computer scientist]].<ref>{{c}}</ref> She knew [[France]]&nbsp;well.
[[Datei:a.jpg|thumb|A [[cat]] here]] [[Image:b.png]]
{| class="wikitable"
! a
|-
| b || {{c}}
|}
== Life ==
Para ''one''. {{citation needed}}<!-- hidden -->

* item [[:Kategorie:Cats|shown]]
* item [http://x.org two]
=== Empty ===
{{main|x}}
=== Full ===
Inside <math>x</math><br>a line.
== References ==
{{reflist}}<references />
[[Kategorie:People]]
[[fr:Ada]] __NOTOC__
"""
ADA_PLAIN = (
    "Ada (born 1815) is a computer scientist. She knew France well.\n\nLife\n\nPara one.\n\nitem shown\nitem two"
    "\n\nFull\n\nInside\na line."
)  # fmt: skip


def page(number: int, title: str, text: str, *, space: int = 0, redirect: str = "") -> str:
    return (
        f"<page><title>{escape(title)}</title><ns>{space}</ns><id>{number}</id>"
        + (f'<redirect title="{redirect}" />' if redirect else "")
        + f"<revision><id>{number}0</id><timestamp>2024-01-01T00:00:00Z</timestamp><contributor><username>u"
        "</username><id>1</id></contributor><model>wikitext</model><format>text/x-wiki</format>"
        f'<text bytes="{len(text)}" xml:space="preserve">{escape(text)}</text><sha1>x</sha1></revision></page>\n'
    )


PAGES = [
    page(1, "Ada", ADA),
    page(2, "AdaLovelace", "#REDIRECT [[Ada]]", redirect="Ada"),
    page(3, "Vorlage:Infobox", "{{{name}}}", space=10),
    page(4, "Nichts", ""),
    page(5, "Nur Vorlage", "{{only}}"),
    page(6, "Broken & <odd>", "[[" * 9000 + " text" * 9000),
    page(7, "Zwei", "eins zwei drei"),
]


def write_dump(path: Path, pages: list[str] = PAGES, name: str = "dewiki") -> Path:
    text = (
        '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="de">\n<siteinfo>'
        f"<sitename>Wikipedia</sitename><dbname>{name}</dbname><base>b</base><generator>g</generator>"
        '<case>first-letter</case><namespaces><namespace key="0" case="first-letter" />'
        '<namespace key="6" case="first-letter">Datei</namespace>'
        '<namespace key="10" case="first-letter">Vorlage</namespace>'
        '<namespace key="14" case="first-letter">Kategorie</namespace></namespaces></siteinfo>\n'
        + "".join(pages)
        + "</mediawiki>\n"
    )
    path.write_bytes(bz2.compress(text.encode()) if path.suffix == ".bz2" else text.encode())
    return path


def options(length: int = 100, **changes: object) -> WikipediaOptions:
    return WikipediaOptions(PieceOptions(length), **changes)  # type: ignore[arg-type]


def test_articles_become_passages_and_all_else_is_counted(tmp_path: Path) -> None:
    dump = write_dump(tmp_path / "dewiki-20240101-pages-articles.xml.bz2")
    report = convert(conversion(str(dump), options(), None), tmp_path / "out")
    found = list(open_source(report.files["passages"]))
    assert [(p.id, p.title, p.text) for p in found] == [
        ("1#0", "Ada", ADA_PLAIN),
        ("7#0", "Zwei", "eins zwei drei"),
    ]
    assert report.left_out == {
        "redirects": 1,
        "pages that are no articles": 1,
        "pages without text": 1,
        "articles without text": 1,
        "articles whose markup cannot be parsed": 1,
    }
    assert report.items == 7


def test_counts_end_the_reading(tmp_path: Path) -> None:
    dump = write_dump(tmp_path / "dewiki.xml")
    one = convert(conversion(str(dump), options(num_articles=1), None), tmp_path / "one")
    assert one.rows == {"passages": 1} and one.items == 1
    two = convert(conversion(str(dump), options(5, num_passages=2), None), tmp_path / "two")
    assert two.rows == {"passages": 2} and two.stopped_at == "passages"
    # 21 words of the first article are 5 pieces, of which 2 fit.
    assert two.left_out == {"above the limit of passages": 3}


def test_workers_change_nothing(tmp_path: Path) -> None:
    dump = str(write_dump(tmp_path / "dewiki.xml"))
    alone = convert(conversion(dump, options(3), None), tmp_path / "alone")
    several = convert(conversion(dump, options(3), None, workers=2), tmp_path / "several")
    assert several.files["passages"].read_bytes() == alone.files["passages"].read_bytes()
    assert several.left_out == alone.left_out


def test_a_cut_off_dump_keeps_what_was_converted_and_goes_on_with_a_whole_one_anew(tmp_path: Path) -> None:
    whole = write_dump(tmp_path / "dewiki.xml").read_bytes()
    (tmp_path / "dewiki.xml").write_bytes(whole[: whole.index(b"<id>70</id>")])
    with pytest.raises(CorpusError, match=r"dewiki\.xml, after page 6: not well-formed"):
        convert(conversion(str(tmp_path / "dewiki.xml"), options(), None), tmp_path / "out")
    (tmp_path / "dewiki.xml").write_bytes(whole)
    again = conversion(str(tmp_path / "dewiki.xml"), options(), None)
    assert convert(again, tmp_path / "out", overwrite=True).rows == {"passages": 2}


def test_a_dump_in_another_language_is_refused(tmp_path: Path) -> None:
    dump = write_dump(tmp_path / "dewiki.xml")
    with pytest.raises(CorpusError, match=r"'dewiki', expected --language fr\. Give --language de"):
        conversion(str(dump), options(language="fr"), None)


@pytest.mark.parametrize("content", ["<html></html>", "no xml", ""])
def test_what_is_no_dump_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.xml").write_text(content)
    with pytest.raises(CorpusError, match=r"x\.xml: not a MediaWiki dump"):
        conversion(str(tmp_path / "x.xml"), options(), None)


def test_the_hubs_form_is_read_from_a_folder_and_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    rows = [{"id": str(n), "url": "u", "title": f"T{n}", "text": f"a{n} b c d"} for n in range(6)]
    for part in (0, 1):
        table = pa.Table.from_pylist(rows[part * 3 : part * 3 + 3])
        pq.write_table(table, tmp_path / "hub" / f"train-0000{part}-of-00002.parquet")
    made = conversion(str(tmp_path / "hub"), options(3, num_articles=5), None)
    report = convert(made, tmp_path / "out")
    found = [(p.id, p.text) for p in open_source(report.files["passages"])]
    assert len(found) == 10
    assert found[:3] == [("0#0", "a0 b c"), ("0#1", "d"), ("1#0", "a1 b c")]
    assert [item.id for item in made.items(4)] == ["4"]


def test_offline_the_hubs_name_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"wikimedia/wikipedia: no such file.*dumps\.wikimedia\.org"):
        conversion("wikimedia/wikipedia", options(), None)


@pytest.mark.parametrize(
    ("markup", "plain"),
    [
        (ADA.replace("Datei", "File").replace("Kategorie", "Category"), ADA_PLAIN),
        ("''a'' '''b''' [[c]]s", "a b cs"),
        ("a &amp; b &lt;c&gt;", "a & b <c>"),
        ("<script>alert(1)</script> x", "alert(1) x"),
        ("== Only heading ==", ""),
        ("{{unclosed | text", "{{unclosed | text"),
        ("[[Star Trek: Voyager]] and [[w:x|y]]", "Star Trek: Voyager and y"),
    ],
)
def test_markup_is_taken_off(markup: str, plain: str) -> None:
    assert Markup().plain(markup) == plain


def test_headings_may_be_left_out() -> None:
    assert Markup(keep_headings=False).plain("a\n== H ==\nb") == "a\n\nb"
