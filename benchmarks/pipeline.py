"""Wall time of training beside scoring, over the longer of the two alone: 1 is a perfect overlap.

python -m benchmarks.pipeline [--steps 60] [--rounds 3] [--formats direct,vllm-generate,vllm]
    [--threads N] [--inside]

The sizes are those of the README's session: passages, queries and continuations of 128 tokens, batches of 4 examples;
the query encoder is trained. A stand-in server of fixed latency and parallelism scores, so that scoring costs hardly
any local CPU. First everything is scored, without latency; with these scores kept, training alone is timed. Then the
server is made half as slow, as slow and twice as slow as that, and three things are timed in turn: scoring alone and
both together, each with an empty cache, and training alone once more. Medians of the rounds; of training alone, of all
its runs, for a machine is not always as fast. Timed is from the start of the candidate
stream to the last step; what comes before (loading, and choosing the temperatures) is no part of the pipeline.

Three stand-ins. direct: no server, in the place of the client, so that scoring costs no CPU to speak of: what the
pipeline itself leaves of the overlap. The others are behind HTTP, in two formats: vllm-generate, which `python -m
server` switches on where there is a GPU (log-probs of the continuation alone, some 600 bytes a pair), and vllm, which
is all that vLLM gives on a CPU (those of the whole prompt, some 20,000 bytes a pair). There, client and stand-in take
CPU, which is printed, and with few cores that comes out of the steps: of a step that works on all of them, each second
on one holds up the others. --threads leaves some to the client and to the stand-in, as a GPU would.

As `replug train` has it beside a server, the client is in a process of its own, and idle threads sleep, unless
OMP_WAIT_POLICY says otherwise. With --inside the client is in the training process.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks import _stand_in
from benchmarks._direct import DirectSupervisor
from demo import stdlib_corpus
from demo.pipeline import LM, minilm
from replug_client.corpus.store import PassageStore
from replug_client.progress import configure_logging
from replug_client.retriever.embedding import EmbedOptions, embed_shard
from replug_client.retriever.encoder import EncoderOptions, load_encoder
from replug_client.supervisor.apart import SupervisorApart
from replug_client.supervisor.cache import ScoreCache
from replug_client.supervisor.cached import CachedSupervisor
from replug_client.supervisor.client import RemoteSupervisor
from replug_client.supervisor.open import CACHE_FILE, SupervisorOptions, open_supervisor
from replug_client.supervisor.protocol import Prompt
from replug_client.supervisor.tokenizer import SupervisorTokenizer, load_tokenizer
from replug_client.threads import wait_asleep
from replug_client.training.candidates import NO_PASSAGE, CandidateOptions
from replug_client.training.heap import settled_heap
from replug_client.training.loss import ObjectiveOptions
from replug_client.training.options import DataOptions, PlaceOptions, StepOptions, TargetOptions, TrainOptions
from replug_client.training.prepare import Prepared, prepare
from replug_client.training.run import build_trainer

# Examples that come again would share their scores, and the server would have less to do than it says.
_LEAST_FILES = 16
_TOKENS, _BATCH = 128, 4
_PARALLEL = 64
_DIRECT = "direct"
_FORMATS = (_DIRECT, "vllm-generate", "vllm")
_GOAL = 1.1  # wall time of both together, over the longer of the two alone
_ROW = "{:>9}{:>15}{:>16}{:>10}{:>11}{:>7}"
_SLOWNESS = (0.5, 1.0, 2.0)  # scoring alone, in units of training alone

Opened = tuple[CachedSupervisor, SupervisorTokenizer]
Open = Callable[[str | None], Opened]
"""Connects to a stand-in; its scores are kept under a name, or in memory only."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A training run: its seconds, its CPU's, those spent waiting for scores, and the pairs it asked for."""

    seconds: float
    cpu_seconds: float
    waiting: float
    batches: list[list[Prompt]]


