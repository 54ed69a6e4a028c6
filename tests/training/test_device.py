"""A run in one process stays on the device that its encoder is on; without a GPU, as far as that can be told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformerTrainingArguments
from transformers.training_args import ParallelMode

from replug_client.training.device import stay_on
from replug_client.training.options import PlaceOptions, StepOptions, TrainOptions
from replug_client.training.run import _arguments


def arguments(folder: Path) -> SentenceTransformerTrainingArguments:
    args = SentenceTransformerTrainingArguments(
        str(folder), per_device_train_batch_size=3, use_cpu=True, report_to="none"
    )
    args._n_gpu = 4  # as transformers finds them on such a machine
    return args


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """The devices that became torch's current one, one after the other."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


@pytest.mark.parametrize("name", ["cuda:0", "cuda:1"])
def test_the_gpu_that_was_asked_for_is_the_only_one(
    name: str, tmp_path: Path, current: list[torch.device]
) -> None:
    args, device = arguments(tmp_path), torch.device(name)
    stay_on(args, device)
    assert args.device == device and current == [device]
    assert (args.n_gpu, args.train_batch_size) == (1, 3)
    assert args.parallel_mode == ParallelMode.NOT_PARALLEL


def test_a_runs_arguments_have_the_device_of_its_encoder(tmp_path: Path, current: list[torch.device]) -> None:
    unread: dict[str, Any] = {"data": None, "encoder": None, "supervisor": None}
    place = PlaceOptions(tmp_path / "run", tmp_path / "cache")
    options = TrainOptions(**unread, place=place, steps=StepOptions(bf16=False))
    for name in ("cuda:1", "cpu"):
        args = _arguments(options, 4, validates=False, begins=True, device=torch.device(name))
        assert args.device == torch.device(name)
    assert current == [torch.device("cuda:1")]


def test_on_a_cpu_and_among_several_processes_nothing_changes(
    tmp_path: Path, current: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = arguments(tmp_path)
    stay_on(args, torch.device("cpu"))
    monkeypatch.setattr(type(args), "world_size", 2)
    stay_on(args, torch.device("cuda:1"))
    assert args.device == torch.device("cpu") and current == [] and args.n_gpu == 4
