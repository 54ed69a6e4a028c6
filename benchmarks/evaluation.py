"""`replug evaluate lm`: its prompts a second, to the server's ceiling and to a loop of single requests, in one run.

python -m benchmarks.evaluation [--examples 60] [--rounds 3] [--base_url http://HOST:8000/v1 --model NAME]

Without --base_url a server is started with the demo LM as `python -m server` would. Every line scores the same
prompts: windows of the standard library's code behind no passage, random passages and BM25's, the first of them,
two concatenated and three in an ensemble.

  ceiling     the client's own requests, their bytes made beforehand, sent by a bare load generator at the
              concurrency that suits the server best, and the answers thrown away
  evaluation  from examples and retrieved rows to the table: prompts are built, scored (empty score cache on disk)
              and mixed
  loop        one blocking openai request a prompt: echo, logprobs=1 (on a part of the prompts)

They are measured in turns, and medians are shown. Retrieval comes before, and its seconds stand beside them.
"""

from __future__ import annotations

import argparse
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks._load import run_load
from benchmarks._server import running_server
from benchmarks.scoring import Measured, Server, best_concurrency, compare, look, requests_of, score_as_usual
from demo.pipeline import LM
from replug_client.corpus.readers import MemorySource
from replug_client.corpus.records import Document, Example, Passage
from replug_client.corpus.store import PassageStore, write_store
from replug_client.corpus.windows import WindowOptions, cut_examples
from replug_client.evaluation.conditions import Retrieved, parse_conditions, passages_needed
from replug_client.evaluation.likelihood import LikelihoodTable, evaluate_conditions
from replug_client.evaluation.lm import EXAMPLES_PER_CALL
from replug_client.evaluation.retrieved import retrieve
from replug_client.supervisor.cache import ScoreCache
from replug_client.supervisor.cached import CachedSupervisor
from replug_client.supervisor.client import RemoteSupervisor
from replug_client.supervisor.endpoint import Endpoint
from replug_client.supervisor.prompts import PromptBuilder
from replug_client.supervisor.protocol import Prompt, Score, Supervisor
from replug_client.supervisor.tokenizer import FolderTokenizer

_CONDITIONS = parse_conditions(["none random bm25"], ["first concat-2 ensemble-3"])
_WINDOWS = WindowOptions(context_len=64, pred_len=64, min_pred_len=64)
_PASSAGE_LINES, _PASSAGE_TOKENS, _MAX_PROMPT = 20, 192, 1024
_LOOP_PART = 6  # of the prompts, one in so many
_GOALS = {"ceiling": 0.95, "loop": 3.0}


@dataclass(frozen=True, slots=True)
class Work:
    """What is evaluated: all but the supervisor."""

    examples: Sequence[Example]
    found: dict[str, Retrieved]
    store: PassageStore
    tokenizer: FolderTokenizer

    def evaluate(self, supervisor: Supervisor) -> LikelihoodTable:
        """The table, as the command makes it."""
        builder = PromptBuilder(
            self.tokenizer, retrieved_max_length=_PASSAGE_TOKENS, max_prompt_tokens=_MAX_PROMPT
        )
        return evaluate_conditions(
            self.examples,
            _CONDITIONS,
            self.found,
            self.store,
            builder,
            supervisor,
            examples_per_call=EXAMPLES_PER_CALL["server"],
        )


@dataclass(slots=True)
class Recorder:
    """A supervisor that notes what it is asked."""

    name: str = "recorder"
    fingerprint: str = "recorder"
    max_prompt_tokens: int = _MAX_PROMPT
    prompts: list[Prompt] = field(default_factory=list)

    def score(self, prompts: Sequence[Prompt]) -> list[Score]:
        """Every token as likely as not."""
        self.prompts += prompts
        return [Score(np.full(prompt.num_continuation, -0.7, np.float32)) for prompt in prompts]

    def submit(self, prompts: Sequence[Prompt]) -> Future[list[Score]]:
        """The same, at once."""
        future: Future[list[Score]] = Future()
        future.set_result(self.score(prompts))
        return future

    def close(self) -> None:
        """Nothing to release."""


