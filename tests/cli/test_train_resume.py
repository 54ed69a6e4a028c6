"""`replug train --resume` ends as the run that was not stopped, with all that has a state of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedModel

from replug_client.training import trainable
from replug_client.training.trainable import enable_checkpointing
from tests.cli.processes import run
from tests.cli.test_train import (
    QUERIES,
    assert_same_weights,
    basic,
    place,  # noqa: F401  (a fixture)
    read_run,
    tuned,
)

# A stop within a generation of candidates, an epoch and a curriculum; one at a re-embedding; one between two;
# one at a checkpoint between two entries of the log.
RUNS = {
    "query": (
        3,
        (
            "--dropout 0.2 --gradient_accumulation_steps 2 --per_gpu_batch_size 2 --refresh_every 2"
            " --curriculum easy-first --curriculum_by spread --continuations_per_query 2 --max_grad_norm 0.1"
        ),
    ),
    "both": (
        2,
        (
            "--train both --dropout 0.2 --refresh_every 2 --grad_cache_chunk 3 --gradient_checkpointing"
            " --denominator batch --kl q-p"
        ),
    ),
    "head": (
        6,
        "--train head --head_learning_rate 0.02 --learning_rate 2e-5 --refresh_every 4 --max_steps 8 --stale_after 5",
    ),
    "lexical": (3, "--lexical --lexical_learning_rate 0.05 --refresh_every 2 --lora_rank 2 --keep last"),
    "log": (3, "--max_steps 40 --eval_every 3"),
}


@pytest.mark.parametrize("mode", RUNS)
def test_a_stopped_run_ends_as_the_one_that_was_not(mode: str, place: Path) -> None:  # noqa: F811
    stop, options = RUNS[mode]
    short = ["--max_steps", "6", "--eval_every", "1", "--max_validation", "2", *options.split()]
    run([*basic(place, f"{mode}-whole"), *short])
    cut = [*basic(place, f"{mode}-cut"), *short]
    run(cut, stop)
    assert not (place / f"{mode}-cut" / "run.json").exists()
    run([*cut, "--resume"])
    assert_same_weights(place / f"{mode}-whole", place / f"{mode}-cut")
    whole, resumed = (read_run(place / f"{mode}-{name}")["figures"] for name in ("whole", "cut"))
    assert resumed["log"] == whole["log"]
    for figure in ("kl", "mrr"):
        assert [entry[figure] for entry in whole["validation"]] == [
            entry[figure] for entry in resumed["validation"]
        ]
    for figure in ("best_step", "alarms"):
        assert resumed[figure] == whole[figure]


def test_clipping_and_gradient_checkpointing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    enabled = []

    def enable(transformer: PreTrainedModel) -> None:
        enable_checkpointing(transformer)
        enabled.append(transformer.is_gradient_checkpointing)

    monkeypatch.setattr(trainable, "enable_checkpointing", enable)
    short = ["--max_steps", "2", "--max_validation", "2", "--no_bf16", "--keep", "last"]
    run([*basic(place, "plain"), *short, "--max_grad_norm", "0"])
    assert not enabled
    run([*basic(place, "checkpointed"), *short, "--max_grad_norm", "1000", "--gradient_checkpointing"])
    assert enabled == [True]
    # So short that AdamW's epsilon is nearly all of its denominator: the weights stay where they are.
    run([*basic(place, "clipped"), *short, "--max_grad_norm", "1e-12"])
    base, plain, same, clipped = (
        tuned(place / name).encode_query(QUERIES) for name in ("encoder", "plain", "checkpointed", "clipped")
    )
    np.testing.assert_allclose(same, plain, atol=1e-6)
    assert np.abs(plain - base).max() > 1e-3
    np.testing.assert_allclose(clipped, base, atol=1e-4)
