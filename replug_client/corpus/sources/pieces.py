"""A text cut into passages of so many words or tokens, never inside a character."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from replug_client.corpus.windows import Cuts, OffsetTokenizer
from replug_client.errors import OptionError

_WORD = re.compile(r"\S+")


class WordTokenizer:
    """Words as tokens: what stands between white space."""

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The characters of each word; the ids are only its number in the text."""
        offsets = [match.span() for match in _WORD.finditer(text)]
        return list(range(len(offsets))), offsets


@dataclass(frozen=True, slots=True)
class PieceOptions:
    """How texts are cut; lengths in tokens of the tokenizer, or in words where there is none.

    Attributes:
        length: Of a passage, at most.
        overlap: How much of a passage stands at the beginning of the next, too.
        min_length: The last piece of a text is left out when it is shorter.
        tokenizer: Name or folder; None for words. Only named here: who cuts holds it.
    """

    length: int = 128
    overlap: int = 0
    min_length: int = 1
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        if self.length < 1:
            raise OptionError(f"--passage_length is {self.length}; expected 1 or more")
        if not 0 <= self.overlap < self.length:
            raise OptionError(
                f"--passage_overlap is {self.overlap}; expected 0 to {self.length - 1}, below --passage_length"
            )
        if not 1 <= self.min_length <= self.length:
            raise OptionError(
                f"--min_passage_length is {self.min_length}; expected 1 to {self.length} (--passage_length)"
            )


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a text: its first character, and the text itself."""

    start: int
    text: str


def cut_pieces(text: str, tokenizer: OffsetTokenizer, options: PieceOptions) -> tuple[list[Piece], int]:
    """Cut a text into pieces that follow, or overlap, one another.

    Without overlap the pieces laid end to end are the text, but for white space at their ends where there is
    nothing else, and for pieces left out. A cut that would fall inside a character that several tokens spell
    moves back to its start (or, where nothing would be left, behind it).

    Returns:
        The pieces, and how many were left out because they were shorter than ``options.min_length``. A piece
        that holds only what the one before it holds, too, is none.
    """
    _, offsets = tokenizer.encode_with_offsets(text)
    cuts = Cuts(text, offsets)
    pieces: list[Piece] = []
    short = 0
    for start, stop in _spans(cuts, options):
        if stop - start < options.min_length:
            short += 1
            continue
        piece = text[cuts.at[start] : cuts.at[stop]]
        if piece.strip():
            pieces.append(Piece(cuts.at[start], piece))
    return pieces, short


def _spans(cuts: Cuts, options: PieceOptions) -> Iterator[tuple[int, int]]:
    start = 0
    while start < cuts.num_tokens:
        stop = cuts.floor(min(start + options.length, cuts.num_tokens))
        if stop <= start:
            stop = cuts.after(start)
        yield start, stop
        if stop >= cuts.num_tokens:
            return
        following = cuts.floor(stop - options.overlap)
        start = following if following > start else stop
