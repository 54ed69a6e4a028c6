"""What is wrong with a run, said while it can still be mended: each alarm with advice.

Alarms are found in the trainer's log entries alone, so that a resumed run, the report and the record all
find the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from replug_client.training.modes import ModeOptions, RefreshSchedule

Entry = Mapping[str, float]

UNIFORM_SHARE = 0.5
ONE_HOT_SHARE = 0.5
UNIQUE_SHARE = 0.05
UNIQUE_FALL = 0.5
CHURN = 0.5
_COLLAPSE_ADVICE = "lower --learning_rate, or raise --temperature_score until P is as flat as Q"


@dataclass(frozen=True, slots=True)
class Alarm:
    """One thing that is wrong.

    Attributes:
        name: What it is, the same in each run.
        first_step: Optimiser step at which it was first seen.
        last_step: And last.
        message: What was found, and what mends it; of the last time it was seen.
    """

    name: str
    first_step: int
    last_step: int
    message: str


@dataclass(frozen=True, slots=True)
class Freshness:
    """How a run keeps its candidates and its index up with the weights, and so what would make them younger.

    Attributes:
        stale_after: Optimiser steps after which an index, or candidates, are called old.
        refresh_every: Of the run; 0 keeps the base's candidates.
        modes: Of the run.
    """

    stale_after: int = 1000
    refresh_every: int = 100
    modes: ModeOptions = field(default_factory=ModeOptions)

    def for_candidates(self) -> str | None:
        """What makes candidates younger; None where they are meant to stay the base's.

        Those of a generation are retrieved when the one before it begins, so the last of them are twice as old as one
        generation is long.
        """
        if not self.refresh_every:
            return None
        if self.stale_after < 2:
            return (
                "raise --stale_after: candidates are scored ahead of their steps, and are 2 steps old at best"
            )
        flag = "--refresh_every" if self.modes.retrieve_every is None else "--retrieve_every"
        return (
            f"lower {flag} to {self.stale_after // 2} at most, as candidates are scored ahead of their steps"
        )

    def for_index(self) -> str:
        """What makes the passages' index younger, where there is one that ages."""
        if not self.refresh_every:
            return "--refresh_every 0 keeps the base's: give a number of steps, or raise --stale_after if that is meant"
        doubles = self.modes.refresh_schedule is RefreshSchedule.DOUBLING
        ways = ["use --refresh_schedule constant" if doubles else "lower --refresh_every"]
        return ", or ".join([*ways, *["leave out --background_refresh"] * self.modes.background_refresh])


@dataclass(slots=True)
class Watch:
    """Looks at log entries one after another.

    Attributes:
        freshness: How the run keeps up with its weights.
        alarms: What was found so far, by name.
    """

    freshness: Freshness = field(default_factory=Freshness)
    alarms: dict[str, Alarm] = field(default_factory=dict)
    _first: dict[str, float] = field(default_factory=dict)
    _best: float = float("inf")
    _churned: int = 0

    def observe(self, step: int, entry: Entry) -> list[Alarm]:
        """Look at one entry of the log.

        Returns:
            The alarms that this entry raises and no earlier one did.
        """
        new = []
        for name, rule in _RULES.items():
            message = rule(self, entry)
            if message is None:
                continue
            known = self.alarms.get(name)
            alarm = Alarm(name, step, step, message)
            if known is None:
                new.append(alarm)
            else:
                alarm = replace(alarm, first_step=known.first_step)
            self.alarms[name] = alarm
        return new

    def uniform_targets(self, entry: Entry) -> str | None:
        """Q says nothing for most examples."""
        share = entry.get("uniform_targets", 0.0)
        if share <= UNIFORM_SHARE:
            return None
        return (
            f"{share:.0%} of the targets Q are uniform, so they teach nothing: lower --temperature_gold, or use "
            "--score mean instead of probability"
        )

    def one_hot_targets(self, entry: Entry) -> str | None:
        """Q names a single passage for most examples."""
        share = entry.get("one_hot_targets", 0.0)
        if share <= ONE_HOT_SHARE:
            return None
        return f"{share:.0%} of the targets Q name a single passage: raise --temperature_gold"

    def collapse(self, entry: Entry) -> str | None:
        """All queries find the same few passages."""
        for name in ("unique_first_passages", "eval_unique"):
            if (share := entry.get(name)) is None:
                continue
            first = self._first.setdefault(name, share)
            if share < UNIQUE_SHARE:
                return (
                    f"the first passages of all queries are only {share:.1%} distinct: the retriever is "
                    f"collapsing; {_COLLAPSE_ADVICE}"
                )
            if share < UNIQUE_FALL * first:
                return (
                    f"the share of distinct first passages fell from {first:.1%} to {share:.1%}: the retriever is "
                    f"collapsing; {_COLLAPSE_ADVICE}"
                )
        return None

    def worse_than_base(self, entry: Entry) -> str | None:
        """Held-out bits per byte are higher than the base's, by more than chance."""
        high = entry.get("eval_base_minus_current_high", 0.0)
        if high >= 0.0:
            return None
        return (
            f"on held-out examples the retriever is worse than its base, by {-entry['eval_base_minus_current']:.4f} "
            f"bits per byte (at least {-high:.4f} with 95 % confidence): lower --learning_rate; see that P is as "
            "flat as Q (entropy P, Q in the log; --temperature_score); hold the order over the whole index with "
            "--denominator batch --kl q-p; give it candidates that it misses itself (--bm25_docs, --random_docs)"
        )

    def stale(self, entry: Entry) -> str | None:
        """The index or the candidates lag behind the weights."""
        freshness = self.freshness
        index, candidates = entry.get("index_age_steps", 0.0), entry.get("staleness_steps", 0.0)
        age, of_index = max(index, candidates), index >= candidates
        what = "passages' index is of weights" if of_index else "candidates are from a retrieval"
        advice = freshness.for_index() if of_index else freshness.for_candidates()
        if age <= freshness.stale_after or advice is None:
            return None
        return (
            f"the {what} of {age:.0f} steps ago (--stale_after {freshness.stale_after}), and the retriever has "
            f"moved on since: {advice}"
        )

    def rank_churn(self, entry: Entry) -> str | None:
        """Twice in a row most of what is found is new, and none of it better."""
        if (chosen := entry.get("eval_selection")) is None:
            return None
        better, self._best = chosen < self._best, min(chosen, self._best)
        share = entry.get("eval_churn", 0.0)
        self._churned = 0 if better or share <= CHURN else self._churned + 1
        if self._churned < 2:
            return None
        return (
            f"{share:.0%} of the passages found first are others than at the last validation, again without getting "
            "better: ranks churn; lower --learning_rate, or raise --gradient_accumulation_steps"
        )


_RULES: dict[str, Callable[[Watch, Entry], str | None]] = {
    "uniform_targets": Watch.uniform_targets,
    "one_hot_targets": Watch.one_hot_targets,
    "collapse": Watch.collapse,
    "worse_than_base": Watch.worse_than_base,
    "stale": Watch.stale,
    "rank_churn": Watch.rank_churn,
}


def alarms_of(history: Sequence[Entry], freshness: Freshness) -> list[Alarm]:
    """The alarms of a whole run, in the order in which they were raised; entries as the trainer keeps them."""
    watch = Watch(freshness)
    for entry in history:
        watch.observe(int(entry.get("step", 0)), entry)
    return sorted(watch.alarms.values(), key=lambda alarm: alarm.first_step)
