"""Plain texts on the supervisor's side: pairs become examples, and with a passage they become prompts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from replug_client.corpus.records import Example, Passage
from replug_client.errors import CorpusError
from replug_client.supervisor.checks import check_scores
from replug_client.supervisor.prompts import PromptBuilder
from replug_client.supervisor.protocol import Prompt, Supervisor
from replug_client.supervisor.tokenizer import SupervisorTokenizer
from replug_client.training.candidates import NO_PASSAGE, Rows
from replug_client.training.stream import ScoredCandidates

QUERY_COLUMN, CONTINUATION_COLUMN, DOCUMENT_COLUMN = "query", "continuation", "document"


class TextCorpus:
    """Passages as plain texts in memory; a passage's row is its place among them.

    Args:
        texts: The passages; none of them empty.

    Raises:
        CorpusError: no passages, or one that is no text or empty.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        if isinstance(texts, str) or not len(texts):
            raise CorpusError(f"passages are {type(texts).__name__} {texts!r}; expected at least one text")
        for row, text in enumerate(texts):
            if not isinstance(text, str) or not text:
                raise CorpusError(f"passage {row} is {text!r}; expected a text that is not empty")
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, row: int) -> Passage:
        return Passage(str(row), self._texts[row])

    def texts(self, rows: Rows) -> list[str]:
        """``(n,)`` rows in, n texts out."""
        return [self._texts[row] for row in rows.tolist()]


class TextScorer:
    """Scores the continuations of pairs behind the passages of a corpus.

    Args:
        corpus: The passages.
        supervisor: Scores.
        tokenizer: The supervisor's.
        retrieved_max_length: A passage keeps this many of its first tokens.
        separator: Stands between passage and query.
    """

    def __init__(
        self,
        corpus: TextCorpus,
        supervisor: Supervisor,
        tokenizer: SupervisorTokenizer,
        *,
        retrieved_max_length: int = 128,
        separator: str = "\n",
    ) -> None:
        self._corpus = corpus
        self._supervisor = supervisor
        self._tokenizer = tokenizer
        self.builder = PromptBuilder(
            tokenizer,
            retrieved_max_length=retrieved_max_length,
            max_prompt_tokens=supervisor.max_prompt_tokens,
            separator=separator,
        )

    def examples(self, pairs: Iterable[Mapping[str, Any]]) -> list[Example]:
        """Examples of rows with ``query`` and ``continuation``; each of the two is tokenised on its own.

        Rows of one ``document``, where they say so, count as dependent in intervals; else each is its own.

        Raises:
            CorpusError: what is no rows, a row without one of the two, or whose continuation has no token.
        """
        if isinstance(pairs, Mapping):
            raise CorpusError(
                f"found {type(pairs).__name__} of {', '.join(map(repr, pairs))}; expected rows with 'query' and "
                "'continuation'. Give one of its parts."
            )
        return [self._example(number, pair) for number, pair in enumerate(pairs)]

    def prompt(self, example: Example, row: int) -> Prompt:
        """The prompt of one example behind the passage at ``row``."""
        label = f"query {example.query[:40]!r}, passage {row}"
        return self.builder.build(self._corpus[row].text, example.query_ids, example.continuation_ids, label)

    def score(self, examples: Sequence[Example], rows: Rows) -> ScoredCandidates:
        """Score each example behind each of its candidates, and wait for it.

        Args:
            examples: A batch of them.
            rows: ``(batch, K)`` corpus rows, ``NO_PASSAGE`` where there is none.

        Raises:
            SupervisorError: a pair cannot be scored.
        """
        present = rows != NO_PASSAGE
        prompts = [
            self.prompt(example, row)
            for example, own in zip(examples, rows, strict=True)
            for row in own[own != NO_PASSAGE].tolist()
        ]
        log_likelihoods: npt.NDArray[np.float64] = np.zeros(rows.shape, dtype=np.float64)
        scores = self._supervisor.score(prompts)
        check_scores(prompts, scores)
        log_likelihoods[present] = [score.log_likelihood for score in scores]
        return ScoredCandidates(
            rows=rows,
            log_likelihoods=log_likelihoods,
            num_tokens=np.array([len(example.continuation_ids) for example in examples]),
            num_bytes=np.array([example.num_bytes for example in examples]),
        )

    def _example(self, number: int, pair: Mapping[str, Any]) -> Example:
        found: object = pair
        if not isinstance(found, Mapping):
            raise CorpusError(
                f"example {number} is {type(found).__name__} {str(found)[:40]!r}; expected a row with 'query' and "
                "'continuation'"
            )
        query, continuation = (_text(pair, column, number) for column in (QUERY_COLUMN, CONTINUATION_COLUMN))
        ids = tuple(self._tokenizer.encode(continuation))
        if not ids:
            raise CorpusError(f"example {number}: its continuation {continuation!r} has no token to score")
        document = str(pair.get(DOCUMENT_COLUMN, number))
        return Example(
            document,
            query,
            continuation,
            tuple(self._tokenizer.encode(query)),
            ids,
            len(continuation.encode()),
        )


def _text(pair: Mapping[str, Any], column: str, number: int) -> str:
    value = pair.get(column)
    if not isinstance(value, str):
        raise CorpusError(
            f"example {number}: {column!r} is {value!r}; expected a text. Its columns are {sorted(pair)}; rename "
            f"them to {QUERY_COLUMN!r} and {CONTINUATION_COLUMN!r}."
        )
    return value
