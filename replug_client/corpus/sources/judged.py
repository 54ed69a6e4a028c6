"""Queries with relevant passages, as documents to train on: what `--data` can take of a retrieval data set."""

from __future__ import annotations

import hashlib

QREL_COLUMNS = ("query-id", "corpus-id", "score")
DOCUMENT_COLUMNS = ("id", "text", "query_id", "passage_id")


def document_text(query: str, passage: str) -> str:
    """The query and, on the next line, its relevant passage.

    ``--data`` is cut by tokens into context and continuation, wherever the query ends: with ``--context_len`` about
    the length of a query, most of the continuation is the relevant passage.
    """
    return f"{query}\n{passage}"


def place_of(id_: str, seed: int, use: str) -> int:
    """64 bits that the id and the seed alone decide, as good as random; others for another ``use``."""
    digest = hashlib.blake2b(f"{use}\0{seed}\0{id_}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def is_held_out(id_: str, seed: int, every: int) -> bool:
    """Whether a query is held out: about one in ``every``; none where that is 0."""
    return every > 0 and place_of(id_, seed, "held out") % every == 0
