"""Wikipedia: articles of a dump, or of the hub's cleaned copy, as passages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from replug_client.corpus.sources.conversion import Conversion, Converted, skipping
from replug_client.corpus.sources.hub import HubData
from replug_client.corpus.sources.inputs import hashed, open_binary, text_of
from replug_client.corpus.sources.pieces import PieceOptions, WordTokenizer, cut_pieces
from replug_client.corpus.sources.wiki_markup import Markup
from replug_client.corpus.windows import OffsetTokenizer
from replug_client.errors import CorpusError, OptionError
from replug_client.progress import progress

HUB_NAME = "wikimedia/wikipedia"
_DUMP_SUFFIXES = (".xml", ".bz2", ".gz", ".zst")
_ADVICE = (
    "Give a dump with --input (LANGUAGEwiki-DATE-pages-articles.xml.bz2, from https://dumps.wikimedia.org), or a "
    f"folder with the hub's Parquet files (hf download --repo-type dataset {HUB_NAME}, where there is a network)."
)


@dataclass(frozen=True, slots=True)
class WikipediaOptions:
    """Which articles, and how they are cut.

    Attributes:
        pieces: How articles are cut into passages.
        language: Code of the language, ``en``: of the hub's configuration; a dump's own must be the same.
        date: Of the hub's copy.
        num_articles: Read so many articles (redirects and other pages do not count); None for all.
        num_passages: End with so many passages; None for all.
        min_article_words: Shorter articles are left out.
        keep_headings: Section headings stay, as lines of their own.
    """

    pieces: PieceOptions
    language: str | None = None
    date: str = "20231101"
    num_articles: int | None = None
    num_passages: int | None = None
    min_article_words: int = 1
    keep_headings: bool = True

    def __post_init__(self) -> None:
        for name in ("num_articles", "num_passages"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise OptionError(f"--{name} is {value}; expected 1 or more")


Skipped = Literal["redirects", "pages that are no articles", "pages without text"]


@dataclass(frozen=True, slots=True)
class Page:
    """A page: id, title, and its text, in the wiki's markup or plain; or why it is skipped."""

    id: str
    title: str
    text: str
    skipped: Skipped | None = None


def conversion(
    source: str, options: WikipediaOptions, tokenizer: OffsetTokenizer | None, workers: int = 0
) -> Conversion[Page]:
    """What makes ``passages`` of a dump, a folder of Parquet files, or the hub's copy.

    Args:
        source: A dump (.xml, plain or packed), a folder, or a name on the hub.
        options: Which articles, and how they are cut.
        tokenizer: Measures passages; None for words.
        workers: Processes that take the markup off; 0 does it in this one.

    Raises:
        CorpusError: the dump cannot be read, or is not of ``options.language``; the hub cannot be reached.
    """
    path = Path(source)
    markup: Markup | None = None
    if path.is_file():
        if path.suffix.lower() not in _DUMP_SUFFIXES:
            raise CorpusError(
                f"{path}: suffix {path.suffix!r}, expected a dump: .xml, .xml.bz2, .xml.gz or .xml.zst"
            )
        markup = _markup_of(path, options)
        inputs: Any = hashed([path])
    else:
        config = None if path.is_dir() else f"{options.date}.{options.language or 'en'}"
        hub = HubData(source, config, "train").pinned(_ADVICE)
        inputs = hub.describe()

    def pages(skip: int) -> Iterator[Page]:
        if path.is_file():
            yield from skipping(_limited(dump_pages(path), options.num_articles), skip)
            return
        rows = hub.rows(skip)
        for number, (place, row) in enumerate(rows, skip):
            if options.num_articles is not None and number >= options.num_articles:
                return
            yield Page(
                text_of(place, row, ("id",)), text_of(place, row, ("title",)), text_of(place, row, ("text",))
            )

    return Conversion(
        "wikipedia",
        asdict(options),
        inputs,
        {"passages": ("id", "title", "text")},
        pages,
        WikipediaConverter(options, tokenizer or WordTokenizer(), markup),
        limits={} if options.num_passages is None else {"passages": options.num_passages},
        workers=workers,
    )


