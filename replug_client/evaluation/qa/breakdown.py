"""Where questions went wrong: outcomes by condition and by type, and the worst answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from replug_client.evaluation.conditions import TUNED
from replug_client.evaluation.qa.analysis import MEANING, Outcome
from replug_client.evaluation.qa.findings import Findings, Part, Result
from replug_client.evaluation.results import Metric, ResultTable, Row, shown

_TYPES_SHOWN = 30
_SHORT = 70


def outcomes_table(part: Part, findings: Findings, worst: Sequence[Mapping[str, Any]]) -> ResultTable:
    """How many questions came to what under each condition; below, the worst, shortened."""
    rows = []
    for condition in findings.options.conditions:
        results = part.results[condition.name]
        counts = Counter(result.outcome for result in results)
        rows.append(
            Row(
                name=condition.name,
                label=condition.label,
                n=len(results),
                values={kind.value: float(counts[kind]) for kind in _kinds(part)},
                emphasis=condition.retrieval == TUNED,
            )
        )
    notes = [f"{MEANING}."]
    if worst:
        notes.append(f"The worst under {worst[0]['condition']}:")
        notes.extend(_line(example) for example in worst)
    return ResultTable(
        name=f"{part.name}.outcomes",
        title=f"What became of the questions, {'free answers' if part.free else 'choices'}",
        metrics=[Metric(kind.value, kind.label, kind is not Outcome.CORRECT, 0) for kind in _kinds(part)],
        rows=rows,
        notes=notes,
    )


def _kinds(part: Part) -> list[Outcome]:
    return [kind for kind in Outcome if part.free or kind is not Outcome.FORMAT]


def _line(example: Mapping[str, Any]) -> str:
    parts = (example["question"], example["answers"][0], example["given"] or "(nothing)")
    question, answer, given = (_short(text) for text in parts)
    return f"- {question} | right: {answer} | given: {given} | {Outcome(example['outcome']).label}"


def _short(text: str) -> str:
    text = " ".join(shown(text).split())
    return text if len(text) <= _SHORT else text[: _SHORT - 3] + "..."


def worst_answers(part: Part, findings: Findings, count: int) -> list[dict[str, Any]]:
    """Wrong ones: those where base does best against it first, then those least like the right answer."""
    condition = findings.looked_at
    base = findings.its_base.name
    value = "f1" if part.free else findings.main_metric(part)
    results = part.results[condition.name]
    wrong = [place for place, result in enumerate(results) if result.outcome is not Outcome.CORRECT]

    def badness(place: int) -> tuple[float, float, int]:
        loss = results[place].values[value] - part.results[base][place].values[value]
        return (loss, _closeness(part, findings, results[place], place), place)

    found = []
    for place in sorted(wrong, key=badness)[:count]:
        question, result = findings.questions[part.numbers[place]], results[place]
        found.append(
            {
                "id": question.id,
                "condition": condition.name,
                "question": question.text,
                "answers": list(question.answers),
                "given": result.given,
                "given_under_base": part.results[base][place].given,
                "outcome": result.outcome.value,
                "values": dict(result.values),
            }
        )
    return found


def _closeness(part: Part, findings: Findings, result: Result, place: int) -> float:
    """F1 of a free answer; of a choice, by how much the right one lies behind the one taken (negative)."""
    if part.free:
        return result.values["f1"]
    gold = findings.questions[part.numbers[place]].gold
    scores = result.scores["score"]
    return 0.0 if gold is None else scores[gold] - max(scores)


def _by_type(part: Part, findings: Findings) -> dict[str, list[int]]:
    """Type to the places of its questions, the most frequent first."""
    places: dict[str, list[int]] = {}
    for place, number in enumerate(part.numbers):
        places.setdefault(findings.questions[number].type, []).append(place)
    return dict(sorted(places.items(), key=lambda item: (-len(item[1]), item[0])))


def outcomes_by_type(part: Part, findings: Findings) -> dict[str, Any]:
    """Type to its n, and under each condition the main figure and the outcomes; for the details."""
    main = findings.main_metric(part)
    return {
        kind: {
            "n": len(places),
            "conditions": {
                name: {
                    main: float(np.mean([results[place].values[main] for place in places])),
                    "outcomes": dict(Counter(results[place].outcome.value for place in places)),
                }
                for name, results in part.results.items()
            },
        }
        for kind, places in _by_type(part, findings).items()
    }


def types_table(part: Part, findings: Findings) -> ResultTable:
    """By type: the main figure under base and the condition looked at, and what became of it there."""
    condition, main = findings.looked_at, findings.main_metric(part)
    base = findings.its_base
    groups = _by_type(part, findings)
    kept = dict(list(groups.items())[:_TYPES_SHOWN])
    if rest := list(groups)[_TYPES_SHOWN:]:
        kept[f"({len(rest)} further types)"] = [place for kind in rest for place in groups[kind]]
    rows = []
    for kind, places in kept.items():
        own = [part.results[condition.name][place] for place in places]
        counts = Counter(result.outcome for result in own)
        values = {condition.name: float(np.mean([result.values[main] for result in own]))}
        values[base.name] = float(np.mean([part.results[base.name][place].values[main] for place in places]))
        rows.append(
            Row(
                name=kind,
                label=kind,
                n=len(places),
                values=values | {item.value: float(counts[item]) for item in _kinds(part)},
            )
        )
    label = "exact match" if part.free else "accuracy"
    shown_conditions = dict.fromkeys((base.name, condition.name))
    return ResultTable(
        name=f"{part.name}.types",
        title=f"By type of question, {'free answers' if part.free else 'choices'}",
        metrics=[
            *(Metric(name, f"{label}, {name}") for name in shown_conditions),
            *(Metric(kind.value, kind.label, kind is not Outcome.CORRECT, 0) for kind in _kinds(part)),
        ],
        rows=rows,
        notes=[f"What became of them is under {condition.name}."],
    )
