"""Texts cut into passages: nothing lost, nothing cut inside a character."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replug_client.corpus.sources.pieces import PieceOptions, WordTokenizer, cut_pieces
from replug_client.errors import OptionError


class ByteTokenizer:
    """A token a UTF-8 byte: characters of several bytes have several tokens, as in byte-level BPE."""

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        offsets = [(i, i + 1) for i, character in enumerate(text) for _ in character.encode()]
        return list(text.encode()), offsets


@given(st.text(alphabet="aé数\U0001f600 \n", max_size=60), st.integers(1, 9))
def test_pieces_laid_end_to_end_are_the_text(text: str, length: int) -> None:
    pieces, short = cut_pieces(text, ByteTokenizer(), PieceOptions(length))
    assert short == 0
    at = 0
    for piece in pieces:
        assert not text[at : piece.start].strip()  # only white space is left out
        assert text[piece.start :].startswith(piece.text)
        assert len(piece.text.encode()) <= max(length, 4)
        at = piece.start + len(piece.text)
    assert not text[at:].strip()


def test_words_are_counted_and_their_spaces_kept() -> None:
    pieces, short = cut_pieces("one  two\nthree four five", WordTokenizer(), PieceOptions(2, min_length=2))
    assert [piece.text for piece in pieces] == ["one  two", "\nthree four"]
    assert short == 1


def test_overlapping_pieces_share_words_and_none_repeats_the_end() -> None:
    pieces, _ = cut_pieces("a b c d e f g", WordTokenizer(), PieceOptions(3, overlap=1))
    assert [piece.text.split() for piece in pieces] == [["a", "b", "c"], ["c", "d", "e"], ["e", "f", "g"]]


def test_a_character_longer_than_a_piece_is_taken_whole() -> None:
    pieces, _ = cut_pieces("\U0001f600a", ByteTokenizer(), PieceOptions(2))
    assert [piece.text for piece in pieces] == ["\U0001f600", "a"]


@pytest.mark.parametrize(("length", "overlap", "least"), [(0, 0, 1), (4, 4, 1), (4, 0, 5), (4, -1, 1)])
def test_lengths_that_cannot_be_are_refused(length: int, overlap: int, least: int) -> None:
    with pytest.raises(OptionError, match=r"--.*passage"):
        PieceOptions(length, overlap, least)
