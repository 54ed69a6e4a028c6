"""WikiText (Merity et al. 2016): articles headed by `` = Title = ``, into passages and documents."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, dropwhile
from pathlib import Path

from replug_client.corpus.rows import Place
from replug_client.corpus.sources.conversion import Conversion, Converted, skipping
from replug_client.corpus.sources.hub import HubData
from replug_client.corpus.sources.inputs import hashed, lines, text_of
from replug_client.corpus.sources.pieces import PieceOptions, WordTokenizer, cut_pieces
from replug_client.corpus.wikitext import IS_TITLE
from replug_client.corpus.wikitext import articles as split_articles
from replug_client.corpus.windows import OffsetTokenizer
from replug_client.errors import CorpusError, OptionError
from replug_client.progress import progress

HUB_NAME = "Salesforce/wikitext"
SPLITS = ("train", "validation", "test")
_FILE_WORDS = {"train": ("train",), "validation": ("valid",), "test": ("test",)}
_SECTION = re.compile(r"^((?:= ){2,})(.*?)(?: =){2,}$")
_ADVICE = (
    "Give a file (wiki.train.raw, wiki.train.tokens) or a folder of them, or of the hub's Parquet files, "
    f"with --input; on a machine with a network: hf download --repo-type dataset {HUB_NAME}."
)

# In order. WikiText splits tokens as Moses does; " @-@ ", " @,@ " and " @.@ " are its own marks.
_DETOKENISE: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r" @([-,.])@ ", r"\1"),
        (r'(?:(?<= )|^)" ([^"]*?) "(?= |$)', r'"\1"'),
        (r" '(s|S|d|D|m|M|t|T|ll|LL|re|RE|ve|VE)\b", r"'\1"),
        (r"(\w) 't\b", r"\1't"),
        (r"s ' (?=[a-z])(?!.* '(?: |$))", r"s' "),  # the players ' rights; not where a quotation may begin
        (r"([(\[{]) ", r"\1"),
        (r" ([)\]}])", r"\1"),
        (r" ([,;:.!?%])(?= |$|[)\]\"'])", r"\1"),
        (r"([$£€¥]) (?=\d)", r"\1"),
        (r"(\d) °(?: (?=[CF]\b))?", r"\1 °"),
    )
)


@dataclass(frozen=True, slots=True)
class WikitextOptions:
    """How the articles are divided.

    Attributes:
        pieces: How articles are cut into passages.
        training_every: Of the training split, each so-many-th article becomes a document to train on; the others
            become passages. 1: all become documents; 0: all become passages.
        min_document_words: Shorter articles are left out.
        detokenise: Undo the spaces that tokenising put in.
    """

    pieces: PieceOptions
    training_every: int = 10
    min_document_words: int = 1
    detokenise: bool = True

    def __post_init__(self) -> None:
        for name in ("training_every", "min_document_words"):
            if getattr(self, name) < 0:
                raise OptionError(f"--{name} is {getattr(self, name)}; expected 0 or more")


@dataclass(frozen=True, slots=True)
class Article:
    """One article: the split that it stands in, its number there from 0, title, and paragraphs."""

    split: str
    number: int
    title: str
    lines: tuple[str, ...]


def conversion(
    source: str,
    options: WikitextOptions,
    tokenizer: OffsetTokenizer | None,
    config: str,
    splits: Sequence[str],
) -> Conversion[Article]:
    """What makes ``passages`` and ``train`` of the training split, and ``validation`` and ``test`` of theirs.

    Args:
        source: A file, a folder, or a name on the hub.
        options: How articles are divided.
        tokenizer: Measures passages; None for words.
        config: The hub's configuration, ``wikitext-103-raw-v1`` or another.
        splits: Which splits to read; a file given by itself is the training split unless its name says otherwise.

    Raises:
        CorpusError: nothing there to read.
    """
    files = _files(Path(source), splits)
    hubs: dict[str, HubData] = {}
    if files:
        splits = list(files)
        inputs: object = hashed(list(files.values()))
    else:
        hubs = {split: HubData(source, _config(source, config), split).pinned(_ADVICE) for split in splits}
        inputs = [hub.describe() for hub in hubs.values()]

    def items(skip: int) -> Iterator[Article]:
        def all_of_them() -> Iterator[Article]:
            for split in files or hubs:
                yield from articles(split, _file_lines(files[split]) if files else _hub_lines(hubs[split]))

        return skipping(all_of_them(), skip)

    outputs = {
        "passages": ("id", "title", "text"),
        "train": ("id", "title", "text"),
        "validation": ("id", "title", "text"),
        "test": ("id", "title", "text"),
    }
    named = ("passages", "train") if "train" in splits else ()
    wanted = {name: columns for name, columns in outputs.items() if name in named or name in splits}
    return Conversion(
        "wikitext",
        {**asdict(options), "config": None if files else config, "splits": list(splits)},
        inputs,
        wanted,
        items,
        WikitextConverter(options, tokenizer or WordTokenizer()),
    )


@dataclass(frozen=True, slots=True)
class WikitextConverter:
    """An article to a document or to passages."""

    options: WikitextOptions
    tokenizer: OffsetTokenizer

    def __call__(self, article: Article) -> Converted:
        """The rows of one article."""
        converted = Converted()
        paragraphs = map(detokenise, article.lines) if self.options.detokenise else article.lines
        text = "\n".join(paragraphs)
        title = detokenise(article.title) if self.options.detokenise else article.title
        if not text.strip():
            converted.left_out["articles without text"] += 1
        elif len(text.split()) < self.options.min_document_words:
            converted.left_out["articles below --min_document_words"] += 1
        elif article.split != "train" or self._to_train_on(article.number):
            converted.add(article.split, id=f"{article.split}-{article.number}", title=title, text=text)
        else:
            pieces, short = cut_pieces(text, self.tokenizer, self.options.pieces)
            if short:
                converted.left_out["ends of articles below --min_passage_length"] += short
            for number, piece in enumerate(pieces):
                name = f"{article.split}-{article.number}#{number}"
                converted.add("passages", id=name, title=title, text=piece.text.strip())
        return converted

    def _to_train_on(self, number: int) -> bool:
        every = self.options.training_every
        return every > 0 and number % every == every - 1


def articles(split: str, numbered: Iterator[tuple[Place, str]]) -> Iterator[Article]:
    """The articles of a split's lines, in order.

    Raises:
        CorpusError: the first line that is not blank is no title.
    """
    lines_ = dropwhile(lambda line: not line[1].strip(), numbered)
    first = next(lines_, None)
    if first is None or not IS_TITLE.fullmatch(first[1]):
        where = split if first is None else str(first[0])
        raise CorpusError(
            f"{where}: found no line ` = Title = ` at the beginning. Is this WikiText? For other text: "
            "replug data folder."
        )
    found = split_articles(f"{line}\n" for _, line in chain([first], lines_))
    for number, (title, text) in enumerate(found):
        body = tuple(line for raw in text.split("\n")[1:] if (line := raw.strip()))
        yield Article(split, number, title or "", body)


def detokenise(line: str) -> str:
    """Undo what tokenising did to a line, as far as it can be told: see docs/data.md for the rules.

    ``<unk>`` of the tokenised version stays: what stood there is lost.
    """
    if section := _SECTION.match(line):
        marks = "=" * (len(section.group(1)) // 2)
        line = f"{marks} {section.group(2)} {marks}"
    for pattern, replacement in _DETOKENISE:
        line = pattern.sub(replacement, line)
    return line


def _files(path: Path, splits: Sequence[str]) -> Mapping[str, Path]:
    """Split to file; empty where ``path`` is a name on the hub, or a folder of Parquet files."""
    if path.is_file():
        split = next((name for name in SPLITS if _is_of(path, name)), "train")
        return {split: path}
    if not path.is_dir() or any(path.rglob("*.parquet")):
        return {}
    found: dict[str, Path] = {}
    for split in splits:
        fitting = sorted(file for file in path.iterdir() if file.is_file() and _is_of(file, split))
        if len(fitting) != 1:
            listed = ", ".join(file.name for file in fitting) or "none"
            raise CorpusError(
                f"{path}: expected one file for the split {split!r} (wiki.{_FILE_WORDS[split][0]}.*), found "
                f"{listed}. Name other --splits, or give the file itself."
            )
        found[split] = fitting[0]
    return found


def _is_of(path: Path, split: str) -> bool:
    return any(word in path.name.lower() for word in _FILE_WORDS[split])


def _config(source: str, config: str) -> str | None:
    # A local folder either holds a folder for each configuration, which its card names, or one's files.
    return None if Path(source).is_dir() and not (Path(source) / "README.md").exists() else config


def _file_lines(path: Path) -> Iterator[tuple[Place, str]]:
    with progress(f"Reading {path.name}", path.stat().st_size, "B") as advance:
        yield from lines(path, advance)


def _hub_lines(hub: HubData) -> Iterator[tuple[Place, str]]:
    for place, row in hub.rows():
        yield place, text_of(place, row, ("text",)).rstrip("\n")
