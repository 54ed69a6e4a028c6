"""``python -m server check``: would training work with this server, how fast, and what would make it faster."""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from server.advice import Observed, advise, read_metrics
from server.errors import ServerError
from server.probe import Served, ask, root_of, served_models

if TYPE_CHECKING:
    from server.scoring import LogProbs, Scorer

# Nats per token. bfloat16 noise between batches: about 0.01 on average, a few tenths at worst; another text
# or a shift by a token: several nats.
MOST = 0.5
MEAN = 0.05
_LENGTHS = (1.0, 0.3, 0.8, 0.5, 0.65, 0.9)  # of the test pairs, of --tokens
_DEFAULT_URL = "http://127.0.0.1:8000/v1"


def parser() -> argparse.ArgumentParser:
    """Of ``python -m server check``."""
    made = argparse.ArgumentParser(
        prog="python -m server check",
        description="Try a server as training would use it. The exit status is 0 only if training would work.",
        allow_abbrev=False,
    )
    add = made.add_argument
    add(
        "--base_url",
        "--base-url",
        action="append",
        help="of a server, with /v1; several by commas, or by repeating it (default OPENAI_BASE_URL,"
        f" or {_DEFAULT_URL})",
    )
    add("--model", help="as training is given it; default: what the server serves, if that is one")
    add("--tokenizer", help="as training is given it; default: the model's")
    add(
        "--tokens",
        type=int,
        default=385,
        help="of a pair: passage, query, continuation (default %(default)s)",
    )
    add("--continuation", type=int, default=128, help="of these, scored at the end (default %(default)s)")
    add(
        "--concurrency",
        default="1,4,16",
        help="requests in flight to try, besides auto (default %(default)s)",
    )
    add("--seconds", type=float, default=3.0, help="at least, for each of these (default %(default)s)")
    return made


def main(arguments: Sequence[str]) -> int:
    """Check every server; 0 if training would work with all of them."""
    made = parser()
    given = made.parse_args(arguments)
    if not 1 <= given.continuation < given.tokens:
        made.error("--continuation must be at least 1, and less than --tokens")
    if not 0 < given.seconds < math.inf:
        made.error(f"--seconds {given.seconds:g}: expected a number above 0")
    levels = _levels(given.concurrency)
    try:
        import server.scoring  # noqa: F401
    except ImportError as error:
        raise ServerError(
            f"the check scores as training does, and for that needs replug itself ({error})",
            "Run it in replug's own environment: .venv/bin/python -m server check ... (`make demo` makes .venv).",
        ) from error
    named = given.base_url or [os.environ.get("OPENAI_BASE_URL") or _DEFAULT_URL]
    urls = [url.strip().rstrip("/") for text in named for url in text.split(",") if url.strip()]
    if not urls:
        made.error(f"--base_url {','.join(named)!r} holds no URL; expected one such as {_DEFAULT_URL}")
    usable, model = 0, given.model
    for url in urls:
        print(url, flush=True)
        try:
            one = Check(url, given.model, given.tokens, given.continuation)
            one.run(levels, given.seconds)
        except ServerError as error:
            print(f"  NOT usable: {error}\n", flush=True)
        else:
            usable, model = usable + 1, model or one.model
    print(f"{usable} of {len(urls)} server(s) can be trained with, each by itself", flush=True)
    return 0 if usable == len(urls) and _together(urls, model, given.tokenizer) else 1


def _together(urls: Sequence[str], model: str, tokenizer: str | None) -> bool:
    """Whether they can be opened as training opens them: as one supervisor, with its tokenizer."""
    from server.scoring import open_as_training

    try:
        found = open_as_training(urls, model, tokenizer)
    except ServerError as error:
        print(f"NOT usable as --base_url {','.join(urls)} --model {model}: {error}", flush=True)
        return False
    print(f"opened as training opens them: {found}", flush=True)
    return True


