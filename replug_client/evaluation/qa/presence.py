"""Whether a passage holds an answer, and how high the first one stands that does (DPR's Hit@k)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

_ASCII_TOKEN = re.compile(r"[a-z0-9]+|[!-~]")


def words_of(text: str) -> str:
    """DPR's tokens (`SimpleTokenizer`, uncased, over NFD text), joined by single spaces with one at each end.

    A token is a run of letters, digits and marks, or one other visible character (Karpukhin et al. 2020).
    """
    if text.isascii():
        return f" {' '.join(_ASCII_TOKEN.findall(text.lower()))} "
    tokens: list[str] = []
    in_word = False
    for character in unicodedata.normalize("NFD", text).lower():
        kind = unicodedata.category(character)[0]
        if kind in "LNM":
            tokens.append(character if in_word else f" {character}")
        elif kind not in "ZC":
            tokens.append(f" {character}")
        in_word = kind in "LNM"
    return f"{''.join(tokens)} "


def holds_answer(text: str, answers: Sequence[str]) -> bool:
    """Whether an answer's tokens stand in a row in ``text``; an answer without tokens never does (DPR's has_answer)."""
    words = words_of(text)
    return any(own.strip() and own in words for own in map(words_of, answers))


def rank_of_answer(passages: Iterable[str], answers: Sequence[str]) -> int | None:
    """Rank, from 1, of the first passage that holds an answer; None where none does.

    Args:
        passages: As :func:`words_of` makes them, best first; read no further than needed.
        answers: As they are.
    """
    own = [words for words in map(words_of, answers) if words.strip()]
    return next(
        (rank for rank, words in enumerate(passages, 1) if any(answer in words for answer in own)), None
    )
