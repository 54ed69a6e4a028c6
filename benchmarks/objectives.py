"""What each mode and objective gives on the demo's experiment, with what it costs: one table, one run a line.

python -m benchmarks.objectives [--full] [--modes query,head,both] [--only 'TEXT|TEXT'] [--seeds 0,1]
    [--files N] [--max_examples N] [--max_held_out N]

Corpus, flags and supervisor are those of `make demo`, with --full of `make experiment`; --files and the rest make
it smaller, in a folder of its own. Each line is a run of run_replug_lsr.py with other flags (printed), and then the
demo's own table on the files that are held out of training. All runs have the same examples, the same candidates
(the base's: --refresh_every 0; but for the line that says otherwise) and one score cache: the first run has the pairs
scored beside its steps, which slows these down; the others find them there. A line that is done is kept in its folder
and not run again, nor is training that was done before an interruption.

Columns: held-out bits per byte of the first passage; base minus tuned with its 95 % interval over files; the part
of the distance from the base's first passage to the best of its ten that is closed. On the validation examples, the
mean reciprocal rank of the passage that the LM itself likes best, and its gain over the base with its interval.
Optimiser steps a second, without validation, retrieval and waiting for scores; pairs asked of the supervisor and
taken from the cache; peak memory of the training process, the in-process supervisor included.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from demo import stdlib_corpus
from demo.pipeline import (
    DEMO,
    EVALUATE,
    FULL,
    Plan,
    command_line,
    embed_flags,
    minilm,
    table_options,
    train_flags,
)
from demo.table import evaluate_flags, write_results
from replug_client.artefacts import read_json, write_json
from replug_client.evaluation.conditions import BASE, TUNED
from replug_client.evaluation.tuned_run import RUN_NAME
from replug_client.progress import configure_logging

_CELL, _TRAINED = "cell.json", "trained.json"
_MEND = "Remove its folder, and run the benchmark again."
_RSS_UNIT = 1024 if sys.platform == "linux" else 1  # bytes in what getrusage counts

_OWN = {
    "denominator": "candidates",
    "index_negatives": "0",
    "temperature_score": "auto",
    "temperature_gold": "auto",
}
# The demo's flags without words: P over the batch's and the index's passages, gamma 0.05, beta 0.02.
_BATCH = {"temperature_score": "0.05"}
_AUTO = {"temperature_score": "auto", "temperature_gold": "auto"}
TARGETS: dict[str, dict[str, str]] = {
    "lsr p-q": {"objective": "lsr", "kl": "p-q", **_OWN},
    # The learning rate of `replug train`; lines that name none have the demo's, 1e-4.
    "lsr p-q, rate 2e-5": {"objective": "lsr", "kl": "p-q", **_OWN, "learning_rate": "2e-5"},
    "lsr q-p = pdist": {"objective": "lsr", "kl": "q-p", **_OWN},
    "marginal": {"objective": "marginal", **_OWN},
    "loop p-q": {"objective": "loop", "kl": "p-q", **_OWN},
    "loop q-p": {"objective": "loop", "kl": "q-p", **_OWN},
    "lsr p-q + 0.5 InfoNCE": {
        "objective": "lsr",
        "kl": "p-q",
        "contrastive_weight": "0.5",
        **_OWN,
        "index_negatives": "3000",
    },
    "lsr q-p = pdist, batch": {"objective": "lsr", "kl": "q-p", **_BATCH},
    "lsr q-p, batch, auto, rate 1e-4": {"objective": "lsr", "kl": "q-p", **_AUTO},
    "lsr q-p, batch, auto, rate 2e-5": {"objective": "lsr", "kl": "q-p", **_AUTO, "learning_rate": "2e-5"},
    # The demo's own flags: words beside vectors.
    "lsr q-p, batch, words": {"objective": "lsr", "kl": "q-p", "lexical": ""},
    "lsr q-p, batch, words, auto": {"objective": "lsr", "kl": "q-p", "lexical": "", **_AUTO},
    # Candidates of the retriever as it is after each hundred steps, instead of the base's.
    "lsr q-p = pdist, batch, refresh": {"objective": "lsr", "kl": "q-p", "refresh_every": "100", **_BATCH},
    "marginal, batch": {"objective": "marginal", **_BATCH},
    "loop q-p, batch": {"objective": "loop", "kl": "q-p", **_BATCH},
}
MODES: dict[str, dict[str, str]] = {
    "query": {},
    "head": {"train": "head", "head_learning_rate": "1e-3"},
    # Passages that are encoded in each step cannot be drawn by the thousand; their memory is that of a chunk.
    # Each validation embeds all passages anew: only the last one is asked for.
    "both": {
        "train": "both",
        "index_negatives": "0",
        "grad_cache_chunk": "32",
        "learning_rate": "2e-5",
        "eval_every": "1000000",
    },
}
_NO_DIRECTION = ("marginal",)
COLUMNS = (
    "mode",
    "objective",
    "seed",
    "bits/byte",
    "base - tuned",
    "closed",
    "MRR",
    "MRR - base's",
    "steps/s",
    "asked + cached",
    "memory",
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One line of the table: a mode, an objective and a seed."""

    mode: str
    target: str
    seed: str

    @property
    def name(self) -> str:
        """A folder's name."""
        words = f"{self.mode} {self.target} seed {self.seed}".lower()
        return "-".join("".join(c if c.isalnum() or c == "." else " " for c in words).split())

    def flags(self, plan: Plan, base: Path) -> dict[str, str]:
        """Flags of run_replug_lsr.py: the demo's, with the objective's and then the mode's over them."""
        target = TARGETS[self.target]
        mode = {
            flag: value
            for flag, value in MODES[self.mode].items()
            if flag != "learning_rate" or flag not in target
        }
        demo = train_flags(plan, base)
        demo.pop("lexical")
        flags = demo | target | mode | {"seed": self.seed}
        if flags["objective"] in _NO_DIRECTION:
            flags.pop("kl")
        if self.mode == "head":  # the projection has a rate of its own, and no encoder is trained
            flags.pop("learning_rate")
        return flags | {"output_dir": str(plan.folder / "objectives" / self.name)}


