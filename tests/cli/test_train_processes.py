"""`replug train` in two processes is the run of one process, and goes on as if it had not stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.cli.processes import run
from tests.cli.test_train import (
    QUERIES,
    ROOT,
    assert_same_weights,
    basic,
    place,  # noqa: F401  (a fixture)
    read_run,
    tuned,
)

pytestmark = pytest.mark.slow

# What each process's part of the batch must not change: other queries' passages and random ones of the index in the
# denominator, the order of the examples, clipping, accumulation, refresh, and terms over the batch's vectors; nor
# layers that queries alone go through, low-rank updates, and passages in chunks.
MODES = {
    "query": "--denominator batch --kl q-p --index_negatives 4 --curriculum easy-first --continuations_per_query 2",
    "both": "--train both --denominator batch --kl q-p --gradient_accumulation_steps 2 --refresh_every 2"
    " --max_grad_norm 0.5 --gradient_checkpointing",
    # The learning rate as if none was given: it is the layers', and none are trained.
    "head": "--train head --head_learning_rate 0.02 --learning_rate 2e-5 --isotropy_weight 0.1"
    " --contrastive_weight 0.5",
    "layers": "--train head --head_layers 1 --head_learning_rate 0.02 --learning_rate 0.01 --isotropy_weight 0.1",
    "lexical": "--lexical --index_negatives 4",
    "lora": "--train both --lora_rank 2 --learning_rate 0.01 --grad_cache_chunk 2 --denominator batch --kl q-p",
}


def command(place: Path, output: str, mode: str, batch_size: int) -> list[str]:  # noqa: F811
    short = ["--max_steps", "4", "--max_validation", "3", "--no_bf16", "--keep", "last"]
    caches = ["--cache_dir", str(place / f"{output}-cache"), "--per_gpu_batch_size", str(batch_size)]
    return [*basic(place, output), *short, *caches, *MODES[mode].split()]


@pytest.fixture(scope="module")
def runs(place: Path) -> Path:  # noqa: F811
    """Each mode in one process and in two, and in two after a stop; all score caches begin empty."""
    two = [[command(place, f"{mode}-two", mode, 2), None] for mode in MODES]
    two += [
        [command(place, "both-cut", "both", 2), 2],
        [[*command(place, "both-cut", "both", 2), "--resume"], None],
    ]
    commands = place / "commands.json"
    commands.write_text(json.dumps(two))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, "-m", "tests.cli.processes", str(commands)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    (place / "log").write_text(done.stderr)
    for mode in MODES:
        run(command(place, f"{mode}-one", mode, 4))
    return place


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_do_what_one_does(mode: str, runs: Path) -> None:
    base, one, two = (tuned(runs / name) for name in ("encoder", f"{mode}-one", f"{mode}-two"))
    for encode in ("encode_query", "encode_document"):
        before, alone, shared = (getattr(model, encode)(QUERIES) for model in (base, one, two))
        apart, moved = np.abs(alone - shared).max(), np.abs(alone - before).max()
        print(f"{mode}, {encode}: {apart:.1e} apart after moving by {moved:.1e}")
        np.testing.assert_allclose(shared, alone, atol=2e-5)
        assert (encode == "encode_document" and mode in ("query", "lexical")) or moved > 1e-3, (
            "nothing was learned"
        )
    first, second = (read_run(runs / f"{mode}-{count}")["figures"] for count in ("one", "two"))
    for name in ("loss", "grad_norm", "p_entropy", "rank_correlation", "unique_first_passages"):
        values = [[entry[name] for entry in figures["log"]] for figures in (first, second)]
        np.testing.assert_allclose(*values, rtol=2e-4, err_msg=name)
    values = [[entry["bits_per_byte"] for entry in figures["validation"]] for figures in (first, second)]
    np.testing.assert_allclose(*values, rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_no_pair_is_asked_for_twice(mode: str, runs: Path) -> None:
    one, two = (read_run(runs / f"{mode}-{count}")["figures"]["scores"] for count in ("one", "two"))
    print(mode, one, two)
    assert two["misses"] == one["misses"] > 0
    assert sum(two.values()) == sum(one.values())


def test_a_run_of_two_processes_goes_on_as_if_it_had_not_stopped(runs: Path) -> None:
    assert_same_weights(runs / "both-two", runs / "both-cut")
    whole, cut = (read_run(runs / name)["figures"] for name in ("both-two", "both-cut"))
    losses = [[entry["loss"] for entry in figures["log"]] for figures in (whole, cut)]
    assert losses[0] == losses[1]


def test_one_process_writes_the_log(runs: Path) -> None:
    assert (runs / "log").read_text().count("the tuned retriever is in") == len(MODES) + 1
