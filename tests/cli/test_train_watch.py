"""`replug train` watched: another metric decides, a run stops early and resumes stopped, and its report is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from replug_client.cli.app import main
from replug_client.training import run
from tests.cli.test_train import (  # noqa: F401 (a fixture)
    assert_same_weights,
    basic,
    place,
    read_run,
    replug,
)
from tests.cli.test_train_modes import interrupted
from tests.training.test_report import Page

# Nothing is learned, so no validation is better than the one before it.
IDLE = ["--learning_rate", "0", "--best_metric", "mrr", "--early_stopping", "2", "--train", "query"]


@pytest.fixture(scope="module")
def stopped(place: Path) -> Path:  # noqa: F811
    """A run of at most 8 steps that validates every second one, and whose patience ends at the third."""
    assert replug(*basic(place, "idle"), *IDLE) == 0
    return place / "idle"


def test_a_run_without_a_new_best_stops_early_and_its_record_says_so(stopped: Path) -> None:
    record = read_run(stopped)
    figures = record["figures"]
    assert (figures["steps"], figures["best_step"]) == (6, 2)
    assert [entry["step"] for entry in figures["validation"]] == [0, 2, 4, 6]
    assert record["options"]["watch"] == {"best_metric": "mrr", "early_stopping": 2, "stale_after": 1000}
    for entry in figures["validation"]:
        assert entry["selection"] == pytest.approx(-entry["mrr"] + 1e-6 * entry["kl"])
        assert {"recall_at_10", "mrr_minus_base", "expected_score"} <= entry.keys()
    assert "churn" not in figures["validation"][0] and figures["validation"][1]["churn"] == 0.0
    assert isinstance(figures["alarms"], list)
    assert figures["seconds_scoring"] >= 0


def test_the_report_is_beside_the_record(stopped: Path) -> None:
    page = Page((stopped / "report.html").read_text("utf-8"))
    text = " ".join(page.text)
    for said in ("stopped early", "6 of 8", "Rank moves", "Where the time goes", "steps.learning_rate"):
        assert said in text
    assert page.count("polyline") >= 10
    assert page.count("tr", "kept") == 1


def test_what_was_cut_short_after_its_early_stop_takes_no_further_step(
    stopped: Path,
    place: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "save_tuned", stop)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            main([*basic(place, "cut_idle"), *IDLE])
    assert replug(*basic(place, "cut_idle"), *IDLE, "--resume") == 0
    whole, resumed = read_run(stopped)["figures"], read_run(place / "cut_idle")["figures"]
    for name in ("steps", "best_step", "validation"):
        assert without_times(resumed[name]) == without_times(whole[name])
    assert_same_weights(stopped, place / "cut_idle")
    assert "Rank moves" in (place / "cut_idle" / "report.html").read_text("utf-8")


def without_times(value: object) -> object:
    """Validations without how long they took."""
    if not isinstance(value, list):
        return value
    times = ("runtime", "samples_per_second", "steps_per_second")
    return [{name: figure for name, figure in entry.items() if name not in times} for entry in value]


def test_a_resumed_run_finds_the_same_churn(
    place: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last validation is kept with the checkpoint: ranks are compared across the interruption."""
    options = ["--max_steps", "4", "--learning_rate", "0.01"]
    assert replug(*basic(place, "whole_churn"), *options) == 0
    interrupted(monkeypatch, [*basic(place, "cut_churn"), *options], 2)
    assert replug(*basic(place, "cut_churn"), *options, "--resume") == 0
    whole, resumed = (read_run(place / name)["figures"] for name in ("whole_churn", "cut_churn"))
    assert whole["validation"][-1]["churn"] > 0
    assert without_times(resumed["validation"]) == without_times(whole["validation"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--early_stopping", "2", "--max_validation", "0"], "--early_stopping 2 needs validation examples"),
        (["--best_metric", "kl", "--keep", "last"], "--best_metric kl decides nothing"),
        (["--best_metric", "accuracy"], "recall_at_10"),
    ],
)
def test_what_cannot_be_watched_is_said(
    options: list[str],
    expected: str,
    place: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert replug(*basic(place, "unwatched"), *options) == 2
    assert expected in capsys.readouterr().err
