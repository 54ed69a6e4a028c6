"""A :class:`~replug_client.evaluation.likelihood.LikelihoodTable` as tables, a verdict and figures to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from replug_client.evaluation.conditions import BASE, CEILING, FIRST, NONE, TUNED, Combination, Condition
from replug_client.evaluation.likelihood import LikelihoodTable
from replug_client.evaluation.results import Difference, Metric, ResultTable, Row

BITS_PER_BYTE = Metric("bits_per_byte", "bits per byte", lower_is_better=True)
PERPLEXITY = Metric("perplexity", "perplexity per token", lower_is_better=True, digits=3)
LOG_LIKELIHOOD = Metric("log_likelihood", "nats per example", digits=3)
_SIDES = (
    Metric("base", "base bits per byte", lower_is_better=True),
    Metric("tuned", "tuned bits per byte", lower_is_better=True),
    Metric("share_of_ceiling_closed", "share of ceiling", digits=3),
)


@dataclass(frozen=True, slots=True)
class LMTables:
    """What there is to show of one evaluation.

    Attributes:
        tables: Every condition against the base; where there is a tuned retriever, it against the base for each
            combination.
        verdict: Did LSR help?
        details: Differences over single examples, totals.
    """

    tables: tuple[ResultTable, ...]
    verdict: str
    details: dict[str, Any]


def lm_tables(
    table: LikelihoodTable, conditions: Sequence[Condition], *, seed: int = 0, notes: Sequence[str] = ()
) -> LMTables:
    """Tables, verdict and details; intervals of 95 % by paired bootstrap over documents.

    Args:
        table: The scores.
        conditions: Those in it.
        seed: Of the bootstrap.
        notes: Shown below the first table, behind its own.
    """
    comparisons = _comparisons(table, conditions, seed)
    tables = [_by_condition(table, conditions, seed, notes)]
    if comparisons:
        tables.append(_by_combination(table, comparisons))
    return LMTables(tuple(tables), _verdict(table, comparisons), _details(table, conditions, seed))


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Tuned against base under one combination."""

    combination: Combination
    base: str
    tuned: str
    gain: Difference
    share: float | None


def _comparisons(table: LikelihoodTable, conditions: Sequence[Condition], seed: int) -> list[_Comparison]:
    found = []
    for condition in conditions:
        base = Condition(BASE, condition.combination).name
        if condition.retrieval == TUNED and base in table.nll:
            gain = Difference.of(table.difference(base, condition.name, seed=seed), "documents")
            share = table.share_closed(base, condition.name)
            found.append(_Comparison(condition.combination, base, condition.name, gain, share))
    return found


def _by_condition(
    table: LikelihoodTable, conditions: Sequence[Condition], seed: int, notes: Sequence[str]
) -> ResultTable:
    baseline = _baseline(conditions)
    rows = []
    for condition in conditions:
        name = condition.name
        difference = {}
        if baseline is not None and name != baseline:
            paired = table.difference(baseline, name, seed=seed)
            difference = {BITS_PER_BYTE.name: Difference.of(paired, "documents")}
        values = {
            BITS_PER_BYTE.name: table.bits_per_byte(name),
            PERPLEXITY.name: table.perplexity(name),
            LOG_LIKELIHOOD.name: table.log_likelihood(name),
        }
        rows.append(Row(name, condition.label, table.n, values, difference, condition.retrieval == TUNED))
    return ResultTable(
        "likelihood",
        "What the passages are worth to the language model",
        (BITS_PER_BYTE, PERPLEXITY, LOG_LIKELIHOOD),
        rows,
        baseline,
        [*_notes(table, conditions), *notes],
    )


def _baseline(conditions: Sequence[Condition]) -> str | None:
    """The base's first passage; else whatever the base gives, else no passage; one row alone has none."""
    if len(conditions) < 2:
        return None
    for retrieval in (BASE, NONE):
        names = [
            condition.name
            for condition in sorted(conditions, key=lambda c: c.combination != FIRST)
            if condition.retrieval == retrieval
        ]
        if names:
            return names[0]
    return conditions[0].name


