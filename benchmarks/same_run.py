"""One training run three ways: in one process, in two, and killed and resumed. How far apart are their vectors?

python -m benchmarks.same_run [--examples 512] [--mode query|both] [--kills 2] [--bf16]

MiniLM, the demo LM in process (float32), the standard library's code; run_replug_lsr.py each time, in batches of 32
(two processes: 16 each), AdamW in float32 (--bf16: under bfloat16 autocast), an empty score cache of its own. The last
run is killed (SIGKILL) each time a further part of its steps is in a checkpoint, and goes on with --resume. Another run
in one process, which is given the first one's scores, shows what the machine itself does to the last bits.

Columns: wall time to the first's; the largest difference of any number of a query's vector to the first run's; how far
training had moved it; the ratio of the two; scores asked of the supervisor (of the killed run: by its last process),
and those kept in the run's cache. The status is 1 where runs differ by more than a thousandth of what training moved
(--bf16: a twentieth), where two processes asked for more than one, or where a run kept other scores than the first.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sentence_transformers import SentenceTransformer

from demo import stdlib_corpus
from demo.pipeline import LM, ROOT, minilm
from replug_client.artefacts import read_json
from replug_client.evaluation.tuned_run import RUN_NAME

_BATCH = 32
_FILES = 60
_QUERIES = [
    "def parse_date(text):",
    "self._lock = threading.Lock()",
    "raise ValueError(f'unknown encoding {name!r}')",
    "import os\nimport sys\n",
    "for key, value in sorted(headers.items()):",
    "return [line.rstrip() for line in stream]",
    "class Node:\n    def __init__(self, left, right):",
    "assertEqual(list(result), [1, 2, 3])",
]
_APART = {False: 1e-3, True: 0.05}  # of what training moved, at most; by --bf16
_MODES = {
    "query": ["--index_negatives", "500"],
    "both": ["--train", "both", "--index_negatives", "0", "--grad_cache_chunk", "32"],
}
_ROW = "{:<26}{:>8}{:>10}{:>8}{:>13}{:>9}{:>9}"


@dataclass(frozen=True, slots=True)
class Job:
    """What all runs have in common: where they lie, their flags, their interpreter's environment."""

    folder: Path
    flags: tuple[str, ...]
    steps: int

    def command(self, name: str, cache: str, batch: int = _BATCH) -> list[str]:
        """The run of this name: the program and its flags."""
        own = ["--output_dir", str(self.folder / name), "--cache_dir", str(self.folder / cache)]
        own += ["--per_gpu_batch_size", str(batch)]
        return [str(ROOT / "run_replug_lsr.py"), *self.flags, *own]


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that came to its end: wall seconds, its query vectors ``(Q, D)``, scores asked and kept."""

    seconds: float
    vectors: npt.NDArray[np.float32]
    asked: int
    kept: int


def main() -> int:
    """Run them one after the other, print a line each, and say whether they are one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=512)
    parser.add_argument("--mode", choices=sorted(_MODES), default="query")
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--bf16", action="store_true")
    given = parser.parse_args()
    if given.examples < 4 * _BATCH or not 0 < given.kills < given.examples // _BATCH:
        parser.error(f"--examples must be at least {4 * _BATCH}, --kills fewer than the steps")
    with tempfile.TemporaryDirectory() as scratch:
        job = prepare(Path(scratch), given)
        base = SentenceTransformer(str(minilm()), device="cpu").encode_query(_QUERIES)
        print(f"--train {given.mode}, {job.steps} steps of {_BATCH} examples", flush=True)
        print(_ROW.format("run", "time", "apart", "moved", "apart/moved", "asked", "kept"))
        one = once(job, "one", "one-cache")
        report("one process", one, one, base)
        shutil.copytree(job.folder / "one-cache", job.folder / "again-cache")
        again = once(job, "again", "again-cache")
        report("again, with its scores", again, one, base)
        two = once(job, "two", "two-cache", processes=2)
        report("two processes", two, one, base)
        cut = killed(job, given.kills)
        report(f"killed {given.kills} times, resumed", cut, one, base)
    ratios = [apart(run, one) / apart_from(base, one) for run in (again, two, cut)]
    wrong = max(ratios) > _APART[given.bf16] or two.asked != one.asked
    return int(wrong or any(run.kept != one.kept for run in (two, cut)))