def main() -> None:
    """Run what is not done yet, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="the experiment instead of the demo")
    parser.add_argument("--modes", default="query,head,both", help="with commas between them")
    parser.add_argument(
        "--only",
        default="",
        help="only this objective, or those whose name holds this text; or one of several (A|B)",
    )
    parser.add_argument("--seeds", default="0", help="with commas between them")
    parser.add_argument("--files", type=int, help="of the library; fewer is smaller")
    parser.add_argument("--max_examples", type=int, help="to train on")
    parser.add_argument("--max_held_out", type=int, help="in the table")
    options = parser.parse_args()
    cells = [
        Cell(mode, target, seed)
        for mode, target, seed in itertools.product(
            options.modes.split(","), TARGETS, options.seeds.split(",")
        )
        if any(text == target or (text not in TARGETS and text in target) for text in options.only.split("|"))
    ]
    # `head` trains no encoder here, and has its own rate: lines that differ in the encoder's would be one run twice.
    # Nor has it weights for words.
    encoders = ("learning_rate", "lexical")
    cells = [
        cell
        for cell in cells
        if cell.mode != "head" or not any(flag in TARGETS[cell.target] for flag in encoders)
    ]
    if unknown := sorted({cell.mode for cell in cells} - MODES.keys()):
        parser.error(f"--modes {','.join(unknown)}: expected some of {','.join(MODES)}")
    if not cells:
        parser.error(f"--only {options.only!r}: no objective of {', '.join(TARGETS)} holds it")
    configure_logging("error")
    plan, base = plan_of(options), minilm()
    prepare(plan, base)
    lines = [run_cell(cell, plan, base) for cell in cells]
    print(markdown(lines))


def plan_of(options: argparse.Namespace) -> Plan:
    """The demo's plan or the experiment's; made smaller, in a folder of its own."""
    plan = FULL if options.full else DEMO
    sizes = {name: getattr(options, name) for name in ("files", "max_examples", "max_held_out")}
    given = {name: value for name, value in sizes.items() if value is not None}
    if given:
        suffix = "-".join(f"{name}-{value}" for name, value in given.items())
        plan = replace(plan, folder=plan.folder / f"small-{suffix}")
    if options.files is not None:
        plan = replace(plan, corpus=replace(plan.corpus, files=options.files))
    if options.max_examples is not None:
        plan = replace(plan, train=plan.train | {"max_examples": str(options.max_examples)})
    if options.max_held_out is not None:
        plan = replace(plan, max_held_out=options.max_held_out)
    return plan


def prepare(plan: Plan, base: Path) -> None:
    """The corpus and its embeddings, which all runs share; what is there already is kept."""
    report = stdlib_corpus.build(plan.folder / "data", plan.corpus)
    print(f"{plan.folder}: {report.num_files} files, {report.num_passages:,} passages", flush=True)
    run_program("generate_passage_embeddings.py", embed_flags(plan, base), plan.folder / "embeddings.log")


def run_cell(cell: Cell, plan: Plan, base: Path) -> dict[str, Any]:
    """Train and evaluate, or read what an earlier start found."""
    flags = cell.flags(plan, base)
    folder = Path(flags["output_dir"])
    path = folder / _CELL
    if not path.exists():
        memory = train(flags)
        evaluation = table_options(plan, folder, folder / "held_out.json")
        run_program(EVALUATE, evaluate_flags(evaluation), folder.with_suffix(".log"))
        table = write_results(evaluation)
        gain = table.difference(BASE, TUNED)
        figures = read_json(folder / RUN_NAME, mend=_MEND)["figures"]
        write_json(
            path,
            {
                "mode": cell.mode,
                "objective": cell.target,
                "seed": cell.seed,
                "bits_per_byte": table.bits_per_byte(TUNED),
                "base_minus_tuned": [gain.mean, gain.low, gain.high],
                "share_closed": table.share_closed(),
                "n": table.n,
                "documents": table.documents,
                "validation": figures["validation"][-1],
                "steps_a_second": steps_a_second(figures),
                "asked": figures["scores"]["misses"],
                "cached": figures["scores"]["hits"] + figures["scores"]["shared"],
                "memory": memory,
            },
        )
    line = read_json(path, mend=_MEND)
    print(markdown([line]).splitlines()[-1], flush=True)
    return line


def train(flags: dict[str, str]) -> int | None:
    """Train, or find it done by an earlier start that got no further; the process's peak memory, where it is known."""
    folder = Path(flags["output_dir"])
    record, measured = folder / RUN_NAME, folder / _TRAINED
    if not record.exists() or read_json(record, mend=_MEND).get("status") != "complete":
        print(f"python run_replug_lsr.py {shown(flags)}", flush=True)
        memory = run_program("run_replug_lsr.py", flags, folder.with_suffix(".log"))
        write_json(measured, {"memory": memory})
    return read_json(measured, mend=_MEND)["memory"] if measured.exists() else None


