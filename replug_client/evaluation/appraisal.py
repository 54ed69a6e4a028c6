"""What the LM makes of each passage in two retrievers' lists (a `Worth` in :mod:`.comparison`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from replug_client.errors import PromptTooLongError
from replug_client.evaluation.comparison import QueryComparison, Worth
from replug_client.progress import progress

if TYPE_CHECKING:
    from replug_client.corpus.store import PassageStore
    from replug_client.supervisor.prompts import PromptBuilder
    from replug_client.supervisor.protocol import Prompt, StreamingSupervisor
    from replug_client.supervisor.tokenizer import SupervisorTokenizer


@dataclass(frozen=True, slots=True)
class Appraiser:
    """Scores passages through a supervisor, and so through its cache.

    Attributes:
        supervisor: The LM.
        tokenizer: Its tokenizer.
        builder: Makes the prompts.
    """

    supervisor: StreamingSupervisor
    tokenizer: SupervisorTokenizer
    builder: PromptBuilder

    @property
    def name(self) -> str:
        """The supervisor's."""
        return self.supervisor.name

    def appraise(
        self, compared: Sequence[QueryComparison], store: PassageStore, *, description: str | None = None
    ) -> list[QueryComparison]:
        """The same comparisons with ``worth``, or with ``unscored`` where there can be none.

        Every passage of both lists is scored once, and no passage beside them.

        Args:
            compared: Of any number of queries.
            store: Their passages.
            description: Shown beside the progress bar; None shows no bar.

        Raises:
            SupervisorError: the supervisor gives no scores.
        """
        asked: list[_Asked | str] = [
            self._ask(number, item, store) for number, item in enumerate(compared, 1)
        ]
        prompts = [prompt for item in asked if not isinstance(item, str) for prompt in item.prompts]
        if description is None:
            scores = self.supervisor.submit(prompts).result()
        else:
            with progress(description, len(prompts), "prompts") as advance:
                scores = self.supervisor.submit(prompts, lambda places, _: advance(len(places))).result()
        found = iter(scores)
        result = []
        for item, question in zip(compared, asked, strict=True):
            if isinstance(question, str):
                result.append(replace(item, unscored=question))
                continue
            values = [next(found).log_likelihood for _ in question.prompts]
            result.append(replace(item, worth=question.worth(values)))
        return result

    def _ask(self, number: int, item: QueryComparison, store: PassageStore) -> _Asked | str:
        rows = tuple(dict.fromkeys(place.row for place in (*item.base, *item.tuned)))
        text = item.continuation or item.query
        try:
            query = self.tokenizer.encode(item.query)
            if item.continuation:
                before, scored = query, self.tokenizer.encode(item.continuation)
            else:
                kept = 0 if self.tokenizer.bos_id is not None else 1
                before, scored = query[:kept], query[kept:]
            if not scored or not (before or self.tokenizer.bos_id is not None):
                return "too short: there is no token to score behind another"
            passages = ["", *(store[row].text for row in rows)]
            labels = ["no passage", *(f"passage {store[row].id!r}" for row in rows)]
            prompts = tuple(
                self.builder.build(passage, before, scored, f"query {number}, {label}")
                for passage, label in zip(passages, labels, strict=True)
            )
        except PromptTooLongError as error:
            return str(error)
        except UnicodeEncodeError:
            return "half of a surrogate pair stands in the text"
        of: Literal["continuation", "query"] = "continuation" if item.continuation else "query"
        return _Asked(of, rows, prompts, len(scored), len(text.encode()))


@dataclass(frozen=True, slots=True)
class _Asked:
    """One query's prompts: without a passage, and then behind each."""

    of: Literal["continuation", "query"]
    rows: tuple[int, ...]
    prompts: tuple[Prompt, ...]
    num_tokens: int
    num_bytes: int

    def worth(self, log_likelihoods: Sequence[float]) -> Worth:
        return Worth(
            of=self.of,
            no_passage=log_likelihoods[0],
            log_likelihoods=dict(zip(self.rows, log_likelihoods[1:], strict=True)),
            num_tokens=self.num_tokens,
            num_bytes=self.num_bytes,
        )