class Check:
    """One server under test; prints what it finds as it finds it."""

    def __init__(self, base_url: str, model: str | None, tokens: int, continuation: int) -> None:
        """Nothing is asked yet; ``tokens`` of a pair, ``continuation`` of them scored."""
        self.base_url = base_url
        self._key = os.environ.get("OPENAI_API_KEY") or None
        self._asked_for = model
        self._tokens = tokens
        self._continuation = continuation
        self.model = ""

    def run(self, levels: Sequence[int], seconds: float) -> None:
        """All of it.

        Raises:
            ServerError: training would not work; why.
        """
        served = self._served()
        self.model = served.name
        print(f"  model: {served.name}, at most {served.max_model_len or 'an unknown number of'} tokens")
        if served.max_model_len is not None and served.max_model_len <= self._tokens:
            raise ServerError(
                f"a pair of {self._tokens} tokens does not fit into {served.max_model_len} with one to spare",
                "Start the server with a larger --max-model-len, or train with shorter pairs (--tokens here).",
            )
        formats = self.formats()
        self.exactness(formats)
        before, start = self._metrics()[0], time.monotonic()
        rates = self.rates(levels, seconds)
        after, config = self._metrics()
        rises = {name: value - before.get(name, 0.0) for name, value in after.items()}
        seen = Observed(tuple(formats), rates, rises, config, time.monotonic() - start)
        for line in advise(seen):
            print(f"  faster? {line}")
        print("  OK: training would work\n", flush=True)

    def formats(self) -> list[str]:
        """Names of those that work, the one that training would take first.

        Raises:
            ServerError: none does.
        """
        from server.scoring import FORMAT_NAMES, connect

        working, reasons = [], []
        for name in FORMAT_NAMES:
            try:
                with connect(self.base_url, self.model, wire_format=name):
                    working.append(name)
            except ServerError as error:
                reasons.append(f"{name}: {error.cause}")
        print(f"  formats: {', '.join(working) or 'none works'}", flush=True)
        if not working:
            raise ServerError("it gives no log-probs of prompts:\n    " + "\n    ".join(reasons))
        return working

    def exactness(self, formats: Sequence[str]) -> None:
        """The same numbers alone and in a crowd, in one piece and in two, in every format, and as generated.

        Raises:
            ServerError: they differ by more than the noise of bfloat16.
        """
        from server.scoring import connect, random_ids

        lengths = [max(4, int(self._tokens * share)) for share in _LENGTHS]
        pairs = [(random_ids(n), min(self._continuation, n // 2)) for n in lengths]
        with connect(self.base_url, self.model, concurrency=1, prompts_per_request=1) as alone:
            expected = alone.score(pairs)
            if self._continuation > 1:
                self._compare("in two pieces", expected, _in_two_pieces(alone, pairs))
            self._compare_generated(alone, pairs[0][0][: -self._continuation])
        for name in formats:
            with connect(self.base_url, self.model, wire_format=name) as crowd:
                self._compare(f"together, as {name}", expected, crowd.score(pairs))

    def rates(self, levels: Sequence[int], seconds: float) -> dict[int | Literal["auto"], float]:
        """Pairs a second by requests in flight; ``auto``: as many as the client finds right."""
        from server.scoring import connect, prompts_per_request

        found: dict[int | Literal["auto"], float] = {}
        tried: list[int | Literal["auto"]] = [*levels, "auto"]
        for level in tried:
            with connect(self.base_url, self.model, concurrency=level) as scorer:
                at_once = 2 * (max(levels) if level == "auto" else level) * prompts_per_request(self._tokens)
                found[level] = scorer.rate(self._tokens, self._continuation, seconds, at_once)
            print(f"  {level:>4} request(s) in flight: {found[level]:8.1f} pairs/s", flush=True)
        return found

    def _served(self) -> Served:
        if self._asked_for is not None:
            from server.scoring import find_model

            return find_model(self.base_url, self._asked_for)
        try:
            models = served_models(self.base_url, self._key)
        except OSError as error:
            raise ServerError(
                f"no answer ({error})", "Is it running? Start one: python -m server --model NAME_OR_FOLDER"
            ) from error
        names = ", ".join(model.name for model in models)
        if len(models) == 1:
            return models[0]
        raise ServerError(f"it serves {names or 'nothing'}", "Name one of these with --model.")

    def _compare(self, what: str, expected: Sequence[LogProbs], found: Sequence[LogProbs]) -> None:
        differences = [abs(float(x) - float(y)) for a, b in zip(expected, found, strict=True)
                       for x, y in zip(a, b, strict=True)]  # fmt: skip
        most, mean = max(differences), sum(differences) / len(differences)
        print(
            f"  exactness, {what}: off by {mean:.1g} nats a token on average, {most:.1g} at most", flush=True
        )
        if most > MOST or mean > MEAN:
            raise ServerError(
                f"the same pair gets other numbers ({what}): {mean:.3f} nats a token on average, {most:.3f} at"
                f" most; {MEAN} and {MOST} are noise",
                "A server that mixes up requests, or a cache or a quantisation that is not exact: serve with"
                " python -m server, which sets neither.",
            )

    def _compare_generated(self, scorer: Scorer, ids: Sequence[int]) -> None:
        """A generated token's own log-prob against its score: finds numbers that are shifted by one."""
        generated = self._generate(ids)
        if generated is None:
            print("  exactness, against a generated token: not checked, the server names no token ids")
            return
        token, log_prob = generated
        (score,) = scorer.score([([*ids, token], 1)])
        difference = abs(float(score[0]) - log_prob)
        print(f"  exactness, against a generated token: off by {difference:.1g} nats", flush=True)
        if difference > MOST:
            raise ServerError(
                f"a generated token has log-prob {log_prob:.3f}, but scored it has {float(score[0]):.3f}",
                "The server shifts its log-probs, or alters them (--logprobs-mode must be raw_logprobs).",
            )

    def _generate(self, ids: Sequence[int]) -> tuple[int, float] | None:
        payload = {
            "model": self.model,
            "prompt": [list(ids)],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": 1,
            "return_tokens_as_token_ids": True,
        }
        try:
            status, body = ask(self.base_url + "/completions", payload, key=self._key, timeout=120.0)
            return _generated(json.loads(body)) if status == 200 else None
        except (OSError, ValueError):
            return None

    def _metrics(self) -> tuple[dict[str, float], dict[str, str]]:
        try:
            status, body = ask(root_of(self.base_url) + "/metrics", key=self._key)
        except OSError:
            return {}, {}
        return read_metrics(body.decode("utf-8", "replace")) if status == 200 else ({}, {})


def _in_two_pieces(scorer: Scorer, pairs: Sequence[tuple[list[int], int]]) -> list[LogProbs]:
    """Each continuation's beginning, then its rest after that: by the chain rule the same numbers."""
    import numpy as np

    halves = [count // 2 for _, count in pairs]
    begun = scorer.score(
        [(ids[: len(ids) - half], count - half) for (ids, count), half in zip(pairs, halves, strict=True)]
    )
    rest = scorer.score([(ids, half) for (ids, _), half in zip(pairs, halves, strict=True)])
    return [np.concatenate(parts) for parts in zip(begun, rest, strict=True)]


def _generated(answer: Any) -> tuple[int, float] | None:
    """Id and log-prob of the one generated token, where the answer names ids (``token_id:7``)."""
    try:
        block = answer["choices"][0]["logprobs"]
        kind, _, number = block["tokens"][-1].partition(":")
        return (int(number), float(block["token_logprobs"][-1])) if kind == "token_id" else None
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        return None


def _levels(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() and int(word) > 0 for word in words):
        raise ServerError(f"--concurrency takes numbers of requests, such as 1,4,16, not {text!r}")
    return sorted({int(word) for word in words})
