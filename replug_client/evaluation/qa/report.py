"""What an evaluation of questions found, as tables; each line with its n, each difference with its interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from replug_client.corpus.store import PassageStore
from replug_client.evaluation.conditions import BASE, CEILING, NONE, TUNED, Condition
from replug_client.evaluation.qa.breakdown import outcomes_by_type, outcomes_table, types_table, worst_answers
from replug_client.evaluation.qa.choices import SCORINGS
from replug_client.evaluation.qa.findings import Findings, Part, Result
from replug_client.evaluation.qa.metrics import corpus_bleu
from replug_client.evaluation.results import Difference, EvaluationResult, Metric, ResultTable, Row
from replug_client.statistics import paired_bootstrap

_UNITS = "questions"

_ANSWER_METRICS = (
    Metric("exact_match", "exact match"),
    Metric("f1", "F1"),
    Metric("rouge_l", "ROUGE-L"),
    Metric("bleu", "sentence BLEU", digits=2),
    Metric("corpus_bleu", "corpus BLEU", digits=2),
)
_CHOICE_LABELS = {
    "sum": "accuracy, sum",
    "mean": "accuracy, per token",
    "byte": "accuracy, per byte",
    "no_context": "accuracy, less no-context",
}
_RETRIEVAL_LABELS = {
    "random": "random passages",
    "bm25": "BM25",
    BASE: "base retriever",
    TUNED: "tuned retriever",
}


def result_of(
    findings: Findings,
    *,
    worst: int = 5,
    asked: Mapping[str, Any] | None = None,
    inputs: Mapping[str, str] | None = None,
    left_out: Mapping[str, int] | None = None,
    details: Mapping[str, Any] | None = None,
) -> EvaluationResult:
    """Tables, verdict and details of what was found.

    Args:
        findings: What :func:`~replug_client.evaluation.qa.evaluate.evaluate_questions` gave.
        worst: How many of the worst answers are shown.
        asked: The options, for the record.
        inputs: What was read, for the record.
        left_out: What had been left out before, by reason.
        details: Further ones, for the record.
    """
    findings = replace(findings, left_out={**(left_out or {}), **findings.left_out})
    tables: list[ResultTable] = []
    own: dict[str, Any] = {}
    for part in findings.parts:
        tables.extend(_main_tables(part, findings))
        examples = worst_answers(part, findings, worst)
        tables.append(outcomes_table(part, findings, examples))
        tables.append(types_table(part, findings))
        own[part.name] = {
            "outcomes": {
                condition: dict(Counter(result.outcome.value for result in results))
                for condition, results in part.results.items()
            },
            "by_type": outcomes_by_type(part, findings),
            "worst": examples,
        }
    tables.extend(_retrieval(findings))
    return EvaluationResult(
        kind="qa",
        tables=tables,
        options=asked or {},
        inputs=inputs or {},
        left_out=findings.left_out,
        verdict=" ".join(_verdict(part, findings) for part in findings.parts).strip(),
        details={**own, **(details or {})},
    )


def per_example(findings: Findings, store: PassageStore) -> Iterator[dict[str, Any]]:
    """One object a question and condition: what was given, every figure, and what became of it."""
    for part in findings.parts:
        for place, number in enumerate(part.numbers):
            question = findings.questions[number]
            for condition in findings.options.conditions:
                result = part.results[condition.name][place]
                ranks = findings.ranks.get(condition.retrieval)
                yield {
                    "id": question.id,
                    "type": question.type,
                    "condition": condition.name,
                    "question": question.text,
                    "answers": list(question.answers),
                    **({} if part.free else {"choices": list(question.choices)}),
                    "given": result.given,
                    **result.values,
                    "outcome": result.outcome.value,
                    "answer_rank": None if ranks is None else ranks[number],
                    "passages": store.ids(list(result.passages)) if result.passages else [],
                    "weights": list(result.weights),
                    **(
                        {"dropped_mass": list(result.dropped_mass), "uncertain_tokens": result.uncertain}
                        if part.free
                        else {}
                    ),
                    **{name: list(values) for name, values in result.scores.items()},
                }


def _metrics(part: Part, findings: Findings) -> list[Metric]:
    if part.free:
        return list(_ANSWER_METRICS)
    first = findings.options.choice_scoring
    ordered = [first, *(scoring for scoring in SCORINGS if scoring != first)]
    return [Metric(f"accuracy_{scoring}", _CHOICE_LABELS[scoring]) for scoring in ordered]


def _groups(conditions: Sequence[Condition]) -> list[tuple[str, str, list[Condition]]]:
    """Conditions that compare, a group for each combination; what has none to combine stands in each."""
    alone = (NONE, CEILING)
    names = list(
        dict.fromkeys(item.combination.name for item in conditions if item.retrieval not in alone)
    ) or ["first"]
    groups = []
    for name in names:
        own = [item for item in conditions if item.retrieval in alone or item.combination.name == name]
        # What reads passages as its title says, before the ceiling, which reads one.
        reads = [item for item in own if item.retrieval not in alone] or [
            item for item in own if item.retrieval != NONE
        ]
        combination = reads[0].combination if reads else None
        if combination is None or combination.kind == "first":
            label = "first passage" if combination else "no passage"
        else:
            label = f"{combination.n} passages, {'concatenated' if combination.kind == 'concat' else 'in an ensemble'}"
        groups.append((name, label, own))
    return groups


def _main_tables(part: Part, findings: Findings) -> list[ResultTable]:
    metrics = _metrics(part, findings)
    what = "Free answers" if part.free else "Choices by likelihood"
    return [
        ResultTable(
            name=f"{part.name}.{name}",
            title=f"{what}, {label}",
            metrics=metrics,
            rows=_rows(part, findings, metrics, conditions),
            baseline=_baseline(conditions),
            notes=[
                _left_out_note(part, findings),
                *_fewer(part, conditions),
                *_dropped(part, conditions),
            ],
        )
        for name, label, conditions in _groups(findings.options.conditions)
    ]


def _baseline(conditions: Sequence[Condition]) -> str | None:
    return next((item.name for item in conditions if item.retrieval == BASE), None)


def _rows(
    part: Part, findings: Findings, metrics: Sequence[Metric], conditions: Sequence[Condition]
) -> list[Row]:
    base = _baseline(conditions)
    rows = []
    for condition in conditions:
        columns = _columns(part.results[condition.name])
        values = {name: float(np.mean(column)) for name, column in columns.items()}
        if part.free:
            values["corpus_bleu"] = corpus_bleu(
                [result.given for result in part.results[condition.name]],
                [findings.questions[number].answers for number in part.numbers],
            )
        differences = {}
        if base is not None and condition.name != base:
            other = _columns(part.results[base])
            differences = {name: _difference(columns[name], other[name]) for name in columns}
        rows.append(
            Row(
                name=condition.name,
                label=condition.label,
                n=len(part.numbers),
                values={metric.name: values[metric.name] for metric in metrics},
                differences=differences,
                emphasis=condition.retrieval == TUNED,
            )
        )
    return rows


def _columns(results: Sequence[Result]) -> dict[str, list[float]]:
    return {name: [result.values[name] for result in results] for name in results[0].values}


def _difference(own: Sequence[float], base: Sequence[float]) -> Difference:
    return Difference.of(paired_bootstrap(own, base, np.ones(len(own))), _UNITS)


def _fewer(part: Part, conditions: Sequence[Condition]) -> Iterator[str]:
    """Where a retrieval found fewer passages than are combined (BM25, without a word in common)."""
    for condition in conditions:
        wanted = 0 if condition.retrieval == NONE else condition.combination.n
        results = part.results[condition.name]
        if count := sum(len(result.passages) < wanted for result in results):
            yield (
                f"{condition.label}: fewer passages than asked for in {count:,} of {len(results):,} questions; with"
                " none, no passage was read."
            )


def _dropped(part: Part, conditions: Sequence[Condition]) -> Iterator[str]:
    """What the truncation of a server's log-probs leaves open in the mixtures; nothing to say where it is exact."""
    for condition in conditions:
        results = part.results[condition.name]
        masses = [mass for result in results for mass in result.dropped_mass]
        if any(masses):
            yield (
                f"{condition.label}: the server's top log-probs leave out {np.mean(masses):.2%} of the mixture's mass"
                f" (at most {max(masses):.2%}); {sum(result.uncertain for result in results):,} of {len(masses):,}"
                " tokens might be others with the whole vocabulary."
            )


