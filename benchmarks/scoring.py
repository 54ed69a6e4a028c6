"""Pairs a second of our client to the server's ceiling, the usual pattern and in-process scoring, in one run.

python -m benchmarks.scoring [--pairs 480] [--rounds 6] [--base_url http://HOST:8000/v1 --model NAME]

Without --base_url a server is started with the demo LM as `python -m server` would. Every line scores the same
pairs, of about 385 tokens (a passage of 192 to 320, 64 of query, 64 of continuation; no two share a prefix):

  ceiling     the client's own requests, their bytes made beforehand, sent by a bare load generator at the
              concurrency that suits the server best, and the answers thrown away
  client      RemoteSupervisor with an empty score cache on disk, concurrency auto
  usual       one blocking openai request a passage: echo, logprobs=1 (on a part of the pairs)
  in process  LocalSupervisor in the server's precision, at its best batch size, after the server has ended

The first three are measured in turns, in the opposite order each second time, and medians are shown.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import openai

from benchmarks._formats import format_table
from benchmarks._load import request_bytes, run_load
from benchmarks._server import running_server
from demo.pipeline import LM
from replug_client.supervisor.address import api_key
from replug_client.supervisor.cache import ScoreCache
from replug_client.supervisor.cached import CachedSupervisor
from replug_client.supervisor.client import ClientOptions, RemoteSupervisor
from replug_client.supervisor.endpoint import Endpoint
from replug_client.supervisor.formats import FORMATS, WireFormat
from replug_client.supervisor.local import LocalSupervisor
from replug_client.supervisor.options import LocalOptions
from replug_client.supervisor.prefixes import batches
from replug_client.supervisor.protocol import Prompt, Score
from replug_client.supervisor.tokenizer import FolderTokenizer
from server.options import ServeOptions
from server.serve import make_plan

_QUERY = _CONTINUATION = 64
_PASSAGE = (192, 320)
_CONCURRENCY = (1, 2, 4, 8, 16, 32)
_BATCH_TOKENS = (1024, 2048, 4096, 8192)
_USUAL_PART = 8  # of the pairs, one in so many
_SAME = 0.5  # nats per token; bfloat16 noise stays below
_GOALS = {"ceiling": 0.95, "usual": 3.0}


@dataclass(frozen=True, slots=True)
class Measured:
    """One measurement: pairs a second, and CPU seconds of this process for 1,000 pairs."""

    rate: float
    cpu: float


@dataclass(frozen=True, slots=True)
class Server:
    """What is measured: where it is, its name for the model, and the client's format for it."""

    base_url: str
    model: str
    wire_format: WireFormat


