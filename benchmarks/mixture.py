"""Tokens a second of REPLUG's mixture over a server, to the server's own plain generation; cache and dropped mass.

python -m benchmarks.mixture [--questions 6] [--max_tokens 32] [--base_url http://HOST:8000/v1 --model NAME]

Without --base_url a server is started with the demo LM as `python -m server` would, with --enable-prefix-caching. All
lines answer the same questions, greedily, one at a time: the beginning of a piece of a standard library file (96
tokens), over four pieces of the same file (128 tokens each). Questions are measured in turns over the lines; ahead
is what the server generates in advance behind each passage (--look_ahead). Cached is the share of the prompts' tokens
that the server had in its prefix cache.
"""

from __future__ import annotations

import argparse
import re
import sysconfig
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import numpy as np

from benchmarks._server import running_server
from demo.pipeline import LM
from replug_client.inference import Answer, Answerer, AnswererOptions, GenerationOptions
from replug_client.supervisor.client import RemoteSupervisor
from replug_client.supervisor.endpoint import Endpoint
from replug_client.supervisor.tokenizer import FolderTokenizer, load_tokenizer

_QUERY, _PASSAGE, _PASSAGES = 96, 128, 4
_ROW = "{:<32}{:>9}{:>10}{:>17}{:>8}{:>21}{:>9}"
_QUERIES = "vllm:prefix_cache_queries_total"
_HITS = "vllm:prefix_cache_hits_total"
_REQUESTS = "vllm:request_success_total"


@dataclass(slots=True)
class Line:
    """One way to answer, and what came of it."""

    name: str
    combination: str
    answerer: Answerer
    passages: int = _PASSAGES
    seconds: float = 0.0
    counted: np.ndarray = field(default_factory=lambda: np.zeros(3))
    answers: list[Answer] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Tokens a second; of whole answers, all of them."""
        each = _PASSAGES if self.combination == "ensemble-answers" else 1
        return each * sum(len(answer.tokens) for answer in self.answers) / self.seconds

    def cells(self, plain: float) -> list[str]:
        """The table's row."""
        tokens = sum(len(answer.tokens) for answer in self.answers)
        queries, hits, prompts = self.counted
        dropped = np.concatenate([answer.dropped_mass for answer in self.answers])
        certain = np.concatenate([answer.certain for answer in self.answers])
        mixed = self.combination == "ensemble"
        return [
            self.name,
            f"{self.rate:.1f}",
            f"{self.rate / plain:.2f}",
            f"{prompts / tokens:.2f}",
            f"{hits / queries:.0%}" if queries else "off",
            f"{dropped.mean():.3f} / {dropped.max():.3f}" if mixed else "",
            f"{certain.mean():.0%}" if mixed else "",
        ]


def questions(tokenizer: FolderTokenizer, count: int) -> list[tuple[str, list[str]]]:
    """A prefix each, and the pieces of the same file that stand before it."""
    needed = _QUERY + _PASSAGES * _PASSAGE
    found = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        ids = tokenizer.encode(path.read_text("utf-8", "ignore"))
        if len(ids) >= needed:
            pieces = [ids[at : at + _PASSAGE] for at in range(0, _PASSAGES * _PASSAGE, _PASSAGE)]
            prefix = ids[_PASSAGES * _PASSAGE : needed]
            found.append((tokenizer.decode(prefix), [tokenizer.decode(piece) for piece in pieces]))
        if len(found) == count:
            return found
    raise SystemExit(f"only {len(found)} files of the standard library are long enough")


def counters(base_url: str) -> np.ndarray:
    """Prompt tokens looked up in the prefix cache, found there, and prompts answered, so far."""
    text = httpx2.get(base_url.removesuffix("/v1") + "/metrics").raise_for_status().text
    return np.array(
        [
            sum(map(float, re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)))
            for name in (_QUERIES, _HITS, _REQUESTS)
        ]
    )


def run(base_url: str, model: str, tokenizer: FolderTokenizer, count: int, max_tokens: int) -> str:
    """Measure, and give the table."""
    options = GenerationOptions(max_tokens=max_tokens)
    with RemoteSupervisor(Endpoint.open(base_url), model) as supervisor:

        def answerer(look_ahead: int = 0) -> Answerer:
            how = AnswererOptions(look_ahead=look_ahead, posterior=False, retrieved_max_length=_PASSAGE)
            return Answerer(supervisor, tokenizer, how)

        lines = [
            Line("plain: one passage, streamed", "concat", answerer(), 1),
            Line("concat: four passages, streamed", "concat", answerer()),
            *[Line(f"ensemble of four, ahead {n}", "ensemble", answerer(n)) for n in (0, 1, 4, 8)],
            Line("ensemble-answers: four answers", "ensemble-answers", answerer()),
        ]
        for number, (prefix, passages) in enumerate(
            [questions(tokenizer, 1)[0], *questions(tokenizer, count)]
        ):
            for line in lines:
                before, began = counters(base_url), time.perf_counter()
                answer = line.answerer.answer(
                    prefix, passages[: line.passages], None, line.combination, options
                )
                seconds = time.perf_counter() - began
                if number == 0:
                    continue  # the first one warms up
                line.seconds += seconds
                line.counted += counters(base_url) - before
                line.answers.append(answer)
    plain = lines[0].rate
    head = ["", "tokens/s", "to plain", "prompts a token", "cached", "dropped mean / max", "certain"]
    return "\n".join(_ROW.format(*cells) for cells in [head, *(line.cells(plain) for line in lines)])


def main() -> None:
    """Parse the command line and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=6)
    parser.add_argument("--max_tokens", type=int, default=32)
    parser.add_argument("--base_url")
    parser.add_argument("--model", default=str(LM))
    parser.add_argument("--tokenizer")
    given = parser.parse_args()
    tokenizer = load_tokenizer(given.tokenizer or given.model)
    if not isinstance(tokenizer, FolderTokenizer):
        raise SystemExit("give the model's tokenizer with --tokenizer FOLDER")
    with ExitStack() as stack:
        base_url = given.base_url or stack.enter_context(
            running_server(given.model, ["--", "--enable-prefix-caching"])
        )
        print(run(base_url, given.model, tokenizer, given.questions, given.max_tokens))


if __name__ == "__main__":
    main()