def _left_out_note(part: Part, findings: Findings) -> str:
    total = len(part.numbers)
    counts = ", ".join(f"{count:,} {reason}" for reason, count in findings.left_out.items())
    return f"n = {total:,} questions in every line; left out of all lines: {counts or 'none'}."


def _retrieval(findings: Findings) -> list[ResultTable]:
    """Hit@k and MRR of the answer string, over every question that stands in a line above."""
    if not findings.ranks:
        return []
    numbers = sorted({number for part in findings.parts for number in part.numbers})
    depth = findings.passages
    columns: dict[str, dict[str, list[float]]] = {}
    for name, ranks in findings.ranks.items():
        own = [ranks[number] for number in numbers]
        columns[name] = {
            f"hit@{k}": [float(rank is not None and rank <= k) for rank in own]
            for k in findings.options.hit_at
        }
        columns[name][f"mrr@{depth}"] = [
            1.0 / rank if rank is not None and rank <= depth else 0.0 for rank in own
        ]
    rows = [
        Row(
            name=name,
            label=_RETRIEVAL_LABELS[name],
            n=len(numbers),
            values={metric: float(np.mean(values)) for metric, values in own.items()},
            differences=(
                {metric: _difference(values, columns[BASE][metric]) for metric, values in own.items()}
                if BASE in columns and name != BASE
                else {}
            ),
            emphasis=name == TUNED,
        )
        for name, own in columns.items()
    ]
    metrics = [Metric(f"hit@{k}", f"Hit@{k}") for k in findings.options.hit_at]
    return [
        ResultTable(
            name="retrieval",
            title="Retrieval: does a passage hold the answer's words?",
            metrics=[*metrics, Metric(f"mrr@{depth}", f"MRR@{depth}")],
            rows=rows,
            baseline=BASE if BASE in columns else None,
            notes=[
                f"Answers are matched as DPR does: their words in a row, in the first {depth} passages at most."
            ],
        )
    ]


def _verdict(part: Part, findings: Findings) -> str:
    """In a sentence, by the first combination that both retrievers stand with."""
    for _, label, conditions in _groups(findings.options.conditions):
        names = {item.retrieval: item.name for item in conditions}
        if BASE not in names or TUNED not in names:
            continue
        main = findings.main_metric(part)
        tuned, base = (_columns(part.results[names[name]])[main] for name in (TUNED, BASE))
        gain = _difference(tuned, base)
        answer = "not shown" if not gain.excludes_zero else "yes" if gain.mean > 0 else "no, it hurt"
        what = ("free answers", "exact match") if part.free else ("choices", "accuracy")
        return (
            f"Did LSR help with {what[0]}? {answer[0].upper()}{answer[1:]}: with {_with(label)}, {what[1]} of tuned"
            f" minus base is {gain} (n = {len(part.numbers):,} questions)."
        )
    return ""


def _with(label: str) -> str:
    return f"the {label}" if label == "first passage" else label
