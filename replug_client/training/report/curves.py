"""Which figures of the trainer's log are drawn together, and how they are to be read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from replug_client.pages.charts import Chart, Line
from replug_client.retriever.lexical_weights import GROUPS

History = Sequence[Mapping[str, float]]

_SHOWN_ELSEWHERE = {"epoch", "step", "total_flos", "train_loss", "eval_selection"}
_TIMINGS = ("_runtime", "_per_second")


def points(history: History, name: str) -> list[tuple[float, float]]:
    """``(step, value)`` of every entry that has a finite figure of this name, the last one of each step."""
    found = {
        float(entry["step"]): float(entry[name])
        for entry in history
        if name in entry and "step" in entry and math.isfinite(entry[name])
    }
    return sorted(found.items())


def line(history: History, name: str, called: str) -> Line:
    """A figure as a line, with its interval where the log has ``<name>_low`` and ``<name>_high``."""
    low, high = (dict(points(history, f"{name}_{end}")) for end in ("low", "high"))
    band = [(step, low[step], high[step]) for step in low if step in high]
    return Line(called, points(history, name), band)


def held_out(history: History) -> list[Chart]:
    """Does it work: on examples that took no part in the training, over the whole index."""
    bits = line(history, "eval_bits_per_byte", "now")
    gains = dict(points(history, "eval_base_minus_current"))
    base = next((value + gains[step] for step, value in bits.points if step in gains), None)
    return [
        Chart(
            "Bits per byte",
            "of the continuation behind the first passage; lower is better",
            [bits],
            None if base is None else ("base", base),
        ),
        Chart(
            "Gain over the base",
            "base \u2212 now, bits per byte; band: 95 % interval over documents",
            [line(history, "eval_base_minus_current", "gain")],
            ("no gain", 0.0),
        ),
        Chart(
            "The LM\u2019s own best passage",
            "found among the first ten (recall), and mean of 1 / rank (MRR); higher is better",
            [line(history, "eval_recall_at_10", "recall@10"), line(history, "eval_mrr", "MRR")],
            limits=(0.0,),
        ),
        Chart(
            "MRR, gain over the base",
            "now \u2212 base; band: 95 % interval over documents",
            [line(history, "eval_mrr_minus_base", "gain")],
            ("no gain", 0.0),
        ),
        Chart(
            "Expected score under P",
            "less the mean of the candidates, in the score\u2019s unit; 0 is choosing blindly, higher is better",
            [line(history, "eval_expected_score", "held out"), line(history, "expected_score", "training")],
            ("blind", 0.0),
        ),
        Chart(
            "Held-out KL",
            "of P and Q over the base\u2019s own candidates, nats; lower is better",
            [line(history, "eval_kl", "KL")],
        ),
    ]


def learning(history: History) -> list[Chart]:
    """What it learns from."""
    words = [line(history, f"lexical_{name}", name) for name in GROUPS]
    of_words = Chart(
        "Weights of words",
        "beside the vectors\u2019 similarity; 0 is the encoder alone",
        words,
        ("none", 0.0),
    )
    return [
        Chart("Training loss", "mean over the steps of a log entry", [line(history, "loss", "loss")]),
        Chart(
            "Entropy of P and Q",
            "share of log K: 1 is uniform, 0 one-hot; P should begin where Q is",
            [line(history, "p_entropy", "P"), line(history, "q_entropy", "Q")],
            limits=(0.0, 1.0),
        ),
        Chart(
            "Rank correlation of P with Q",
            "Spearman\u2019s, over each example\u2019s candidates; higher is better",
            [line(history, "rank_correlation", "correlation")],
            ("none", 0.0),
        ),
        Chart(
            "Targets without a message",
            "share of examples whose Q is uniform, or one-hot",
            [line(history, "uniform_targets", "uniform"), line(history, "one_hot_targets", "one-hot")],
            limits=(0.0, 1.0),
        ),
        *([of_words] if words[0].points else []),
    ]


def stability(history: History) -> list[Chart]:
    """Is it steady."""
    return [
        Chart(
            "Distinct first passages",
            "share of the distinct queries; falling means that all queries find the same",
            [
                line(history, "unique_first_passages", "training"),
                line(history, "eval_unique", "held out"),
            ],
            limits=(0.0,),
        ),
        Chart(
            "Passages that changed",
            "first passage is not the base\u2019s (changed); first ten are new since the last validation (churn)",
            [line(history, "eval_changed", "changed"), line(history, "eval_churn", "churn")],
            limits=(0.0, 1.0),
        ),
        Chart("Learning rate", "", [line(history, "learning_rate", "rate")], limits=(0.0,)),
        Chart("Gradient norm", "before clipping", [line(history, "grad_norm", "norm")], limits=(0.0,)),
        Chart(
            "Staleness",
            "optimiser steps since the last one\u2019s candidates were retrieved, and since the weights of the index",
            [line(history, "staleness_steps", "candidates"), line(history, "index_age_steps", "index")],
            limits=(0.0,),
        ),
    ]


def others(history: History, drawn: Sequence[Chart]) -> list[Chart]:
    """Figures of the log that no chart above shows, each by itself, so that nothing that is logged is hidden."""
    shown = {tuple(item.points) for chart in drawn for item in chart.lines}
    names = dict.fromkeys(name for entry in history for name in entry)
    charts = []
    for name in names:
        own = name.endswith(("_low", "_high", *_TIMINGS)) or name.startswith("train_")
        if own or name in _SHOWN_ELSEWHERE:
            continue
        found = line(history, name, name.removeprefix("eval_"))
        if found.points and tuple(found.points) not in shown:
            where = "held out" if name.startswith("eval_") else "training"
            charts.append(Chart(name.removeprefix("eval_").replace("_", " "), where, [found]))
    return charts
