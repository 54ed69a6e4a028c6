"""What passages are worth to an LM, on the toy LM: a word that stands before costs 0.1 nats, another one 3."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from replug_client.corpus.store import PassageStore
from replug_client.evaluation.appraisal import Appraiser
from replug_client.evaluation.comparison import QueryComparison, compare_query
from replug_client.supervisor.prompts import PromptBuilder
from replug_client.training.toy import toy
from tests.retriever.tiny import store_of

TEXTS = ["a cat sat", "a dog ate", "rain falls down"]


@pytest.fixture
def appraiser() -> Iterator[Appraiser]:
    _, supervisor, tokenizer = toy(TEXTS)
    builder = PromptBuilder(tokenizer, retrieved_max_length=9, max_prompt_tokens=12, separator="")
    yield Appraiser(supervisor, tokenizer, builder)
    supervisor.close()


@pytest.fixture
def store(tmp_path: Path) -> PassageStore:
    return store_of(tmp_path, TEXTS)


def compared(query: str, continuation: str | None = None) -> QueryComparison:
    return compare_query(query, ([0, 1], [0.5, 0.4]), ([2, 0], [0.5, 0.4]), 2, continuation=continuation)


def test_each_passage_of_both_lists_and_none(appraiser: Appraiser, store: PassageStore) -> None:
    (item,) = appraiser.appraise([compared("rain", "cat sat down")], store)
    worth = item.worth
    assert worth is not None and (worth.of, worth.num_tokens, worth.num_bytes) == ("continuation", 3, 12)
    assert worth.no_passage == pytest.approx(-9.0)
    assert dict(worth.log_likelihoods) == pytest.approx({0: -3.2, 1: -9.0, 2: -6.1})
    assert worth.gain(0) == pytest.approx(5.8)
    assert item.first_gain == pytest.approx(2.9 - 5.8)


def test_without_a_continuation_the_query_itself_is_scored(appraiser: Appraiser, store: PassageStore) -> None:
    (item,) = appraiser.appraise([compared("a cat ate")], store)
    worth = item.worth
    # This LM has no BOS: "a" stands before, "cat ate" is scored.
    assert worth is not None and (worth.of, worth.num_tokens) == ("query", 2)
    assert worth.no_passage == pytest.approx(-6.0)
    assert dict(worth.log_likelihoods) == pytest.approx({0: -3.1, 1: -3.1, 2: -6.0})


def test_what_cannot_be_scored_says_why_and_does_not_stop_the_others(
    appraiser: Appraiser, store: PassageStore
) -> None:
    long, short, odd, good = appraiser.appraise(
        [
            compared("rain", " ".join(["cat"] * 12)),
            compared("rain"),
            compared("rain", "\ud800"),
            compared("rain", "down"),
        ],
        store,
    )
    assert long.worth is None and "12" in (long.unscored or "") and "no passage" in (long.unscored or "")
    assert short.worth is None and "too short" in (short.unscored or "")
    assert odd.worth is None and "surrogate" in (odd.unscored or "")
    assert good.unscored is None and good.worth is not None
    assert good.worth.gain(2) == pytest.approx(2.9)
