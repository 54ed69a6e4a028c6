"""The flags of the objective: what they become, and what is refused before anything is read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from replug_client.cli.app import main
from replug_client.errors import OptionError
from replug_client.training import run
from replug_client.training.choices import Denominator, Direction, Objective
from replug_client.training.options import StepOptions, TargetOptions, TrainOptions
from tests.cli.test_train import basic, place, read_run, replug  # noqa: F401  (place is a fixture)


def asked(monkeypatch: pytest.MonkeyPatch, *flags: str) -> tuple[int, TrainOptions | None]:
    """The exit status, and the options that a run would have begun with."""
    seen: list[TrainOptions] = []
    monkeypatch.setattr(run, "train_retriever", seen.append)
    needed = ["train", "--passages", "p", "--data", "d", "--passages_embeddings", "e", "--model", "m"]
    with pytest.raises(SystemExit) as end:
        main([*needed, *flags])
    return int(end.value.code or 0), seen[0] if seen else None


@pytest.mark.parametrize("flags", [[], ["--temperature_gold", "auto", "--temperature_score", "auto"]])
def test_auto_is_what_is_done_without_the_flag(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, options = asked(monkeypatch, *flags)
    assert code == 0 and options is not None
    assert options.target == TargetOptions(
        kl=Direction.Q_P, denominator=Denominator.BATCH, index_negatives=3000
    )
    assert options.target.temperature_gold is None


def test_a_server_is_asked_from_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    code, options = asked(monkeypatch)
    assert code == 0 and options is not None
    assert options.supervisor.apart


@pytest.mark.parametrize(
    ("flags", "kl", "denominator", "negatives"),
    [
        ("--kl p-q", Direction.P_Q, Denominator.CANDIDATES, 0),
        ("--denominator candidates", Direction.Q_P, Denominator.CANDIDATES, 0),
        ("--train both", Direction.Q_P, Denominator.BATCH, 0),
        ("--train head", Direction.Q_P, Denominator.BATCH, 3000),
        ("--objective marginal", Direction.Q_P, Denominator.BATCH, 3000),
        ("--kl p-q --contrastive_weight 1 --index_negatives 7", Direction.P_Q, Denominator.CANDIDATES, 7),
        ("--index_negatives 0", Direction.Q_P, Denominator.BATCH, 0),
    ],
)
def test_what_is_left_open_follows_from_what_is_given(
    flags: str,
    kl: Direction,
    denominator: Denominator,
    negatives: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, options = asked(monkeypatch, *flags.split())
    assert code == 0 and options is not None
    target = options.target
    assert (target.kl, target.denominator, target.index_negatives) == (kl, denominator, negatives)


def test_flags_reach_the_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = "--objective loop --contrastive_weight 0.5 --temperature_gold 0.02"
    code, options = asked(monkeypatch, *flags.split(), "--temperature_score", "5e-2")
    assert code == 0 and options is not None
    assert options.target == TargetOptions(
        temperature_score=0.05,
        temperature_gold=0.02,
        kl=Direction.Q_P,
        denominator=Denominator.BATCH,
        index_negatives=3000,
        objective=Objective.LOOP,
        contrastive_weight=0.5,
    )


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ("--temperature_gold warm", "expected auto or a number"),
        ("--temperature_score -1", "--temperature_score -1.0: expected a positive number, or auto"),
        ("--objective emdr", "marginal"),
        ("--objective pdist --kl p-q", "leave --kl out"),
        ("--contrastive_weight 1 --per_gpu_batch_size 1 --index_negatives 0", "--index_negatives"),
        ("--kl p-q --index_negatives 9", "--contrastive_weight"),
        ("--temperature_gold 0.1 --gold_entropy 0.3", "--gold_entropy 0.3 goes with --temperature_gold auto"),
        ("--curriculum_by spread", "--curriculum_by spread goes with --curriculum easy-first"),
        ("--best_metric kl --n_docs 1", "--best_metric kl with --n_docs 1"),
        ("--best_metric kl --n_docs 0", "at least two"),
        ("--resume --overwrite", "found both, expected one of them"),
        ("--isotropy_weight 0.1 --per_gpu_batch_size 1", "at least two vectors"),
        ("--isotropy_weight 0.1 --per_gpu_batch_size 1 --train both", "at least two vectors"),
        ("--learning_rate -1", "--learning_rate -1.0: expected a positive, finite number"),
        ("--learning_rate nan", "--learning_rate nan: expected a positive, finite number"),
        ("--weight_decay nan", "--weight_decay"),
    ],
)
def test_what_cannot_be_is_refused(
    flags: str, found: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, options = asked(monkeypatch, *flags.split())
    assert (code, options) == (2, None)
    assert found in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize(
    "target",
    [
        {"contrastive_weight": 0.5},
        {"denominator": Denominator.BATCH, "kl": Direction.Q_P},
        {"denominator": Denominator.BATCH, "objective": Objective.MARGINAL},
    ],
)
def test_index_negatives_join_what_the_batch_shares(target: dict[str, Any]) -> None:
    assert TargetOptions(index_negatives=9, **target).index_negatives == 9
    with pytest.raises(OptionError, match="--index_negatives -1"):
        TargetOptions(index_negatives=-1, **target)


def test_negatives_come_from_other_queries_other_processes_or_the_index() -> None:
    def whole(steps: StepOptions, **target: Any) -> TrainOptions:
        unread: dict[str, Any] = {"data": None, "encoder": None, "supervisor": None, "place": None}
        return TrainOptions(**unread, target=TargetOptions(contrastive_weight=1.0, **target), steps=steps)

    whole(StepOptions(batch_size=2))
    whole(StepOptions(batch_size=1, processes=2))
    whole(StepOptions(batch_size=1), index_negatives=5)
    with pytest.raises(OptionError, match="larger batch"):
        whole(StepOptions(batch_size=1))


@pytest.mark.parametrize("flags", ["--isotropy_weight 0.1", "--contrastive_weight 1"])
def test_one_query_a_process_is_enough_where_there_are_several(
    flags: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, options = asked(monkeypatch, *flags.split(), "--per_gpu_batch_size", "1")
    assert code == 0 and options is not None and options.steps.processes == 2


def test_a_run_with_another_objective_says_so_in_its_record(
    place: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = "--objective loop --contrastive_weight 0.5 --temperature_gold auto --gold_entropy 0.7"
    small = "--max_steps 2 --eval_every 2 --max_examples 8 --max_validation 2"
    assert replug(*basic(place, "loop"), *small.split(), *flags.split()) == 0
    record = read_run(place / "loop")
    objective = record["objective"]
    assert (objective["objective"], objective["kl"], objective["contrastive_weight"]) == ("loop", "q-p", 0.5)
    assert record["options"]["target"]["temperature_gold"] is None
    assert f"temperature_gold = {objective['temperature_gold']:.4g} (auto)" in capsys.readouterr().err
    assert record["figures"]["log"][0]["contrastive_loss"] > 0


@pytest.mark.parametrize(
    ("flags", "before", "after"),
    [
        ("", None, "passive"),
        ("", "active", "active"),
        ("--supervisor local", None, None),
    ],
)
def test_beside_a_server_idle_threads_sleep_unless_the_caller_says_otherwise(
    flags: str, before: str | None, after: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if before is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", before)
    code, _ = asked(monkeypatch, *flags.split())
    assert code == 0
    assert os.environ.get("OMP_WAIT_POLICY") == after


def test_how_threads_wait_is_said_before_torch_is_there_to_hear_it() -> None:
    program = """
import sys
from replug_client.cli import train
from replug_client.cli.app import main
train.wait_asleep = lambda: sys.exit("too late" if "torch" in sys.modules else "in time")
main("train --passages p --data d --passages_embeddings e --model m".split())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert "in time" in done.stderr
