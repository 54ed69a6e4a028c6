"""The wire formats as a proxy meets them: which prompts a request asks for, and where its answer can be hurt."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ids = tuple[int, ...]
Part = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Form:
    """One wire format.

    Attributes:
        name: As the client calls it.
        prompts: The prompts of a request.
        parts: Of an answer, what each prompt was given; None where it holds no log-probs.
        hurts: Fault to what does it to a part.
    """

    name: str
    prompts: Callable[[Part], list[Ids]]
    parts: Callable[[Any], list[Part] | None]
    hurts: dict[str, Callable[[Part], None]]


def form_of(path: str, payload: Part) -> Form | None:
    """Which format a request is in; None where it asks for no scores."""
    if path == "/v1/completions":
        return ECHO if "echo" in payload else VLLM
    return {"/inference/v1/generate": GENERATE, "/generate": SGLANG}.get(path)


def _many(field: str) -> Callable[[Part], list[Ids]]:
    return lambda payload: [tuple(ids) for ids in payload[field]]


def _choices(field: str, kind: type) -> Callable[[Any], list[Part] | None]:
    def parts(answer: Any) -> list[Part] | None:
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not choices or not all(isinstance(choice.get(field), kind) for choice in choices):
            return None
        return sorted(choices, key=lambda choice: int(choice["index"]))

    return parts


def _abort(choice: Part) -> None:
    choice["finish_reason"] = "abort"


def _vllm_nan(choice: Part) -> None:
    for entry in choice["prompt_logprobs"][-1].values():
        entry["logprob"] = float("nan")


def _vllm_ids(choice: Part) -> None:
    """Of the last token: it is scored, however short the continuation."""
    last = choice["prompt_logprobs"][-1]
    choice["prompt_logprobs"][-1] = {str(int(token) + 1): entry for token, entry in last.items()}


VLLM = Form(
    "vllm",
    _many("prompt"),
    _choices("prompt_logprobs", list),
    {
        "[null] log-probs": lambda choice: choice.update(prompt_logprobs=[None]),
        "NaN": _vllm_nan,
        "wrong length": lambda choice: choice["prompt_logprobs"].pop(),
        "wrong token ids": _vllm_ids,
        "aborted request": _abort,
    },
)


def _echo_nan(choice: Part) -> None:
    choice["logprobs"]["token_logprobs"][-2] = float("nan")  # of the prompt's last token; a new one follows


def _echo_short(choice: Part) -> None:
    for name in ("token_logprobs", "tokens"):
        del choice["logprobs"][name][-2:]


def _echo_ids(choice: Part) -> None:
    choice["logprobs"]["tokens"][-2] += "0"


ECHO = Form(
    "openai-echo",
    _many("prompt"),
    _choices("logprobs", dict),
    {
        "[null] log-probs": lambda choice: choice["logprobs"].update(token_logprobs=[None]),
        "NaN": _echo_nan,
        "wrong length": _echo_short,
        "wrong token ids": _echo_ids,
        "aborted request": _abort,
    },
)


def _generated(answer: Any) -> list[Part] | None:
    """One prompt a request, and no token ids in its answer."""
    held = isinstance(answer, dict) and isinstance(answer.get("prompt_token_id_logprobs"), str)
    return [answer] if held else None


def _rewrite(change: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]) -> Callable[[Part], None]:
    def hurt(answer: Part) -> None:
        values = np.load(io.BytesIO(base64.b64decode(answer["prompt_token_id_logprobs"])))
        buffer = io.BytesIO()
        np.save(buffer, change(values), allow_pickle=False)
        answer["prompt_token_id_logprobs"] = base64.b64encode(buffer.getvalue()).decode()

    return hurt


def _last_nan(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    values[-1] = np.nan
    return values


GENERATE = Form(
    "vllm-generate",
    lambda payload: [tuple(payload["token_ids"])],
    _generated,
    {
        "[null] log-probs": lambda answer: answer.update(prompt_token_id_logprobs=None),
        "NaN": _rewrite(_last_nan),
        "wrong length": _rewrite(lambda values: values[:-1]),
        "aborted request": lambda answer: _abort(answer["choices"][0]),
    },
)


def _metas(answer: Any) -> list[Part] | None:
    if not isinstance(answer, list) or not answer:
        return None
    metas = [one["meta_info"] for one in answer]
    return metas if all(isinstance(meta["input_token_logprobs"], list) for meta in metas) else None


def _row(place: int, change: Callable[[Any], Any]) -> Callable[[Part], None]:
    def hurt(meta: Part) -> None:
        row = meta["input_token_logprobs"][-1]
        row[place] = change(row[place])

    return hurt


SGLANG = Form(
    "sglang",
    _many("input_ids"),
    _metas,
    {
        "[null] log-probs": lambda meta: meta.update(input_token_logprobs=None),
        "NaN": _row(0, lambda _: float("nan")),
        "wrong length": lambda meta: meta["input_token_logprobs"].pop(),
        "wrong token ids": _row(1, lambda token: token + 1),
        "aborted request": lambda meta: meta.update(finish_reason={"type": "abort"}),
    },
)

FORMS = (VLLM, ECHO, GENERATE, SGLANG)