def steps_a_second(figures: dict[str, Any]) -> float:
    """Optimiser steps over the time that went into them alone.

    Scores are waited for within validation, too (before the first step above all), so that time is not subtracted
    twice: validation has its own clock, which holds it.
    """
    others = sum(figures[f"seconds_{what}"] for what in ("validating", "retrieving", "waiting_for_scores"))
    return float(figures["steps"] / max(1e-9, figures["seconds_training"] - others))


def run_program(program: str, flags: dict[str, str], log: Path) -> int:
    """Run a top-level program or a `replug` command, its output in ``log``; gives its peak memory in bytes.

    Raises:
        SystemExit: it failed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        process = subprocess.Popen(command_line(program, flags), stdout=stream, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{program} ended with status {process.returncode}; see {log}")
    return usage.ru_maxrss * _RSS_UNIT


def shown(flags: dict[str, str]) -> str:
    """The flags as a person would type them."""
    return " ".join(
        f"--{flag} {shlex.quote(value)}" if value else f"--{flag}" for flag, value in flags.items()
    )


def markdown(lines: list[dict[str, Any]]) -> str:
    """The table."""
    rows = [list(COLUMNS), ["---"] * len(COLUMNS), *(_row(line) for line in lines)]
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    first = lines[0]
    return f"{first['n']:,} held-out windows of {first['documents']} files\n\n{text}"


def _row(line: dict[str, Any]) -> list[str]:
    validation, closed = line["validation"], line["share_closed"]
    gain = [
        validation["mrr_minus_base"],
        validation.get("mrr_minus_base_low"),
        validation.get("mrr_minus_base_high"),
    ]
    return [
        line["mode"],
        line["objective"],
        line["seed"],
        f"{line['bits_per_byte']:.4f}",
        _interval(*line["base_minus_tuned"]),
        "" if closed is None else f"{closed:.0%}",
        f"{validation['mrr']:.3f}",
        _interval(*gain),
        f"{line['steps_a_second']:.2f}",
        f"{line['asked']:,} + {line['cached']:,}",
        "" if line["memory"] is None else f"{line['memory'] / 2**30:.1f} GiB",
    ]


def _interval(mean: float, low: float | None, high: float | None) -> str:
    return f"{mean:+.4f}" if low is None or high is None else f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"


if __name__ == "__main__":
    main()
