"""A retriever: texts in, corpus rows out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sentence_transformers import SentenceTransformer

from replug_client.retriever.encoder import encode_queries
from replug_client.retriever.hybrid import HybridIndex
from replug_client.retriever.index import PassageIndex, SearchResult
from replug_client.retriever.lexical_weights import lexical_weights
from replug_client.retriever.terms import TermMatches


@dataclass(frozen=True, slots=True)
class Retriever:
    """An encoder with the index of its own passage vectors.

    Attributes:
        model: Encodes queries.
        index: Of the passages, under the same model.
        matches: Gives the terms of the passages in ``index.rows``, for a model that has weights for them; None
            searches by vectors alone.
    """

    model: SentenceTransformer
    index: PassageIndex
    matches: Callable[[], TermMatches] | None = None

    def search(self, texts: Sequence[str], k: int, description: str | None = None) -> SearchResult:
        """The k passages nearest to each text: by vectors, and by words as far as the model was trained to.

        Args:
            texts: B queries.
            k: At least 1; of fewer passages, all.
            description: Shown beside the progress bar; None shows no bar.

        Returns:
            ``(B, k')`` similarities and corpus rows, best first.

        Raises:
            OptionError: ``k`` below 1.
        """
        vectors = encode_queries(self.model, texts, description=description)
        if self.matches is None:
            return self.index.search(vectors, k)
        return HybridIndex(self.index, self.matches).search(vectors, texts, k, lexical_weights(self.model))
