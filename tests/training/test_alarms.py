"""Alarms: raised where something is wrong and nowhere else, each once, with what mends it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from replug_client.training.alarms import Entry, Freshness, Watch, alarms_of
from replug_client.training.callbacks import EarlyStopping, LogWithAdvice, is_exhausted
from replug_client.training.modes import ModeOptions, RefreshSchedule

HEALTHY = {
    "uniform_targets": 0.1,
    "one_hot_targets": 0.1,
    "unique_first_passages": 0.5,
    "staleness_steps": 99.0,
    "eval_unique": 0.6,
    "eval_base_minus_current": -0.001,
    "eval_base_minus_current_high": 0.002,
    "eval_selection": 1.0,
    "eval_churn": 0.9,
}


def validation(selection: float, churn: float) -> Entry:
    return {"eval_selection": selection, "eval_churn": churn}


@pytest.mark.parametrize(
    ("name", "history", "advice"),
    [
        ("uniform_targets", [{"uniform_targets": 0.6}], "lower --temperature_gold"),
        ("one_hot_targets", [{"one_hot_targets": 0.9}], "raise --temperature_gold"),
        ("collapse", [{"unique_first_passages": 0.01}], "collapsing; lower --learning_rate"),
        ("collapse", [{"unique_first_passages": 0.8}, {"unique_first_passages": 0.3}], "from 80.0% to 30.0%"),
        ("collapse", [{"eval_unique": 0.8}, {"eval_unique": 0.3}], "from 80.0% to 30.0%"),
        (
            "worse_than_base",
            [{"eval_base_minus_current": -0.01, "eval_base_minus_current_high": -0.004}],
            "by 0.0100 bits per byte (at least 0.0040",
        ),
        ("stale", [{"staleness_steps": 101.0}], "candidates are from a retrieval of 101 steps ago"),
        (
            "stale",
            [{"staleness_steps": 9.0, "index_age_steps": 102.0}],
            "index is of weights of 102 steps ago",
        ),
        (
            "rank_churn",
            [validation(1.0, 0.0), validation(1.1, 0.9), validation(1.0, 0.8)],
            "80% of the passages",
        ),
    ],
)
def test_each_alarm_says_what_mends_it(name: str, history: Sequence[Entry], advice: str) -> None:
    (alarm,) = alarms_of([entry | {"step": 10.0 * n} for n, entry in enumerate(history)], Freshness(100))
    assert alarm.name == name
    assert advice in alarm.message
    assert alarm.first_step == alarm.last_step == 10 * (len(history) - 1)


@pytest.mark.parametrize(
    "history",
    [
        [],
        [{}],
        [HEALTHY],
        [validation(1.0, 0.9), validation(0.9, 0.9), validation(0.8, 0.9)],  # much is new, and better
        [
            validation(1.0, 0.0),
            validation(1.1, 0.9),
            validation(1.2, 0.1),
            validation(1.2, 0.9),
        ],  # not in a row
        [{"unique_first_passages": 0.8}, {"unique_first_passages": 0.5}],
        [{"eval_base_minus_current": -0.01}],  # one document: no interval, no certainty
    ],
)
def test_a_healthy_run_has_none(history: Sequence[Entry]) -> None:
    assert alarms_of(history, Freshness(100)) == []


CANDIDATES, INDEX = {"staleness_steps": 300.0, "index_age_steps": 200.0}, {"index_age_steps": 300.0}
NEVER = {"staleness_steps": 300.0, "index_age_steps": 300.0}
DOUBLING = ModeOptions(refresh_schedule=RefreshSchedule.DOUBLING)


@pytest.mark.parametrize(
    ("freshness", "entry", "advice"),
    [
        (Freshness(100, 150), CANDIDATES, "lower --refresh_every to 50 at most"),
        (Freshness(1, 1), CANDIDATES, "raise --stale_after: candidates are scored ahead"),
        (
            Freshness(100, 450, ModeOptions(retrieve_every=150)),
            CANDIDATES,
            "lower --retrieve_every to 50",
        ),
        (Freshness(100, 450), INDEX, ": lower --refresh_every"),
        (Freshness(100, 100, DOUBLING), INDEX, ": use --refresh_schedule constant"),
        (
            Freshness(100, 50, ModeOptions(background_refresh=True)),
            INDEX,
            "lower --refresh_every, or leave out --background_refresh",
        ),
        (Freshness(100, 0), NEVER, "--refresh_every 0 keeps the base's: give a number of steps"),
    ],
)
def test_what_is_old_is_made_younger_by_what_the_run_can_change(
    freshness: Freshness, entry: Entry, advice: str
) -> None:
    (alarm,) = alarms_of([entry], freshness)
    assert alarm.name == "stale"
    assert advice in alarm.message


def test_candidates_that_are_meant_to_stay_the_bases_are_never_old() -> None:
    assert alarms_of([{"staleness_steps": 9999.0}], Freshness(100, refresh_every=0)) == []


def test_an_alarm_is_new_once_and_keeps_its_last_step_and_message() -> None:
    watch = Watch()
    assert [alarm.name for alarm in watch.observe(5, {"uniform_targets": 0.6})] == ["uniform_targets"]
    assert watch.observe(6, {"uniform_targets": 0.1}) == []
    assert watch.observe(9, {"uniform_targets": 0.7}) == []
    alarm = watch.alarms["uniform_targets"]
    assert (alarm.first_step, alarm.last_step) == (5, 9)
    assert alarm.message.startswith("70%")


def log(callback: LogWithAdvice, logs: dict[str, float]) -> None:
    state = TrainerState(max_steps=9)
    callback.on_log(TrainingArguments(use_cpu=True), state, TrainerControl(), logs=logs)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_each_piece_of_advice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    callback = LogWithAdvice()
    with caplog.at_level(logging.INFO):
        for share in (0.01, 0.02, 0.03):
            log(callback, {"loss": 1.0, "unique_first_passages": share})
    assert len(warnings(caplog)) == 1
    assert "unique first 0.03" in caplog.text


def test_a_resumed_run_knows_what_was_found_before(caplog: pytest.LogCaptureFixture) -> None:
    callback = LogWithAdvice()
    before = [{"step": 1.0, "unique_first_passages": 0.9}, {"step": 2.0, "uniform_targets": 0.9}]
    state = TrainerState(log_history=before)
    callback.on_train_begin(TrainingArguments(use_cpu=True), state, TrainerControl())
    log(callback, {"uniform_targets": 0.9})
    assert warnings(caplog) == []
    log(callback, {"unique_first_passages": 0.4})
    (warning,) = warnings(caplog)
    assert "from 90.0% to 40.0%" in warning


def history(*selections: float) -> list[dict[str, float]]:
    """Validations at the steps 0, 1, 2, ..., with training logs between them."""
    return [
        entry
        for step, value in enumerate(selections)
        for entry in ({"step": float(step), "loss": 1.0}, {"step": float(step), "eval_selection": value})
    ]


@pytest.mark.parametrize(
    ("selections", "patience", "stops"),
    [
        ([5.0, 3.0, 2.0, 1.0], 1, False),
        ([5.0, 3.0, 3.0], 1, True),  # as good as the best is no new best
        ([5.0, 3.0, 4.0], 2, False),
        ([5.0, 3.0, 4.0, 3.5], 2, True),
        ([5.0, 3.0, 4.0, 2.0, 2.5], 2, False),
        ([1.0, 3.0], 1, False),  # worse than the base, but the first that could be kept
        ([1.0], 1, False),
        ([], 1, False),
        ([5.0, 3.0, 4.0, 4.0, 4.0], 0, False),
    ],
)
def test_patience_counts_validations_since_the_best(
    selections: list[float], patience: int, stops: bool
) -> None:
    entries = history(*selections)
    assert is_exhausted(entries, patience) is stops
    control = TrainerControl()
    state = TrainerState(log_history=entries)
    EarlyStopping(patience).on_evaluate(TrainingArguments(use_cpu=True), state, control)
    assert control.should_training_stop is stops
