"""CPU time that asking for a score takes, by the way in which it is sent; everything else the same.

python -m benchmarks.sending [--pairs 3000] [--rounds 3]

  apart    the client in a process of its own, as `replug train` has it: what is left to this process
  own      the client in this process, over its own connections
  openai   the same through the openai client

A stand-in server answers at once, in vLLM's two formats: vllm-generate (of a GPU server, one pair a request) and vllm
(many). Timed is the whole client: prompts grouped and sent, answers read and checked, scores in a cache in memory.
For the two in this process, 1,000 over the figure is how many pairs a second it can ask for at most; of all, what a
trainer in the same process loses meanwhile. Medians of the rounds; the ways take turns.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

from benchmarks import _stand_in
from replug_client.progress import configure_logging
from replug_client.supervisor.apart import SupervisorApart
from replug_client.supervisor.cache import ScoreCache
from replug_client.supervisor.cached import CachedSupervisor
from replug_client.supervisor.client import RemoteSupervisor
from replug_client.supervisor.endpoint import Endpoint, make_client
from replug_client.supervisor.protocol import Prompt
from replug_client.training.heap import settled_heap

_TOKENS, _CONTINUATION, _VOCABULARY = 385, 128, 4000
_PARALLEL = 64
_FORMATS = ("vllm-generate", "vllm")
_ROW = "{:<16}{:>10}{:>10}{:>10}{:>16}{:>14}"
_WAYS: dict[str, Callable[[str], SupervisorApart | RemoteSupervisor]] = {
    "apart": lambda base_url: SupervisorApart([base_url], _stand_in.MODEL),
    "own": lambda base_url: RemoteSupervisor(Endpoint.open(base_url), _stand_in.MODEL),
    "openai": lambda base_url: RemoteSupervisor(make_client(base_url), _stand_in.MODEL),
}


def main() -> None:
    """Print a line for each format."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.pairs < 1 or options.rounds < 1:
        parser.error("--pairs and --rounds must be at least 1")
    configure_logging("error")
    print(f"this process' CPU seconds for 1,000 pairs of {_TOKENS} tokens, {_CONTINUATION} of them scored")
    print(_ROW.format("format", *_WAYS, "openai / own", "own / apart"))
    for name in _FORMATS:
        seconds: dict[str, list[float]] = {way: [] for way in _WAYS}
        with _stand_in.running(0.0, _PARALLEL, generate=name == "vllm-generate") as base_url:
            for turn in range(options.rounds):
                for way, connect in _WAYS.items():
                    seconds[way].append(cpu_seconds(connect(base_url), name, prompts(options.pairs, turn)))
        apart, own, openai = (1000 * statistics.median(seconds[way]) / options.pairs for way in _WAYS)
        figures = f"{apart:.2f}", f"{own:.2f}", f"{openai:.2f}", f"{openai / own:.1f}", f"{own / apart:.1f}"
        print(_ROW.format(name, *figures), flush=True)


def prompts(count: int, seed: int) -> list[Prompt]:
    """Random ids, all of one length."""
    source = random.Random(seed)
    return [
        Prompt(tuple(source.randrange(5, _VOCABULARY) for _ in range(_TOKENS)), _CONTINUATION)
        for _ in range(count)
    ]


def cpu_seconds(remote: SupervisorApart | RemoteSupervisor, name: str, work: list[Prompt]) -> float:
    """Of this process, for scoring all of it once.

    Raises:
        SystemExit: the client chose another format.
    """
    with CachedSupervisor(remote, ScoreCache(None)) as supervisor, settled_heap():
        if remote.format != name:
            raise SystemExit(f"expected the format {name}, the client chose {remote.format}")
        began = time.process_time()
        supervisor.score(work)
        return time.process_time() - began


if __name__ == "__main__":
    main()