@dataclass(frozen=True, slots=True)
class WikipediaConverter:
    """A page to passages."""

    options: WikipediaOptions
    tokenizer: OffsetTokenizer
    markup: Markup | None

    def __call__(self, page: Page) -> Converted:
        """The rows of one page."""
        converted = Converted()
        if page.skipped:
            converted.left_out[page.skipped] += 1
            return converted
        text: str | None = page.text
        if self.markup:
            text = self.markup.plain(page.text)
        if text is None:
            converted.left_out["articles whose markup cannot be parsed"] += 1
        elif not text.strip():
            converted.left_out["articles without text"] += 1
        elif len(text.split()) < self.options.min_article_words:
            converted.left_out["articles below --min_article_words"] += 1
        else:
            pieces, short = cut_pieces(text, self.tokenizer, self.options.pieces)
            if short:
                converted.left_out["ends of articles below --min_passage_length"] += short
            for number, piece in enumerate(pieces):
                converted.add("passages", id=f"{page.id}#{number}", title=page.title, text=piece.text.strip())
        return converted


def dump_pages(path: Path) -> Iterator[Page]:
    """The pages of a dump, in its order, articles or not; of each its last revision.

    Raises:
        CorpusError: it is no dump of pages, or is cut off.
    """
    read = 0
    with (
        progress(f"Reading {path.name}", path.stat().st_size, "B") as advance,
        open_binary(path, advance) as stream,
    ):
        try:
            for page in _dump(path, stream):
                yield _page(page)
                read += 1
        except _xml_errors() as error:
            raise CorpusError(
                f"{path}, after page {read}: not well-formed ({error}). Cut off? Fetch it again; pages "
                "converted so far are kept."
            ) from error


def _page(page: Any) -> Page:
    text = ""
    for revision in page:
        text = revision.text or ""
    skipped: Skipped | None = None
    if page.redirect:
        skipped = "redirects"
    elif page.namespace != 0:
        skipped = "pages that are no articles"
    elif not text.strip():
        skipped = "pages without text"
    return Page(str(page.id), page.title, "" if skipped else text, skipped)


def _limited(pages: Iterator[Page], num_articles: int | None) -> Iterator[Page]:
    """The pages up to the ``num_articles``-th that is an article."""
    articles = 0
    for page in pages:
        yield page
        articles += page.skipped is None
        if articles == num_articles:
            return


def _markup_of(path: Path, options: WikipediaOptions) -> Markup:
    """How the wiki calls its files and categories; says so where it is in another language than was asked for."""
    with open_binary(path) as stream:
        try:
            info = _dump(path, stream).site_info
        except _xml_errors() as error:
            raise CorpusError(
                f"{path}: not a MediaWiki dump ({error}). Give a *-pages-articles.xml file."
            ) from error
    found = (info.dbname or "").removesuffix("wiki").replace("_", "-")
    if options.language and found and found != options.language:
        raise CorpusError(
            f"{path}: a dump of {info.dbname!r}, expected --language {options.language}. Give --language {found}, or "
            "another dump."
        )
    names = [space.name.lower() for space in info.namespaces or () if space.id in (6, 14) and space.name]
    return Markup(frozenset(names), options.keep_headings)


def _dump(path: Path, stream: Any) -> Any:
    try:
        import mwxml
    except ModuleNotFoundError as error:
        raise OptionError(f"reading a dump needs {error.name}: pip install 'replug[data]'") from error
    try:
        return mwxml.Dump.from_file(stream)
    except AssertionError:  # its own check of the outermost element
        raise CorpusError(
            f"{path}: not a MediaWiki dump (no <mediawiki>). Give a *-pages-articles.xml file."
        ) from None


def _xml_errors() -> tuple[type[Exception], ...]:
    from xml.etree.ElementTree import ParseError

    try:
        from mwxml.errors import MalformedXML
    except ModuleNotFoundError:
        return (ParseError,)
    return (ParseError, MalformedXML, StopIteration, TypeError)
