"""The records that flow through replug: passages, documents and examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Passage:
    """One row of the retrieval corpus.

    Attributes:
        id: The row's identifier, always text (``007`` is not ``7``), unique in its corpus.
        text: What the retriever embeds and the supervisor reads; never empty.
        title: Optional title.
        extra: The other columns of the row, as text, kept to be shown.
    """

    id: str
    text: str
    title: str | None = None
    extra: Mapping[str, str] = field(default_factory=lambda: _NOTHING)


@dataclass(frozen=True, slots=True)
class Document:
    """One row of ``--data``: a text from which examples are cut."""

    id: str
    text: str
    extra: Mapping[str, str] = field(default_factory=lambda: _NOTHING)


@dataclass(frozen=True, slots=True)
class Example:
    """One training item: a query (the context x) and its continuation (the ground truth y).

    Attributes:
        document_id: The document that it was cut from; windows of one document are not independent.
        query: Text of the context; what the retriever embeds.
        query_ids: The same in the supervisor's token ids; before a window's second and later continuations, with
            those that stand before them.
        continuation_ids: The continuation in the supervisor's token ids, the same for every passage.
        num_bytes: Length of the continuation in UTF-8 bytes.
        continuation: Text of the continuation.
    """

    document_id: str
    query: str
    continuation: str
    query_ids: tuple[int, ...]
    continuation_ids: tuple[int, ...]
    num_bytes: int
