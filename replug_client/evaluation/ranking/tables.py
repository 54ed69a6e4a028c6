"""Figures as tables: one a data set, their mean over data sets, and how sure the differences are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from replug_client.evaluation.ranking.evaluate import Figures
from replug_client.evaluation.ranking.fusion import Fusion
from replug_client.evaluation.ranking.search import BASE, TUNED, label_of
from replug_client.evaluation.results import Difference, Metric, ResultTable, Row
from replug_client.statistics import holm, paired_bootstrap, paired_randomisation

_P_DIGITS = 4
_ALPHA = 0.05


@dataclass(frozen=True, slots=True)
class Comparing:
    """How rows are compared.

    Attributes:
        names: Retrievers, in the order of the rows.
        measures: In the order of the columns.
        fusion: How fused rows were fused.
        resamples: Of the bootstrap, and of the randomisation test.
        seed: Of both.
    """

    names: Sequence[str]
    measures: Sequence[str]
    fusion: Fusion
    resamples: int = 10_000
    seed: int = 0

    @property
    def baseline(self) -> str:
        """The base retriever where it is there, else the first row."""
        return BASE if BASE in self.names else self.names[0]


def data_set_tables(figures: Figures, how: Comparing, *, of_several: bool = False) -> list[ResultTable]:
    """The table of a data set; and, where there is something to compare, the table of how sure the differences are.

    ``of_several``: what was left out is said below this table, too, since the result as a whole only has the sums.
    """
    certain = _certainty(figures, how)
    rows = []
    for name in how.names:
        values = {measure: figures.mean(name, measure) for measure in how.measures}
        first = certain.get((name, how.measures[0]))
        rows.append(
            Row(
                name=name,
                label=label_of(name, how.fusion),
                n=len(figures.queries),
                values=values,
                differences={} if first is None else {how.measures[0]: first.difference},
                emphasis=name == TUNED,
            )
        )
    over = f", mean over {figures.parts}" if figures.parts else ""
    table = ResultTable(
        name=figures.name,
        title=f"{figures.name}{over}",
        metrics=[Metric(measure, measure) for measure in how.measures],
        rows=rows,
        baseline=how.baseline,
        notes=[*figures.notes, *(_left_out_note(figures) if of_several else [])],
    )
    return [table, *([_certainty_table(figures, how, certain)] if certain else [])]


def _left_out_note(figures: Figures) -> list[str]:
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in figures.left_out.items())
    return [f"Left out: {left_out}."] if left_out else []


@dataclass(frozen=True, slots=True)
class _Certain:
    difference: Difference
    p: float
    p_holm: float


def _certainty(figures: Figures, how: Comparing) -> dict[tuple[str, str], _Certain]:
    """For every other row and measure: the interval of its difference to the baseline, and p before and after Holm."""
    # What share was judged is no figure of merit, and would only make Holm's correction dearer.
    compared = [measure for measure in how.measures if not measure.startswith("Judged")]
    pairs = [(name, measure) for name in how.names if name != how.baseline for measure in compared]
    differences, p_values = [], []
    for name, measure in pairs:
        first = figures.values[name][measure] * figures.weights
        second = figures.values[how.baseline][measure] * figures.weights
        bootstrap = paired_bootstrap(
            first, second, figures.weights, clusters=figures.clusters, resamples=how.resamples, seed=how.seed
        )
        differences.append(Difference.of(bootstrap, figures.units))
        p_values.append(
            paired_randomisation(
                first,
                second,
                figures.weights,
                clusters=figures.clusters,
                resamples=how.resamples,
                seed=how.seed,
            )
        )
    adjusted = holm(p_values)
    return {
        pair: _Certain(*found)
        for pair, found in zip(pairs, zip(differences, p_values, adjusted, strict=True), strict=True)
    }


def _certainty_table(
    figures: Figures, how: Comparing, certain: dict[tuple[str, str], _Certain]
) -> ResultTable:
    rows = [
        Row(
            name=f"{name}.{measure}",
            label=f"{label_of(name, how.fusion)}, {measure}",
            n=len(figures.queries),
            values={"value": figures.mean(name, measure), "p": found.p, "p_holm": found.p_holm},
            differences={"value": found.difference},
            emphasis=name == TUNED,
        )
        for (name, measure), found in certain.items()
    ]
    units = len(set(figures.clusters)) if figures.clusters is not None else len(figures.queries)
    return ResultTable(
        name=f"{figures.name}.certainty",
        title=f"{figures.name}: how sure the differences to {label_of(how.baseline, how.fusion)} are",
        metrics=[
            Metric("value", "value"),
            Metric("p", "p", lower_is_better=True, digits=_P_DIGITS),
            Metric("p_holm", "p (Holm)", lower_is_better=True, digits=_P_DIGITS),
        ],
        rows=rows,
        baseline=how.baseline,
        notes=[
            f"Intervals: paired percentile bootstrap over {units:,} {figures.units} ({how.resamples:,} resamples). p: "
            f"paired randomisation test over them, two-sided; p (Holm) allows for the {len(rows)} comparisons of this "
            "table." + (" With so few of them, intervals are too narrow." if units < 20 else "")
        ],
    )


def over_data_sets(figures: Sequence[Figures], how: Comparing) -> Figures:
    """All data sets as one, each counting the same whatever its number of queries, as BEIR averages.

    The data sets are taken as they are, not as a sample of all there could be: queries are resampled.
    """
    return Figures(
        name="all data sets",
        queries=[(f"{one.name}/{name}", id_) for one in figures for name, id_ in one.queries],
        values={
            name: {
                measure: np.concatenate([one.values[name][measure] for one in figures])
                for measure in how.measures
            }
            for name in how.names
        },
        weights=np.concatenate([one.weights / one.weights.sum() for one in figures]),
        units="queries"
        if all(one.clusters is None for one in figures)
        else "queries, repositories and documents",
        clusters=None
        if all(one.clusters is None for one in figures)
        else [
            f"{number}/{cluster}"
            for number, one in enumerate(figures)
            for cluster in (one.clusters or [id_ for _, id_ in one.queries])
        ],
        parts=f"{len(figures)} data sets",
    )


def verdict(figures: Figures, tables: Sequence[ResultTable], how: Comparing) -> str:
    """Whether tuning helped retrieval, in one sentence; nothing where there is no tuned retriever or no base.

    Clear is what both say, the interval and the test: with few queries, intervals are too narrow.
    """
    if not {BASE, TUNED} <= set(how.names) or len(tables) < 2:
        return ""
    measure = how.measures[0]
    row = next((row for row in tables[1].rows if row.name == f"{TUNED}.{measure}"), None)
    if row is None:
        return ""
    difference, p = row.differences["value"], row.values["p"]
    better = "the tuned retriever ranks better" if difference.mean > 0 else "the tuned retriever ranks worse"
    said = better if difference.excludes_zero and p < _ALPHA else "no clear difference"
    return f"{figures.name}, {measure}: tuned - base {difference}, p = {p:.{_P_DIGITS}f}: {said}."


def details(figures: Sequence[Figures]) -> dict[str, Any]:
    """What JSON keeps beside the tables: means of each collection of a data set, and times."""
    return {
        one.name: {
            "queries": len(one.queries),
            "seconds": dict(one.seconds),
            "collections": _by_collection(one) if one.parts else {},
        }
        for one in figures
    }


def _by_collection(figures: Figures) -> dict[str, Any]:
    names = np.array([name for name, _ in figures.queries])
    return {
        collection: {
            "queries": int((names == collection).sum()),
            **{
                name: {
                    measure: float(array[names == collection].mean()) for measure, array in of_name.items()
                }
                for name, of_name in figures.values.items()
            },
        }
        for collection in dict.fromkeys(names.tolist())
    }