def main() -> None:
    """Measure, and print the table."""
    given = _arguments()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        began = time.perf_counter()
        work = make_work(given.examples, Path(folder))
        seconds = time.perf_counter() - began
        recorder = Recorder()
        work.evaluate(recorder)
        prompts = recorder.prompts
        base_url = given.base_url or stack.enter_context(
            running_server(given.model, ["--dtype", given.dtype] if given.dtype else [])
        )
        server = look(base_url, given.model)
        tokens = sum(len(prompt.ids) for prompt in prompts)
        print(
            f"\n{len(work.examples)} examples, {len(_CONDITIONS)} conditions; cut and retrieved in {seconds:.1f} s"
        )
        print(
            f"{len(prompts)} prompts of {tokens / len(prompts):.0f} tokens, format {server.wire_format.name}"
        )
        at_once = best_concurrency(server, prompts)
        table = _in_turns(server, work, prompts, at_once, given.rounds)
    print(f"\nceiling: at {at_once} requests in flight")
    _print(table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--base_url", "--base-url", help="of a server that runs already, with /v1")
    parser.add_argument("--model", default=str(LM), help="default: the demo LM")
    parser.add_argument("--dtype", help="of the server; default: as planned")
    given = parser.parse_args()
    if min(given.examples, given.rounds) < 1:
        parser.error("--examples and --rounds must be at least 1")
    return given


def make_work(count: int, folder: Path) -> Work:
    """Every second module of the standard library in passages, windows of the others to predict."""
    tokenizer = FolderTokenizer.load(str(LM), local_only=True)
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    texts = {path.name: path.read_text(encoding="utf-8", errors="replace") for path in files}
    names = [name for name, text in texts.items() if text.strip()]
    passages = []
    for name in names[::2]:
        lines = texts[name].splitlines(keepends=True)
        pieces = ("".join(lines[at : at + _PASSAGE_LINES]) for at in range(0, len(lines), _PASSAGE_LINES))
        passages += [Passage(f"{name}#{n}", piece) for n, piece in enumerate(pieces) if piece.strip()]
    write_store([MemorySource(passages)], folder / "store")
    store = PassageStore(folder / "store")
    documents = (Document(name, texts[name]) for name in names[1::2])
    every = list(cut_examples(documents, tokenizer, _WINDOWS))
    examples = every[:: max(1, len(every) // count)][:count]
    queries = [example.query for example in examples]
    return Work(
        examples, retrieve(passages_needed(_CONDITIONS, 1), queries, store, {}, seed=0), store, tokenizer
    )


def _in_turns(
    server: Server, work: Work, prompts: Sequence[Prompt], at_once: int, rounds: int
) -> dict[str, list[Measured]]:
    requests = requests_of(server, prompts)
    part = prompts[::_LOOP_PART]
    scores: dict[str, list[Score]] = {}

    def ceiling() -> Measured:
        load = run_load(server.base_url, requests, at_once)
        return Measured(len(prompts) / load.seconds, 1000 * load.cpu_seconds / len(prompts))

    def evaluation() -> Measured:
        measured, scores["evaluation"] = _evaluate(server, work, prompts)
        return measured

    def loop() -> Measured:
        measured, scores["loop"] = score_as_usual(server, part)
        return measured

    kinds: dict[str, Callable[[], Measured]] = {"ceiling": ceiling, "evaluation": evaluation, "loop": loop}
    found: dict[str, list[Measured]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, measure in kinds.items():
            found[kind].append(measure())
            print(f"  {kind:<10} {found[kind][-1].rate:7.1f} prompts/s", flush=True)
    compare(scores["evaluation"][::_LOOP_PART], scores["loop"])
    return found


def _evaluate(server: Server, work: Work, prompts: Sequence[Prompt]) -> tuple[Measured, list[Score]]:
    """Connecting and probing are not in the figure. The scores are taken out of the cache afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        remote = RemoteSupervisor(Endpoint.open(server.base_url), server.model)
        with closing(CachedSupervisor(remote, ScoreCache(Path(folder) / "scores.sqlite"))) as cached:
            began, cpu = time.perf_counter(), time.process_time()
            work.evaluate(cached)
            seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
            return Measured(len(prompts) / seconds, 1000 * cpu / len(prompts)), cached.score(prompts)


def _print(table: dict[str, list[Measured]]) -> None:
    print(f"{'':<12}{'prompts/s':>11}{'CPU s / 1,000 prompts':>24}")
    for kind, rounds in table.items():
        rate, cpu = statistics.median(m.rate for m in rounds), statistics.median(m.cpu for m in rounds)
        print(f"{kind:<12}{rate:>11.1f}{cpu:>24.2f}")
    for kind, goal in _GOALS.items():
        # Round by round, so that what slows the machine down for a while falls on both.
        ratio = statistics.median(
            ours.rate / other.rate for ours, other in zip(table["evaluation"], table[kind], strict=True)
        )
        print(f"evaluation / {kind}: {ratio:.2f} (goal: at least {goal:g})")


if __name__ == "__main__":
    main()
