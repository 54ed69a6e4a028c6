"""A strict stand-in for vLLM that generates: a small LM by formula, over HTTP and, the same one, in this process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from replug_client.inference.generation import Ids
from replug_client.inference.mixing import Candidates
from replug_client.supervisor.protocol import Prompt
from tests.supervisor.fake_server import Body, FakeServer

VOCABULARY = 64
END = 2
MAX_LOGPROBS = 20

_FIELDS = {
    "model",
    "prompt",
    "max_tokens",
    "temperature",
    "logprobs",
    "return_tokens_as_token_ids",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
}
_TEXT = _FIELDS | {"top_p", "stream"}

Floats = npt.NDArray[np.float64]


def next_log_probs(ids: Sequence[int]) -> Floats:
    """``(VOCABULARY,)`` nats: what comes next depends on the last two tokens and on the first."""
    seed = [ids[0], *ids[-2:]] if len(ids) > 1 else [ids[0], 0, ids[-1]]
    logits = 2.5 * np.random.default_rng(seed).standard_normal(VOCABULARY)
    logits[END] -= 3.0
    shifted = logits - logits.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def scores(prompt: Prompt) -> list[float]:
    first = len(prompt.ids) - prompt.num_continuation
    return [
        float(next_log_probs(prompt.ids[:at])[prompt.ids[at]]) if prompt.ids[at] < VOCABULARY else -9.0
        for at in range(first, len(prompt.ids))
    ]


class FullContexts:
    """The same LM in this process, with every probability known: ``Contexts`` for the reference."""

    def __init__(self, prompts: Sequence[Ids]) -> None:
        self._prompts = [tuple(prompt) for prompt in prompts]

    def candidates(self) -> Candidates:
        values = np.array([next_log_probs(prompt) for prompt in self._prompts])
        return Candidates(np.arange(VOCABULARY), values, np.full(len(values), -np.inf))

    def log_probs(self, ids: npt.NDArray[np.int64]) -> Floats:
        return self.candidates().log_probs[:, ids]

    def append(self, token: int) -> None:
        self._prompts = [(*prompt, token) for prompt in self._prompts]

    def ends(self, token: int) -> bool:
        return token == END


@dataclass
class LMServer(FakeServer):
    """``knows_token_ids``: whether it answers ``logprob_token_ids``; else it ignores them, as older vLLMs do."""

    log_probs: Any = scores
    knows_token_ids: bool = True
    generations: list[dict[str, Any]] = field(default_factory=list)

    def _complete(self, payload: dict[str, Any]) -> tuple[int, Body]:
        if "logprobs" not in payload or "echo" in payload:
            return super()._complete(payload)
        self.generations.append(payload)
        optional = {"logprob_token_ids", "stop", "seed"}
        fields = set(payload) - optional
        if fields != (_TEXT if payload.get("stream") else _FIELDS):
            return self._complain(f"unexpected fields: {sorted(fields ^ _FIELDS)}")
        neutral = {name: payload[name] for name in ("top_k", "min_p", "repetition_penalty")}
        if neutral != {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}:
            return self._complain(f"sampling that would change the answer: {neutral}")
        if payload["logprobs"] > MAX_LOGPROBS or len(payload.get("logprob_token_ids", ())) > 128:
            return 400, {"error": {"message": "too many logprobs", "type": "BadRequestError"}}
        refused = self._refuse(payload["model"], payload["prompt"])
        if refused is not None:
            return refused
        choices = [self._text(payload, i, list(ids)) for i, ids in enumerate(payload["prompt"])]
        if payload.get("stream"):
            return 200, "".join(map(events, choices)) + "data: [DONE]\n\n"
        usage = {"prompt_tokens": sum(map(len, payload["prompt"])), "completion_tokens": 1}
        return 200, {"choices": choices, "usage": usage}

    def _text(self, payload: dict[str, Any], index: int, ids: list[int]) -> dict[str, Any]:
        rng = np.random.default_rng(payload.get("seed"))
        tokens, values, tops, reason = [], [], [], "length"
        for _ in range(payload["max_tokens"]):
            row = next_log_probs(ids)
            greedy = payload["temperature"] == 0
            token = int(row.argmax()) if greedy else int(rng.choice(VOCABULARY, p=np.exp(row)))
            named = payload.get("logprob_token_ids") if self.knows_token_ids else None
            shown = named if named is not None else np.argsort(-row)[: payload["logprobs"]].tolist()
            tokens.append(f"token_id:{token}")
            values.append(float(row[token]))
            tops.append({f"token_id:{t}": float(row[t]) for t in dict.fromkeys([token, *shown])})
            ids.append(token)
            if token == END:
                reason = "stop"
                break
        logprobs = {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops}
        return {
            "index": index,
            "text": "x" * len(tokens),
            "logprobs": logprobs,
            "finish_reason": reason,
            "stop_reason": None,
        }


def events(choice: dict[str, Any]) -> str:
    """A choice as vLLM streams it: an event a token, the last with the finish reason."""
    block = choice["logprobs"]
    parts = []
    for at in range(len(block["tokens"])):
        last = at == len(block["tokens"]) - 1
        one = {
            **choice,
            "text": "x",
            "logprobs": {name: values[at : at + 1] for name, values in block.items()},
            "finish_reason": choice["finish_reason"] if last else None,
        }
        parts.append("data: " + json.dumps({"choices": [one]}) + "\n\n")
    return "".join(parts)