@dataclass(frozen=True, slots=True)
class Turns:
    """What was measured beside a server of one slowness, in seconds; ``cpu``: of client and stand-in, a scoring."""

    slowness: float
    scoring: list[float] = field(default_factory=list)
    together: list[float] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def main() -> None:
    """Print one line for each slowness of the server."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--formats", default=",".join(_FORMATS), help="with commas between them")
    parser.add_argument("--threads", type=int, help="of a training step; default: torch's, one a core")
    parser.add_argument("--inside", action="store_true", help="the client in the training process")
    asked = parser.parse_args()
    if asked.threads is not None:
        if asked.threads < 1:
            parser.error("--threads must be at least 1")
        torch.set_num_threads(asked.threads)
    formats = asked.formats.split(",")
    if asked.steps < 1 or asked.rounds < 1 or not set(formats) <= set(_FORMATS):
        parser.error(f"--steps and --rounds must be at least 1, --formats some of {','.join(_FORMATS)}")
    if "OMP_WAIT_POLICY" not in os.environ:
        wait_asleep()  # as `replug train` does; torch has been imported here, so in a process of its own
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.pipeline", *sys.argv[1:]])
    configure_logging("error")
    with tempfile.TemporaryDirectory() as folder:
        options = options_for(Path(folder), asked.steps, apart=not asked.inside)
        for name in formats:
            measure(options, name, Path(folder), asked.rounds)


def measure(options: TrainOptions, name: str, folder: Path, rounds: int) -> None:
    """One table, with the server in one format."""
    options = replace(options, place=replace(options.place, output_dir=folder / name))
    server = partial(stand_in, options, name)
    kept = f"kept-{name}"
    with server(0) as fast:
        train(options, fast, kept)
        alone = train(options, fast, kept)
        pairs = sum(map(len, alone.batches))
        print(f"\n{name}: {options.steps.max_steps} steps of {_BATCH} examples, {pairs:,} pairs; seconds")
        print(_ROW.format("server's", "scoring alone", "training alone", "together", "(waiting)", "ratio"))
        trainings, turns = [alone], [Turns(slowness) for slowness in _SLOWNESS]
        for _ in range(rounds):
            for turn in turns:
                latency = turn.slowness * alone.seconds * _PARALLEL / pairs
                before = cpu_of_children()
                with server(latency) as slow:
                    turn.scoring.append(score_alone(slow, alone.batches))
                    both = train(options, slow, None)
                if both.batches != alone.batches:
                    raise SystemExit("the run beside the server asked for other pairs than the run alone")
                turn.cpu.append((cpu_of_children() - before) / 2)  # everything was scored twice
                turn.together.append(both.seconds)
                turn.waiting.append(both.waiting)
                trainings.append(train(options, fast, kept))
        training, ratios = median(run.seconds for run in trainings), []
        for turn in turns:
            scoring, together = median(turn.scoring), median(turn.together)
            ratios.append(together / max(scoring, training))
            figures = (turn.slowness * alone.seconds, scoring, training, together, median(turn.waiting))
            print(_ROW.format(*(f"{figure:.1f}" for figure in figures), f"{ratios[-1]:.2f}"), flush=True)
        print(f"largest ratio: {max(ratios):.2f} (goal: at most {_GOAL:g})")
        cpu = median(run.cpu_seconds for run in trainings)
        print(
            f"CPU: training alone {cpu:.1f} s, OMP_WAIT_POLICY={os.environ['OMP_WAIT_POLICY']};"
            f" the processes that score {median(cpu for turn in turns for cpu in turn.cpu):.1f} s"
        )


def cpu_of_children() -> float:
    """Seconds that child processes have taken which have ended."""
    times = os.times()
    return times.children_user + times.children_system


@contextmanager
def stand_in(options: TrainOptions, name: str, seconds: float) -> Iterator[Open]:
    """One that takes ``seconds`` for a pair, and has ``_PARALLEL`` under way.

    Raises:
        SystemExit: the client takes it in another format than ``name``, in which it would then be measured.
    """
    if name == _DIRECT:
        yield partial(_open_direct, options, seconds)
        return
    with _stand_in.running(seconds, _PARALLEL, generate=name == "vllm-generate") as base_url:
        open_ = partial(_open_server, options, base_url)
        supervisor, _ = open_(None)
        with closing(supervisor):
            found = supervisor.wrapped
            if not isinstance(found, RemoteSupervisor | SupervisorApart) or found.format != name:
                raise SystemExit(
                    f"expected the format {name}, the client chose {getattr(found, 'format', None)}"
                )
        yield open_


def _open_server(options: TrainOptions, base_url: str, cache: str | None) -> Opened:
    folder = None if cache is None else options.place.cache_dir / cache
    return open_supervisor(replace(options.supervisor, base_url=base_url, cache_dir=folder))


def _open_direct(options: TrainOptions, seconds: float, cache: str | None) -> Opened:
    path = None if cache is None else options.place.cache_dir / cache / CACHE_FILE
    supervisor = CachedSupervisor(DirectSupervisor(seconds, _PARALLEL), ScoreCache(path))
    return supervisor, load_tokenizer(str(LM))


def options_for(folder: Path, steps: int, *, apart: bool) -> TrainOptions:
    """A small real corpus of this Python's library, embedded; and a run over it."""
    corpus = stdlib_corpus.CorpusOptions(files=max(_LEAST_FILES, steps))
    report = stdlib_corpus.build(folder / "data", corpus)
    encoder = EncoderOptions(str(minilm()))
    store = PassageStore.open([report.passages], folder / "cache")
    embed_shard(load_encoder(encoder), store, folder / "embeddings", EmbedOptions(), encoder)
    return TrainOptions(
        data=DataOptions(
            passages=(report.passages,),
            passages_embeddings=(str(folder / "embeddings" / "passages_*"),),
            data=(report.train,),
            validation_fraction=0.0,
            max_validation=0,
            context_len=_TOKENS,
            pred_len=_TOKENS,
        ),
        encoder=encoder,
        supervisor=SupervisorOptions(_stand_in.MODEL, tokenizer=str(LM), apart=apart),
        place=PlaceOptions(folder / "output", folder / "cache"),
        candidates=CandidateOptions(10, 4, 2),
        target=TargetOptions(temperature_score=0.1, temperature_gold=0.1),
        steps=StepOptions(batch_size=_BATCH, max_steps=steps, epochs=1000, refresh_every=max(1, steps // 5)),
        retrieved_max_length=_TOKENS,
    )


def train(options: TrainOptions, open_: Open, cache: str | None) -> Trained:
    """Train from the base, as ``replug train`` does, and time the steps."""
    shutil.rmtree(options.place.output_dir, ignore_errors=True)
    store = PassageStore.open(options.data.passages, options.place.cache_dir)
    supervisor, tokenizer = open_(cache)
    with closing(supervisor):
        prepared = prepare(options, store, supervisor, tokenizer)
        if len(prepared.sets.train) < (needed := _BATCH * (options.steps.max_steps or 0)):
            raise SystemExit(f"{len(prepared.sets.train)} examples, expected {needed}: lower --steps")
        objective = ObjectiveOptions(
            0.1, 0.1, options.target.score, options.target.kl, options.target.denominator
        )
        trainer, stream = build_trainer(options, prepared, objective, lambda _: None)
        began, cpu = time.perf_counter(), time.process_time()
        trainer.train()
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        return Trained(seconds, cpu, stream.timings.waiting_for_scores, pairs_of(options, prepared))


def pairs_of(options: TrainOptions, prepared: Prepared) -> list[list[Prompt]]:
    """The prompts of each batch, from the candidates that the run has kept on disk."""
    files = sorted((options.place.output_dir / "candidates").glob("generation_*.npy"))
    rows = np.concatenate([np.load(path, allow_pickle=False) for path in files])
    numbers = prepared.schedule(options.steps).batches(0, len(rows))
    return [
        [
            prepared.prompt(prepared.sets.train[number], int(row))
            for number, candidates in zip(batch, own, strict=True)
            for row in candidates
            if row != NO_PASSAGE
        ]
        for batch, own in zip(numbers, rows, strict=True)
    ]


def score_alone(open_: Open, batches: list[list[Prompt]]) -> float:
    """Seconds to score every pair, submitted as the stream submits them, with nothing beside it."""
    supervisor, _ = open_(None)
    with closing(supervisor), settled_heap():  # as a training run has it
        began = time.perf_counter()
        for future in [supervisor.submit(batch) for batch in batches]:
            future.result()
        return time.perf_counter() - began


if __name__ == "__main__":
    main()
