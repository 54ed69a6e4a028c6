"""The score cache as it grows tenfold: look-ups and writes a second, bytes an entry, memory, a second epoch.

python -m benchmarks.cache [--entries 10000000] [--tokens 128] [--dir FOLDER]

The file is filled in ten parts, each sorted by key and written in large transactions: within minutes it has
the shape of one that grew score by score, since every part goes all over the tree. What is measured is what
a run does: puts of one request's scores, a transaction each, and look-ups of one submission's keys.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from replug_client.supervisor.cache import ScoreCache, cache_key
from replug_client.supervisor.cached import CachedSupervisor
from replug_client.supervisor.fake import FakeSupervisor
from replug_client.supervisor.protocol import Prompt, Score

_A_PUT, _A_GET = 8, 64  # scores in a request; pairs in a training batch
_PUTS, _GETS = 2000, 2000
_PARTS, _TRANSACTION = 10, 50_000
_EPOCH = 1000  # pairs


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Measured:
    """What the cache does at one size; rates in scores a second, memory in bytes."""

    entries: int
    hits: float
    misses: float
    puts: float
    file: int
    memory: int


def main() -> None:
    """Measure at a tenth of the entries and at all of them, and print both with their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entries", type=int, default=10_000_000)
    parser.add_argument("--tokens", type=int, default=128, help="of a continuation")
    parser.add_argument("--dir", type=Path, help="where the file lies for as long as this runs")
    options = parser.parse_args()
    if options.entries < 10 * _A_GET or options.tokens < 1:
        parser.error(f"--entries must be at least {10 * _A_GET}, and --tokens at least 1")
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        path = Path(folder) / "scores.sqlite"
        first = options.entries // 10
        small = grow_and_measure(path, 0, first, options.tokens)
        large = grow_and_measure(path, first, options.entries, options.tokens)
        epochs = two_epochs(path, options.tokens)
    print_table(small, large)
    print(epochs)


def grow_and_measure(path: Path, have: int, want: int, tokens: int) -> Measured:
    """Fill the file up, open it anew as a run does, and measure."""
    began = time.perf_counter()
    fill(path, have, want, tokens)
    print(f"filled to {want:,} entries in {time.perf_counter() - began:.0f} s", flush=True)
    before = anonymous_memory()
    cache = ScoreCache(path)
    random = np.random.default_rng(want)
    known = [[key_of(int(n)) for n in random.integers(0, want, _A_GET)] for _ in range(_GETS)]
    unknown = [[key_of(int(n)) for n in random.integers(2**40, 2**41, _A_GET)] for _ in range(_GETS)]
    scores = list(values(tokens, _A_PUT, random))
    fresh = [
        [(key_of(int(n)), s) for n, s in zip(random.integers(2**41, 2**42, _A_PUT), scores, strict=True)]
        for _ in range(_PUTS)
    ]
    for keys in known[:20]:
        cache.get(keys)
    hits = rate(lambda keys: _expect(len(cache.get(keys)), len(set(keys))), known)
    misses = rate(lambda keys: _expect(len(cache.get(keys)), 0), unknown)
    puts = rate(cache.put, fresh)
    memory = anonymous_memory() - before
    entries = len(cache)
    cache.close()  # the last to close it folds the log into the file
    _expect(entries, want + _PUTS * _A_PUT + (_PUTS * _A_PUT if have else 0))
    return Measured(entries, hits, misses, puts, path.stat().st_size, memory)


def fill(path: Path, have: int, want: int, tokens: int) -> None:
    """Put the scores numbered ``have`` to ``want`` - 1, in parts of a tenth."""
    cache = ScoreCache(path)
    random = np.random.default_rng(have)
    edges = np.linspace(have, want, _PARTS + 1).astype(int)
    for start, stop in pairwise(edges.tolist()):
        keys = sorted(key_of(number) for number in range(start, stop))
        for first in range(0, len(keys), _TRANSACTION):
            part = keys[first : first + _TRANSACTION]
            cache.put(zip(part, values(tokens, len(part), random), strict=True))
    cache.close()


def key_of(number: int) -> bytes:
    """The key of a made-up prompt, by the function that every key comes from."""
    return cache_key("benchmark", Prompt((number >> 24, number & 0xFFFFFF), 1))


def values(tokens: int, count: int, random: np.random.Generator) -> Iterator[Score]:
    """Made-up scores."""
    drawn: npt.NDArray[np.float32] = -8 * random.random((count, tokens), dtype=np.float32)
    return map(Score, drawn)


def rate(work: Callable[[list[T]], None], parts: list[list[T]]) -> float:
    """Scores a second."""
    began = time.perf_counter()
    for part in parts:
        work(part)
    return sum(map(len, parts)) / (time.perf_counter() - began)


def anonymous_memory() -> int:
    """Bytes that this process alone holds: pages of the file that the kernel keeps are not counted."""
    status = Path(f"/proc/{os.getpid()}/status").read_text(encoding="ascii")
    found = re.search(r"^RssAnon:\s+(\d+) kB$", status, flags=re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def two_epochs(path: Path, tokens: int) -> str:
    """The same pairs twice, through the cache, with the file closed in between."""
    random = np.random.default_rng(1)
    ids = random.integers(0, 32_000, (_EPOCH, 2 * tokens)).tolist()
    prompts = [Prompt(tuple(own), tokens) for own in ids]
    requests, seconds = [], []
    for _ in range(2):
        fake = FakeSupervisor(max_prompt_tokens=2 * tokens)
        with CachedSupervisor(fake, ScoreCache(path)) as supervisor:
            began = time.perf_counter()
            for start in range(0, _EPOCH, _A_GET):
                supervisor.score(prompts[start : start + _A_GET])
            seconds.append(time.perf_counter() - began)
        requests.append(len(fake.asked))
    _expect(requests[0], _EPOCH)
    _expect(requests[1], 0)
    return (
        f"first epoch: {requests[0]} of {_EPOCH} pairs asked of the supervisor; second epoch: {requests[1]}"
        f" ({_EPOCH / seconds[1]:,.0f} pairs/s)"
    )


def _expect(found: int, expected: int) -> None:
    if found != expected:
        raise SystemExit(f"found {found} scores, expected {expected}: the cache lost or invented some")


def print_table(small: Measured, large: Measured) -> None:
    """One line a figure: at both sizes, and the larger over the smaller."""
    lines = [
        ("look-ups that hit, scores/s", small.hits, large.hits),
        ("look-ups that miss, scores/s", small.misses, large.misses),
        (f"writes, {_A_PUT} a transaction, scores/s", small.puts, large.puts),
        ("file, bytes an entry", small.file / small.entries, large.file / large.entries),
        ("memory of the process, MB", small.memory / 1e6, large.memory / 1e6),
    ]
    print(f"{'entries':<38}{small.entries:>14,}{large.entries:>14,}{'ratio':>8}")
    for name, first, second in lines:
        print(f"{name:<38}{first:>14,.0f}{second:>14,.0f}{second / first if first else float('nan'):>8.2f}")


if __name__ == "__main__":
    main()