def main() -> None:
    """Measure, and print the tables."""
    given = _arguments()
    prompts = make_pairs(given.pairs)
    with ExitStack() as stack:
        base_url = given.base_url
        if base_url is None:
            dtype = ["--dtype", given.dtype] if given.dtype else []
            base_url = stack.enter_context(running_server(given.model, [*dtype, *given.server_arguments]))
        server = look(base_url, given.model)
        tokens = sum(len(prompt.ids) for prompt in prompts)
        print(
            f"\n{len(prompts)} pairs of {tokens / len(prompts):.0f} tokens, format {server.wire_format.name}"
        )
        at_once = best_concurrency(server, prompts)
        table = _in_turns(server, prompts, at_once, given.rounds)
        formats = format_table(server.base_url, server.model, prompts[: max(8, given.pairs // 8)])
    if Path(given.model).is_dir():
        table["in process"] = _score_in_process(given, prompts, given.rounds)
    print(f"\nceiling: at {at_once} requests in flight")
    _print(table)
    print("\n" + formats)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=480)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--base_url", "--base-url", help="of a server that runs already, with /v1")
    parser.add_argument("--model", default=str(LM), help="default: the demo LM")
    parser.add_argument("--dtype", help="of the server and the in-process model; default: as planned")
    parser.add_argument("server_arguments", nargs="*", help="after a --: for python -m server")
    given = parser.parse_args()
    if min(given.pairs, given.rounds) < 1:
        parser.error("--pairs and --rounds must be at least 1")
    return given


def make_pairs(count: int) -> list[Prompt]:
    """Windows of the standard library's code, in tokens of the demo LM (low ids, in every vocabulary)."""
    tokenizer = FolderTokenizer.load(str(LM), local_only=True)
    rng = random.Random(20240229)
    ids: list[int] = []
    needed = count * (_PASSAGE[1] + _QUERY + _CONTINUATION)
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        ids += tokenizer.encode(path.read_text(encoding="utf-8", errors="replace"))
        if len(ids) > needed:
            break
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    prompts, at = [], 0
    for number in range(count):
        length = rng.randint(*_PASSAGE) + _QUERY + _CONTINUATION
        window = [ids[(at + i) % len(ids)] for i in range(length)]
        at += length
        prompts.append(Prompt((*begin, *window), _CONTINUATION, f"pair {number}"))
    return prompts


def look(base_url: str, model: str) -> Server:
    """Ask the server as the client does, and note the format that it chose."""
    with RemoteSupervisor(Endpoint.open(base_url), model) as supervisor:
        (chosen,) = [f for f in FORMATS if f.name == supervisor.format]
        return Server(base_url, supervisor.name, chosen)


def requests_of(server: Server, prompts: Sequence[Prompt]) -> list[bytes]:
    """The requests into which the client puts them."""
    options = ClientOptions()
    most = server.wire_format.max_prompts or options.prompts_per_request
    lengths = [len(prompt.ids) for prompt in prompts]
    return [
        request_bytes(server.base_url, server.wire_format, server.model, [prompts[i] for i in chunk])
        for chunk in batches(lengths, options.tokens_per_request, min(most, options.prompts_per_request))
    ]


def best_concurrency(server: Server, prompts: Sequence[Prompt]) -> int:
    """How many requests in flight suit the server best; prints what it tries."""
    requests = requests_of(server, prompts)
    run_load(server.base_url, requests[:4], 4)  # warm
    rates = {}
    for at_once in _CONCURRENCY:
        if at_once <= max(1, len(requests)):
            rates[at_once] = len(prompts) / run_load(server.base_url, requests, at_once).seconds
            print(f"  {at_once:>2} requests in flight: {rates[at_once]:7.1f} pairs/s", flush=True)
    return max(rates, key=rates.__getitem__)


def _in_turns(
    server: Server, prompts: Sequence[Prompt], at_once: int, rounds: int
) -> dict[str, list[Measured]]:
    requests = requests_of(server, prompts)
    part = prompts[::_USUAL_PART]
    scores: dict[str, list[Score]] = {}

    def ceiling() -> Measured:
        load = run_load(server.base_url, requests, at_once)
        return Measured(len(prompts) / load.seconds, 1000 * load.cpu_seconds / len(prompts))

    def client() -> Measured:
        measured, scores["client"] = score_with_client(server, prompts)
        return measured

    def usual() -> Measured:
        measured, scores["usual"] = score_as_usual(server, part)
        return measured

    kinds: dict[str, Callable[[], Measured]] = {"ceiling": ceiling, "client": client, "usual": usual}
    found: dict[str, list[Measured]] = {kind: [] for kind in kinds}
    for number in range(rounds):
        # There and back: what slows the machine down as time goes on falls on all of them alike.
        for kind, measure in list(kinds.items())[:: -1 if number % 2 else 1]:
            found[kind].append(measure())
            print(f"  {kind:<8} {found[kind][-1].rate:7.1f} pairs/s", flush=True)
    compare(scores["client"][::_USUAL_PART], scores["usual"])
    return found


def score_with_client(server: Server, prompts: Sequence[Prompt]) -> tuple[Measured, list[Score]]:
    """Everything on, cache empty; connecting and probing are not in the figure."""
    with tempfile.TemporaryDirectory() as folder:
        supervisor = RemoteSupervisor(Endpoint.open(server.base_url), server.model)
        cached = CachedSupervisor(supervisor, ScoreCache(Path(folder) / "scores.sqlite"))
        try:
            return _timed(lambda: cached.score(prompts), len(prompts))
        finally:
            cached.close()


def score_as_usual(server: Server, prompts: Sequence[Prompt]) -> tuple[Measured, list[Score]]:
    """One blocking openai request a prompt."""
    client = openai.OpenAI(base_url=server.base_url, api_key=api_key(), max_retries=0)

    def one(prompt: Prompt) -> Score:
        answer = client.completions.create(
            model=server.model, prompt=list(prompt.ids), echo=True, logprobs=1, max_tokens=1, temperature=0
        )
        block = answer.choices[0].logprobs
        if block is None or block.token_logprobs is None:
            raise SystemExit("the server does not echo log-probs")
        values = block.token_logprobs[len(prompt.ids) - prompt.num_continuation : len(prompt.ids)]
        return Score(np.array(values, dtype=np.float32))

    with client:
        return _timed(lambda: [one(prompt) for prompt in prompts], len(prompts))


def _timed(score: Callable[[], list[Score]], count: int) -> tuple[Measured, list[Score]]:
    began, cpu = time.perf_counter(), time.process_time()
    scores = score()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return Measured(count / seconds, 1000 * cpu / count), scores


def compare(ours: Sequence[Score], others: Sequence[Score]) -> None:
    """Speed counts only where the numbers are the same."""
    largest = max(
        float(np.abs(a.token_log_probs - b.token_log_probs).max()) for a, b in zip(ours, others, strict=True)
    )
    print(f"  largest difference per token, client to usual pattern: {largest:.1e} nats")
    if largest > _SAME:
        sys.exit(f"the client's scores are not those of the usual pattern (more than {_SAME} nats apart)")


def _score_in_process(given: argparse.Namespace, prompts: Sequence[Prompt], rounds: int) -> list[Measured]:
    """All rounds of the batch size that was best in the first."""
    dtype = given.dtype or _server_dtype(given)
    found: dict[int, list[Measured]] = {}
    for batch_tokens in _BATCH_TOKENS:
        with closing(
            LocalSupervisor.load(given.model, LocalOptions(dtype=dtype, batch_tokens=batch_tokens))
        ) as local:
            local.score(prompts[:8])  # warm
            found[batch_tokens] = [_timed(partial(local.score, prompts), len(prompts))[0]]
        rate = found[batch_tokens][0].rate
        print(f"  in process, {dtype}, {batch_tokens:>5} tokens a batch: {rate:7.1f} pairs/s", flush=True)
    best = max(found, key=lambda batch_tokens: found[batch_tokens][0].rate)
    with closing(LocalSupervisor.load(given.model, LocalOptions(dtype=dtype, batch_tokens=best))) as local:
        for _ in range(rounds - 1):
            found[best].append(_timed(partial(local.score, prompts), len(prompts))[0])
    return found[best]


def _print(table: dict[str, list[Measured]]) -> None:
    print(f"{'':<12}{'pairs/s':>9}{'CPU s / 1,000 pairs':>22}{'to the client':>16}")
    for kind, rounds in table.items():
        # Round by round, so that what slows the machine down for a while falls on both.
        ratios = [mine.rate / ours.rate for mine, ours in zip(rounds, table["client"], strict=True)]
        rate, cpu = statistics.median(m.rate for m in rounds), statistics.median(m.cpu for m in rounds)
        print(f"{kind:<12}{rate:>9.1f}{cpu:>22.2f}{statistics.median(ratios):>16.2f}")
    for kind, goal in _GOALS.items():
        ratio = statistics.median(
            ours.rate / other.rate for ours, other in zip(table["client"], table[kind], strict=True)
        )
        print(f"client / {kind}: {ratio:.2f} (goal: at least {goal:g})")


def _server_dtype(given: argparse.Namespace) -> str:
    if given.base_url is not None:
        return "auto"
    plan = make_plan(ServeOptions(given.model))[0]
    return next((s.value for s in plan.settings if s.name == "--dtype" and s.value), "auto")


if __name__ == "__main__":
    main()