def _notes(table: LikelihoodTable, conditions: Sequence[Condition]) -> list[str]:
    source = f"{table.n:,} examples of {table.documents:,} document{'s' * (table.documents != 1)}"
    notes = [
        f"{source}: {int(table.num_tokens.sum()):,} tokens, {int(table.num_bytes.sum()):,} bytes of continuations.",
        "Bits per byte and perplexity of the continuations: lower is better; nats: their mean log-likelihood.",
        "Intervals: paired bootstrap over documents.",
    ]
    if table.documents < 2:
        notes.append("One document: there is nothing to resample, so no interval.")
    labels = {condition.name: condition.label for condition in conditions}
    notes.extend(
        f"{labels[name]}: fewer passages than asked for in {count:,} of {table.n:,} examples; with none, no passage "
        "was read."
        for name, count in table.fewer.items()
    )
    if any(condition.retrieval == CEILING for condition in conditions):
        notes.append("The ceiling looks at the continuation to choose: no retriever can.")
    return notes


def _by_combination(table: LikelihoodTable, comparisons: Sequence[_Comparison]) -> ResultTable:
    rows = []
    for item in comparisons:
        values = {"base": table.bits_per_byte(item.base), "tuned": table.bits_per_byte(item.tuned)}
        if item.share is not None:
            values["share_of_ceiling_closed"] = item.share
        label = "first passage" if item.combination == FIRST else item.combination.name
        rows.append(Row(item.combination.name, label, table.n, values, {"tuned": item.gain}))
    notes = []
    if any(item.share is not None for item in comparisons):
        notes.append(
            "Share of ceiling: of the distance from the base, under the same combination, to the best single one of "
            "the base's first K passages; beyond 1 where several together are better than that."
        )
    return ResultTable(
        "tuned_against_base",
        "Tuned against base, under the same combination",
        _SIDES if notes else _SIDES[:2],
        rows,
        "base",
        notes,
    )


def _verdict(table: LikelihoodTable, comparisons: Sequence[_Comparison]) -> str:
    if not comparisons:
        return ""
    main = next((item for item in comparisons if item.combination == FIRST), comparisons[0])
    answer = "Not shown" if not main.gain.excludes_zero else ("Yes" if main.gain.mean > 0 else "No, it hurt")
    where = "the first passage" if main.combination == FIRST else main.combination.name
    source = f"n = {table.n:,} examples of {table.documents:,} document{'s' * (table.documents != 1)}"
    closed = (
        "" if main.share is None else f"; {main.share:.0%} of the distance from base to ceiling is closed"
    )
    others = "; ".join(f"{item.combination.name} {item.gain}" for item in comparisons if item is not main)
    return (
        f"Did LSR help? {answer}: with {where}, base minus tuned is {main.gain} bits per byte ({source}){closed}."
        f"{' Others: ' * bool(others)}{others}{'.' * bool(others)}"
    )


def _details(table: LikelihoodTable, conditions: Sequence[Condition], seed: int) -> dict[str, Any]:
    baseline = _baseline(conditions)
    over_examples = {}
    for condition in conditions:
        name = condition.name
        if baseline is not None and name != baseline:
            paired = table.difference(baseline, name, by_document=False, seed=seed)
            over_examples[name] = {"mean": paired.mean, "low": paired.low, "high": paired.high}
    return {
        "documents": table.documents,
        "tokens": int(table.num_tokens.sum()),
        "bytes": int(table.num_bytes.sum()),
        "log_likelihood": {name: -float(nll.sum()) for name, nll in table.nll.items()},
        "bits_per_byte_better_over_examples": over_examples,
        "fewer_passages": dict(table.fewer),
        "summary": table.to_json(),
    }