def prepare(folder: Path, given: argparse.Namespace) -> Job:
    """The corpus and its embeddings, which all runs share."""
    stdlib_corpus.build(folder / "data", stdlib_corpus.CorpusOptions(files=_FILES))
    embed = ["--model_name_or_path", str(minilm()), "--passages", str(folder / "data" / "passages.csv")]
    embed += ["--output_dir", str(folder / "embeddings")]
    run_quietly([str(ROOT / "generate_passage_embeddings.py"), *embed], folder / "embed.log")
    steps = given.examples // _BATCH
    flags = {
        "model": str(LM),
        "supervisor": "local",
        "dtype": "float32",
        "passages": str(folder / "data" / "passages.csv"),
        "passages_embeddings": str(folder / "embeddings" / "passages_00"),
        "data": str(folder / "data" / "train.csv"),
        "re_model_name_or_path": str(minilm()),
        "context_len": "64",
        "pred_len": "64",
        "n_docs": "4",
        "bm25_docs": "4",
        "random_docs": "0",
        "max_examples": str(steps * _BATCH),
        "max_validation": "50",
        "eval_every": str(max(1, steps // (2 * (given.kills + 1)))),
        "learning_rate": "1e-4",
        "refresh_every": "0",
        "keep": "last",
        "device": "cpu",
    }
    words = [part for flag, value in flags.items() for part in (f"--{flag}", value)]
    precision = [] if given.bf16 else ["--no_bf16"]
    return Job(folder, (*words, *precision, *_MODES[given.mode]), steps)


def once(job: Job, name: str, cache: str, processes: int = 1) -> Ended:
    """A run from its beginning to its end."""
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = job.command(name, cache, _BATCH // processes)
    began = time.monotonic()
    run_quietly(command if processes == 1 else [*start, *command], job.folder / f"{name}.log")
    return ended(job, name, cache, time.monotonic() - began)


def killed(job: Job, kills: int) -> Ended:
    """A run that is killed when a checkpoint of each further part is whole, and then goes on to its end."""
    command = [*job.command("cut", "cut-cache"), "--resume"]
    log = job.folder / "cut.log"
    began = time.monotonic()
    for number in range(1, kills + 1):
        reached = job.steps * number // (kills + 1)
        with log.open("ab") as stream:
            process = subprocess.Popen(
                [sys.executable, *command], stdout=stream, stderr=stream, env=_environ()
            )
            while newest_checkpoint(job.folder / "cut") < reached:
                if process.poll() is not None:
                    raise SystemExit(
                        f"the run ended with {process.returncode} before its kill:\n{log.read_text()}"
                    )
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
            process.wait()
    run_quietly(command, log)
    return ended(job, "cut", "cut-cache", time.monotonic() - began)


def newest_checkpoint(folder: Path) -> int:
    """The step of the newest one, which may still be in the writing; -1 without any."""
    names = [path.name.rpartition("-")[2] for path in folder.glob("**/checkpoint-*")]
    return max((int(name) for name in names if name.isdigit()), default=-1)


def ended(job: Job, name: str, cache: str, seconds: float) -> Ended:
    """What the run of this name has left."""
    vectors = SentenceTransformer(str(job.folder / name), device="cpu").encode_query(_QUERIES)
    figures = read_json(job.folder / name / RUN_NAME, mend="Run the benchmark again.")["figures"]
    with sqlite3.connect(job.folder / cache / "scores.sqlite") as database:
        kept = int(database.execute("SELECT COUNT(*) FROM scores").fetchone()[0])
    return Ended(seconds, vectors, figures["scores"]["misses"], kept)


def apart(run: Ended, other: Ended) -> float:
    """The largest difference of any number of their vectors."""
    return apart_from(run.vectors, other)


def apart_from(vectors: npt.NDArray[np.float32], run: Ended) -> float:
    """The largest difference of any number of these vectors and the run's."""
    return float(np.abs(vectors - run.vectors).max())


def report(name: str, run: Ended, one: Ended, base: npt.NDArray[np.float32]) -> None:
    """The run's line."""
    far, moved = apart(run, one), apart_from(base, one)
    time_ratio = f"{run.seconds / one.seconds:.2f}"
    row = (
        name,
        time_ratio,
        f"{far:.1e}",
        f"{moved:.3f}",
        f"{far / moved:.1e}",
        f"{run.asked:,}",
        f"{run.kept:,}",
    )
    print(_ROW.format(*row), flush=True)


def run_quietly(command: Sequence[str], log: Path) -> None:
    """One of the top-level programs to its end; what it says goes into the file.

    Raises:
        SystemExit: it failed; with what it said.
    """
    with log.open("ab") as stream:
        done = subprocess.run(
            [sys.executable, *command], stdout=stream, stderr=stream, env=_environ(), check=False
        )
    if done.returncode:
        raise SystemExit(f"{command[0]} ended with {done.returncode}:\n{log.read_text()}")


def _environ() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


if __name__ == "__main__":
    sys.exit(main())
