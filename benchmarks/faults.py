"""What the client loses to each fault of a server: scores asked, lost, wrong, and asked again.

python -m benchmarks.faults [--rate 0.2] [--pairs 400] [--base_url URL --model NAME]

A seeded proxy stands between the client and a server, and spoils that share of the requests. The server is a
stand-in that computes nothing, and scores must be equal bit for bit; or a real one, and they must agree within
1e-3 nats a token, which float32 does whatever the batch. ``in vain`` counts prompts that were asked again though
no fault had spoilt their answer. Ends with status 1 where a score was lost or wrong.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Timer

import numpy as np

from benchmarks import _stand_in
from replug_client.errors import ReplugError
from replug_client.progress import configure_logging
from replug_client.supervisor.canary import CANARY
from replug_client.supervisor.client import ClientOptions, RemoteSupervisor
from replug_client.supervisor.endpoint import Endpoint
from replug_client.supervisor.protocol import Prompt, Score, StreamingSupervisor
from tests.faults.faults import TRANSIENT
from tests.faults.proxy import Counts, FaultProxy

_TIMEOUT = 5.0  # seconds for an answer
_PROMPTS_PER_REQUEST = 8  # fewer than a client takes by default: each fault is to strike many requests
_OUTAGE = 20.0  # seconds; longer than all attempts of a request take
_ROW = "{:<26}{:>6}{:>8}{:>6}{:>7}{:>8}{:>13}{:>9}{:>9}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the prompts: how many have no score, how many a wrong one, and the seconds it took."""

    lost: int
    wrong: int
    seconds: float


def main() -> int:
    """Print one line a fault; 1 if any score was lost or wrong."""
    options = _options()
    configure_logging("error")
    with _server(options.base_url) as base_url:
        tolerance = 1e-3 if options.base_url else 0.0
        with _open(base_url, options.model) as calm:
            prompts = _prompts(options.pairs, min(256, calm.max_prompt_tokens))
            expected = calm.score(prompts)
        print(
            _ROW.format(
                "fault", "rate", "scores", "lost", "wrong", "faults", "asked again", "in vain", "seconds"
            )
        )
        bad = 0
        rows = [*((fault.value, (fault,)) for fault in TRANSIENT), ("all of them", TRANSIENT)]
        for seed, (name, faults) in enumerate(rows):
            with (
                FaultProxy(base_url, seed=seed) as proxy,
                _open(proxy.base_url, options.model) as supervisor,
            ):
                proxy.counts = Counts()
                proxy.inject(*faults, rate=options.rate)
                outcome = _score(supervisor, prompts, expected, tolerance)
                _print(name, f"{options.rate:.0%}", prompts, outcome, proxy.counts)
                bad += outcome.lost + outcome.wrong
        with FaultProxy(base_url) as proxy, _open(proxy.base_url, options.model) as supervisor:
            proxy.counts = Counts()
            proxy.down()
            Timer(_OUTAGE, proxy.up).start()
            outcome = _score(supervisor, prompts, expected, tolerance)
            _print(f"server away for {_OUTAGE:.0f} s", "", prompts, outcome, proxy.counts)
            bad += outcome.lost + outcome.wrong
    return int(bad > 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=0.2)
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--base_url", help="of a server that runs; with /v1")
    parser.add_argument("--model", default=_stand_in.MODEL)
    options = parser.parse_args()
    if not 0 < options.rate < 1 or options.pairs < 1:
        parser.error("--rate must lie between 0 and 1, and --pairs must be at least 1")
    return options


@contextmanager
def _server(base_url: str | None) -> Iterator[str]:
    if base_url:
        yield base_url.rstrip("/")
    else:
        with _stand_in.running(0.001, 64) as own:
            yield own


def _open(base_url: str, model: str) -> RemoteSupervisor:
    options = ClientOptions(prompts_per_request=_PROMPTS_PER_REQUEST)
    return RemoteSupervisor(Endpoint.open(base_url, timeout=_TIMEOUT), model, options)


def _prompts(count: int, longest: int) -> list[Prompt]:
    """Random ids, low enough for any vocabulary."""
    random = np.random.default_rng(0)
    lengths = random.integers(longest // 4, longest, count)
    return [
        Prompt(tuple(random.integers(5, 250, length).tolist()), int(length) // 3, f"pair {number}")
        for number, length in enumerate(lengths)
    ]


def _score(
    supervisor: StreamingSupervisor, prompts: Sequence[Prompt], expected: Sequence[Score], tolerance: float
) -> Outcome:
    found: dict[int, Score] = {}
    began = time.perf_counter()
    try:
        supervisor.submit(prompts, lambda at, scores: found.update(zip(at, scores, strict=True))).result()
    except ReplugError as error:
        print(f"error: {error}")
    seconds = time.perf_counter() - began
    differences = [
        np.abs(score.token_log_probs - expected[position].token_log_probs).max()
        for position, score in found.items()
    ]
    wrong = sum(difference > tolerance for difference in differences)
    return Outcome(len(prompts) - len(found), int(wrong), seconds)


def _print(name: str, rate: str, prompts: Sequence[Prompt], outcome: Outcome, counts: Counts) -> None:
    own = {prompt.ids for prompt in prompts}
    again = sum(times - 1 for ids, times in counts.asked.items() if ids in own)
    in_vain = sum(times for ids, times in counts.unexplained().items() if ids != CANARY.ids)
    figures = (len(prompts), outcome.lost, outcome.wrong, counts.faults.total(), again, in_vain)
    print(_ROW.format(name, rate, *figures, f"{outcome.seconds:.1f}"), flush=True)


if __name__ == "__main__":
    sys.exit(main())
