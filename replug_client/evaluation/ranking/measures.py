"""Measures of a ranking through ``ir_measures``, query by query, with one order for all of them.

Order: by score, as 32-bit floats; equal scores by passage id, descending, which is what trec_eval does and so what
BEIR reports. A query without results counts 0. A passage without a judgement is not relevant. A gain above 0 is
relevant for the measures that know no grades; nDCG takes it as it is, discounted by log2(rank + 1).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import ir_measures
import numpy as np
import numpy.typing as npt

from replug_client.errors import OptionError

Run = Mapping[str, Mapping[str, float]]
"""Query id to passage id to score; the higher the better."""
Ranked = Mapping[str, Sequence[tuple[str, float]]]
"""Query id to passages with their scores, best first."""
Qrels = Mapping[str, Mapping[str, int]]
Floats = npt.NDArray[np.float64]

DEFAULT_MEASURES = ("nDCG@10", "RR@10", "R@100", "AP@100")
_ALIASES = {
    "ndcg": "nDCG",
    "mrr": "RR",
    "rr": "RR",
    "recall": "R",
    "r": "R",
    "map": "AP",
    "ap": "AP",
    "precision": "P",
    "p": "P",
    "hit": "Success",
    "success": "Success",
    "rprec": "Rprec",
    "judged": "Judged",
}
_NAME = re.compile(r"([A-Za-z]+)(?:@([1-9][0-9]{0,6}))?")
_WITHOUT_CUTOFF = ("nDCG", "RR", "AP", "Rprec")


def measure_name(text: str) -> str:
    """The canonical name of a measure: ``mrr@10`` is ``RR@10``, ``Hit@5`` is ``Success@5``, ``MAP`` is ``AP``.

    Raises:
        OptionError: not a measure that is known here.
    """
    found = _NAME.fullmatch(text.strip())
    name = None if found is None else _ALIASES.get(found[1].lower())
    if found is None or name is None or (found[2] is None and name not in _WITHOUT_CUTOFF):
        raise OptionError(
            f"--metrics {text}: expected nDCG@k, RR@k (MRR@k), R@k (Recall@k), AP@k (MAP@k), P@k, Success@k (Hit@k) "
            "or Judged@k, with k at least 1; or nDCG, RR, AP or Rprec over all that was retrieved."
        )
    if found[2] is not None and name == "Rprec":
        raise OptionError(f"--metrics {text}: Rprec looks at as many passages as are relevant; leave @k out.")
    return name if found[2] is None else f"{name}@{found[2]}"


def depth_needed(measures: Iterable[str]) -> int:
    """How many passages a query must have for these measures; those without a cut-off need none in particular."""
    return max((int(name.partition("@")[2] or 0) for name in measures), default=0)


def ranked(scores: Mapping[str, float], k: int | None = None) -> list[tuple[str, float]]:
    """One query's passages in trec_eval's order; the first k of them."""
    by_id = sorted(scores.items(), reverse=True)
    return sorted(by_id, key=lambda item: -np.float32(item[1]))[:k]


def per_query(measures: Sequence[str], qrels: Qrels, run: Ranked) -> dict[str, Floats]:
    """Each measure of each judged query.

    Args:
        measures: Names as :func:`measure_name` gives them.
        qrels: The judgements; every query in it counts.
        run: What was retrieved, in order; queries that are not in ``qrels`` are passed over.

    Returns:
        Measure to ``(len(qrels),)``, in the order of ``qrels``.
    """
    places = {query: place for place, query in enumerate(qrels)}
    values = {name: np.zeros(len(places)) for name in measures}
    parsed = {ir_measures.parse_measure(name): name for name in measures}
    # Providers break ties each in their own way. They are given ranks, so that there are none.
    by_rank = {
        query: {passage: float(-rank) for rank, (passage, _) in enumerate(found)}
        for query, found in run.items()
        if query in places and found
    }
    # Given nothing at all, the providers disagree; there is nothing to compute then.
    judged = {query: dict(gains) for query, gains in qrels.items()}
    for metric in ir_measures.iter_calc(list(parsed), judged, by_rank) if by_rank else ():
        values[parsed[metric.measure]][places[metric.query_id]] = metric.value
    return values
