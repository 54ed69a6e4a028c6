"""Free answers to many questions under several conditions, several questions at a time."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from replug_client.errors import PromptTooLongError
from replug_client.evaluation.conditions import Condition, Retrieved
from replug_client.inference.answerer import Answer, Combination
from replug_client.progress import progress

if TYPE_CHECKING:
    from replug_client.corpus.store import PassageStore

logger = logging.getLogger(__name__)

Ask = Callable[[str, Sequence[str], Sequence[float] | None, Combination], Answer]
"""Prompt, passages (best first), similarities and combination in, an answer out; called from several threads."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What one question is answered from under one condition.

    Attributes:
        combination: In the terms of :mod:`replug_client.inference`.
        rows: The passages' corpus rows, best first.
        similarities: Of each; None where all count alike.
    """

    combination: Combination
    rows: tuple[int, ...]
    similarities: tuple[float, ...] | None = None


def asked_under(condition: Condition, found: Mapping[str, Retrieved], number: int) -> Asked:
    """What question ``number`` is answered from: as :func:`~replug_client.evaluation.conditions.read_with` reads it.

    Where a retrieval found nothing, no passage.
    """
    source = found.get(condition.retrieval)
    if source is None:
        return Asked(Combination.NONE, ())
    rows = source.rows[number, : condition.combination.n]
    there = rows >= 0
    if not there.any():
        return Asked(Combination.NONE, ())
    kept = tuple(int(row) for row in rows[there])
    if condition.combination.kind != "ensemble":
        return Asked(Combination.CONCAT, kept)
    similarities = None if source.similarities is None else source.similarities[number, : len(there)][there]
    return Asked(
        Combination.ENSEMBLE, kept, None if similarities is None else tuple(map(float, similarities))
    )


def answer_questions(
    prompts: Sequence[str],
    asked: Sequence[Mapping[str, Asked]],
    store: PassageStore,
    ask: Ask,
    left_out: Counter[str],
    *,
    too_long: str,
    at_once: int,
) -> list[dict[str, Answer] | None]:
    """Every question's answer under every condition.

    What is asked alike under several conditions of a question is asked once. A question with a prompt that the LM
    cannot take is left out of every condition, so that they stay paired.

    Args:
        prompts: Of n questions.
        asked: For each, condition to what it is answered from.
        store: The corpus that the rows point into.
        ask: What answers.
        left_out: Counts what was left out.
        too_long: Under which reason.
        at_once: Questions under way at a time; a server batches what comes together.

    Returns:
        For each question, condition to answer; None where it was left out.

    Raises:
        SupervisorError: no answer, or a wrong one.
    """

    def one(number: int) -> dict[str, Answer] | None:
        answers: dict[Asked, Answer] = {}
        try:
            for item in asked[number].values():
                if item not in answers:
                    texts = store.texts(list(item.rows)) if item.rows else []
                    answers[item] = ask(prompts[number], texts, item.similarities, item.combination)
        except PromptTooLongError as error:
            logger.debug("left out: %s", error)
            return None
        return {name: answers[item] for name, item in asked[number].items()}

    found: list[dict[str, Answer] | None] = []
    with (
        progress("Answering", len(prompts), "questions") as advance,
        ThreadPoolExecutor(max_workers=at_once, thread_name_prefix="answers") as workers,
    ):
        futures: list[Any] = [workers.submit(one, number) for number in range(len(prompts))]
        try:
            for future in futures:
                found.append(future.result())
                advance(1)
        except BaseException:
            workers.shutdown(wait=False, cancel_futures=True)
            raise
    left_out[too_long] += sum(answers is None for answers in found)
    return found
