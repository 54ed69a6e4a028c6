"""vLLM's ``/inference/v1/generate``: log-probs computed and sent for the continuation's tokens only.

Needs vLLM 0.32 or newer, its V2 model runner (a GPU, today), and ``--enable-scale-out``. Where another
format makes the engine work out logits for each token of the prompt, this one names the tokens to score,
row by row, and gets their log-probs as one small array (vLLM's PR 54335 and RFC 56860).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from replug_client.errors import SupervisorUnavailableError, WrongAnswerError
from replug_client.supervisor.formats.wire import (
    Parsed,
    WireFormat,
    check_count,
    check_finish,
    name_of,
    read_json,
    score_of_array,
    short,
)
from replug_client.supervisor.protocol import Prompt

# Version 1.0, as np.save writes it; see numpy.lib.format.
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '<f4', 'fortran_order': False, 'shape': \((\d{1,9}), (\d{1,9})\), \} *\n",
    re.DOTALL,
)
_LEAST = -9999.0  # what vLLM's other routes say for minus infinity; all formats must give the same numbers


def build_generate(model: str, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """One prompt, and a row of one token id for each position of its continuation.

    Row i scores the prediction of the prompt's token ``prompt_logprob_start + i + 1``.
    """
    (prompt,) = prompts
    scored = prompt.ids[-prompt.num_continuation :]
    return {
        "model": model,
        "token_ids": list(prompt.ids),
        "sampling_params": {
            "max_tokens": 1,
            "temperature": 0,
            "detokenize": False,
            "prompt_logprob_start": len(prompt.ids) - prompt.num_continuation - 1,
            "prompt_logprob_token_ids": [[token] for token in scored],
            # Said although it is what follows from the above: rows that come from the cache are not scored.
            "skip_reading_prefix_cache": True,
        },
    }


def parse_generate(body: bytes, prompts: Sequence[Prompt]) -> Parsed:
    """Read ``prompt_token_id_logprobs``: the base64 of an ``npy`` of float32, ``(num_continuation, 1)``."""
    (prompt,) = prompts
    answer = read_json(body)
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise WrongAnswerError(f"{name_of(prompt)}: expected an answer of one choice, found {short(answer)}")
    check_count(answer.get("usage"), prompts)
    try:
        check_finish(choices[0].get("finish_reason"), prompt)
        return [score_of_array(_log_probs(answer.get("prompt_token_id_logprobs"), prompt), prompt)]
    except (WrongAnswerError, SupervisorUnavailableError) as error:
        return [error]


def _log_probs(encoded: Any, prompt: Prompt) -> npt.NDArray[np.float32]:
    if encoded is None:
        raise WrongAnswerError(
            f"{name_of(prompt)}: no prompt_token_id_logprobs; the server knows no such parameter, or has"
            " taken scored tokens from its prefix cache (start it with --no-enable-prefix-caching)"
        )
    try:
        values = _read_npy(base64.b64decode(encoded, validate=True), (prompt.num_continuation, 1))
    except (TypeError, ValueError) as error:
        raise WrongAnswerError(
            f"{name_of(prompt)}: prompt_token_id_logprobs are unreadable ({error}): {short(encoded)}"
        ) from error
    return np.where(np.isneginf(values), np.float32(_LEAST), values)


def _read_npy(data: bytes, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """The values of an ``npy`` file of float32 and the given shape, flat; nothing else is read.

    ``np.load`` would first allocate whatever size a header claims, and has errors of many types.
    """
    header = _NPY.match(data)
    if header is None:
        raise ValueError(f"not an npy of float32 in two dimensions: {data[:80]!r}")
    found = (int(header[1]), int(header[2]))
    size = len(data) - header.end()
    if found != shape or size != 4 * shape[0] * shape[1]:
        raise ValueError(f"shape {found} and {size} bytes of numbers, expected shape {shape}")
    return np.frombuffer(data, dtype="<f4", offset=header.end())


GENERATE = WireFormat(
    "vllm-generate",
    "/inference/v1/generate",
    build_generate,
    parse_generate,
    verifies_ids=True,
    beside_v1=True,
    max_prompts=1,
)
