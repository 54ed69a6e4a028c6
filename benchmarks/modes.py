"""What a step and a refresh cost in each mode, by size of the index; and the memory that gradient caching saves.

python -m benchmarks.modes [--passages 16000 160000 1000000] [--batch_size 8] [--n_docs 10] [--memory_batch 64]

The encoder is MiniLM in float32. A step is forward, backward and AdamW's on one batch, alone: no retrieval, no
scoring. A refresh brings the passages' vectors and their index up to the weights: `query` needs none, `head` is
a matrix product over the base's vectors, `both` encodes every passage. Vectors are made up; for `both` the rate
is measured on a sample of texts, and its refresh is that rate times the number of passages (marked ~) and the
measured time of the index. Memory: two processes run the same step of K passages times the batch, one of them with
--grad_cache_chunk, and report by how much their peak rose above what they held before.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from demo.pipeline import minilm
from replug_client.retriever.asymmetric import query_encoder_of
from replug_client.retriever.encoder import EncoderOptions, encode_passages, load_encoder
from replug_client.retriever.index import FaissIndex
from replug_client.retriever.projection import first_weights, project, with_projection
from replug_client.training.loss import LSRLoss, ObjectiveOptions
from replug_client.training.trainer import freeze_word_embeddings, set_dropout

_ROUNDS = 5
_SAMPLE = 64  # passages encoded to tell the rate
_WORDS = ["return", "self", "value", "index", "None", "for", "in", "if", "not", "def", "class", "import"]
_MODES = ("query", "head", "both")


@dataclass(frozen=True, slots=True)
class Size:
    """Of one batch.

    Attributes:
        examples: Queries.
        n_docs: Candidates a query, all distinct.
        tokens: Words a text; about as many tokens.
    """

    examples: int
    n_docs: int
    tokens: int


def main() -> None:
    """Print one line a mode for the step, one a size for the refresh, and the memory's ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passages", type=int, nargs="+", default=[16_000, 160_000, 1_000_000])
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--n_docs", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=64, help="of a query and of a passage")
    parser.add_argument(
        "--memory_batch", type=int, default=64, help="queries of the memory's step; 0: leave it out"
    )
    parser.add_argument("--memory_docs", type=int, default=20)
    parser.add_argument("--grad_cache_chunk", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--measure_memory", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure_memory:
        size = Size(options.memory_batch, options.memory_docs, options.tokens)
        print(json.dumps(risen(size, options.grad_cache_chunk, options.device)))
        return
    if min(*options.passages, options.batch_size, options.n_docs, options.tokens) < 1:
        parser.error("sizes must be at least 1")
    size = Size(options.batch_size, options.n_docs, options.tokens)
    print_steps(size, options.device)
    print_refreshes(options.passages, options.tokens, options.device)
    if options.memory_batch:
        print_memory(options)


def print_steps(size: Size, device: str) -> None:
    """Seconds a step of each mode, measured in turns, and the ratio to ``query``."""
    steps = {mode: step_of(mode, size, device) for mode in _MODES}
    seconds = in_turns(steps)
    print(f"a step of {size.examples} queries, {size.n_docs} candidates each, {size.tokens} words a text")
    print(f"{'mode':<8}{'seconds':>12}{'to query':>12}")
    for mode, value in seconds.items():
        print(f"{mode:<8}{value:>12.4f}{value / seconds['query']:>12.4f}", flush=True)


def step_of(mode: str, size: Size, device: str) -> Callable[[], None]:
    """One optimiser step of the mode, on a batch that is made before."""
    base = load_encoder(EncoderOptions(str(minilm()), device=device))
    width = base.get_embedding_dimension() or 0
    vectors = made_up(size.examples * size.n_docs, width)
    model = base if mode == "both" else query_encoder_of(base)
    if mode == "head":
        base.requires_grad_(False)
        model = with_projection(base, first_weights(vectors, width))
    set_dropout(model, 0.0)
    freeze_word_embeddings(model)
    queries = tokens_of(base, texts(size.examples, size.tokens), device)
    ready = {"sentence_embedding": torch.from_numpy(vectors).to(device)}
    if mode == "head":
        queries = {"sentence_embedding": ready["sentence_embedding"][: size.examples]}
    passages = (
        tokens_of(base, texts(size.examples * size.n_docs, size.tokens), device) if mode == "both" else ready
    )
    return optimiser_step(model, queries, passages, labels_of(size, device))


def optimiser_step(
    model: SentenceTransformer,
    queries: dict[str, Tensor],
    passages: dict[str, Tensor],
    labels: Tensor,
    chunk: int = 0,
) -> Callable[[], None]:
    """Forward, backward and AdamW."""
    loss = LSRLoss(model.train(), ObjectiveOptions(0.1, 0.1), grad_cache_chunk=chunk)
    moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(moving, lr=1e-6)

    def step() -> None:
        optimiser.zero_grad()
        loss([dict(queries), dict(passages)], labels).backward()
        optimiser.step()

    return step


def print_refreshes(sizes: list[int], tokens: int, device: str) -> None:
    """Seconds of a refresh by mode and size; ``both`` by its rate."""
    base = load_encoder(EncoderOptions(str(minilm()), device=device))
    width = base.get_embedding_dimension() or 0
    sample = texts(_SAMPLE, tokens)
    encode_passages(base, sample[:16])
    each = in_turns({"encode": lambda: _nothing(encode_passages(base, sample))})["encode"] / _SAMPLE
    model = with_projection(base, np.eye(width))
    print(f"\na refresh: vectors and index; encoding takes {1000 * each:.2f} ms a passage")
    print(f"{'passages':>10}{'query':>8}{'head, s':>10}{'both, s':>12}{'both to head':>14}")
    for count in sizes:
        vectors = made_up(count, width)
        began = time.perf_counter()
        projected = project(model, [vectors])
        product = time.perf_counter() - began
        began = time.perf_counter()
        FaissIndex.from_vectors(projected)
        index = time.perf_counter() - began
        both, head = each * count + index, product + index
        print(f"{count:>10,}{'none':>8}{head:>10.2f}{'~':>3}{both:>9,.0f}{both / head:>14,.0f}", flush=True)


def print_memory(options: argparse.Namespace) -> None:
    """Memory of a step of ``both``, with gradient caching and without, each in a process of its own."""
    risen_by = {}
    for chunk in (0, options.grad_cache_chunk):
        command = [sys.executable, "-m", "benchmarks.modes", "--measure_memory"]
        for name in ("memory_batch", "memory_docs", "tokens", "device"):
            command += [f"--{name}", str(getattr(options, name))]
        done = subprocess.run(
            [*command, "--grad_cache_chunk", str(chunk)], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            risen_by[chunk] = json.loads(done.stdout.splitlines()[-1])
        else:
            print(f"\nchunk {chunk}: the process ended with {done.returncode}; most likely out of memory")
    passages = options.memory_batch * options.memory_docs
    print(
        f"\nmemory of a step of {options.memory_batch} queries, K = {options.memory_docs} ({passages:,} passages)"
    )
    for chunk, found in risen_by.items():
        print(f"{f'--grad_cache_chunk {chunk}':<24}{found['bytes'] / 1e9:>8.2f} GB{found['seconds']:>9.1f} s")
    if len(risen_by) == 2:
        without, cached = risen_by.values()
        print(
            f"without to with: memory {without['bytes'] / cached['bytes']:.1f}, "
            f"time {without['seconds'] / cached['seconds']:.2f}"
        )


def risen(size: Size, chunk: int, device: str) -> dict[str, float]:
    """By how many bytes the peak of memory rises in one step, and its seconds.

    A small step comes first, so that what is needed once (the optimiser's state, buffers) is no part of it.
    """
    model = load_encoder(EncoderOptions(str(minilm()), device=device))
    set_dropout(model, 0.0)
    freeze_word_embeddings(model)

    def step_for(part: Size) -> Callable[[], None]:
        queries = tokens_of(model, texts(part.examples, part.tokens), device)
        passages = tokens_of(model, texts(part.examples * part.n_docs, part.tokens), device)
        return optimiser_step(model, queries, passages, labels_of(part, device), chunk)

    step_for(Size(2, 2, size.tokens))()
    whole = step_for(size)
    before = peak(device)
    began = time.perf_counter()
    whole()
    seconds = time.perf_counter() - began
    return {"bytes": float(max(1, peak(device) - before)), "seconds": seconds}


def peak(device: str) -> int:
    """The most bytes that were held so far."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    # Not ru_maxrss, which begins at the parent's: the index of the largest size would hide what the step takes.
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), flags=re.MULTILINE)
    assert found is not None  # Linux has it
    return int(found[1]) * 1024


def in_turns(work: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Median seconds of each, in turns, after one to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for run in work.values():
        run()
    for _ in range(_ROUNDS):
        for name, run in work.items():
            began = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def texts(count: int, words: int) -> list[str]:
    """Made-up code of so many words each."""
    generator = np.random.default_rng(0)
    return [" ".join(generator.choice(_WORDS, size=words)) for _ in range(count)]


def tokens_of(model: SentenceTransformer, given: list[str], device: str) -> dict[str, Tensor]:
    """Tokenised, on the device."""
    found = model.preprocess(given)
    return {name: value.to(device) for name, value in found.items() if isinstance(value, Tensor)}


def made_up(count: int, width: int) -> npt.NDArray[np.float32]:
    """Vectors of length 1."""
    vectors = np.random.default_rng(0).standard_normal((count, width), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def labels_of(size: Size, device: str) -> Tensor:
    """Made-up scores; each query has candidates of its own."""
    columns = torch.arange(size.examples * size.n_docs).view(size.examples, size.n_docs)
    scores = -100 * torch.rand(columns.shape, generator=torch.Generator().manual_seed(0))
    ones = torch.full(columns.shape, 64.0)
    return torch.stack([scores, ones, ones, columns.float()], -1).double().to(device)


def _nothing(_: object) -> None:
    pass


if __name__ == "__main__":
    main()
