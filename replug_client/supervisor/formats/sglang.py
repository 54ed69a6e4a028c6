"""SGLang's own ``/generate``: log-probs from a given position on, for many prompts a request.

Read in its sources (``io_struct.py``, ``scheduler_output_processor_mixin.py``): with ``logprob_start_len``
s the answer has an entry for each of the prompt's tokens from s on; the first of them is null, since the
logits that predict it lie before s. So s is the position before the continuation, and the prefix up to it
may come from SGLang's cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from replug_client.errors import SupervisorUnavailableError, WrongAnswerError
from replug_client.supervisor.formats.wire import (
    Parsed,
    WireFormat,
    check_count,
    check_finish,
    name_of,
    read_json,
    request_of,
    score_of,
    short,
)
from replug_client.supervisor.protocol import Prompt


def build_sglang(model: str, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Lists of ids, and a start for each. The route knows no model: a server has one."""
    del model
    return {
        "input_ids": [list(prompt.ids) for prompt in prompts],
        "sampling_params": {"max_new_tokens": 0, "temperature": 0},
        "return_logprob": True,
        "logprob_start_len": [len(prompt.ids) - prompt.num_continuation - 1 for prompt in prompts],
    }


def parse_sglang(body: bytes, prompts: Sequence[Prompt]) -> Parsed:
    """Read ``[i].meta_info.input_token_logprobs``: per position ``[log-prob or null, token id, text]``."""
    answers = read_json(body)
    if isinstance(answers, dict) and len(prompts) == 1:
        answers = [answers]
    if not isinstance(answers, list) or len(answers) != len(prompts):
        raise WrongAnswerError(
            f"{request_of(prompts)}: expected a list of {len(prompts)} answers, found {short(answers)}"
        )
    results: Parsed = []
    for answer, prompt in zip(answers, prompts, strict=True):
        try:
            results.append(score_of(_log_probs(answer, prompt), prompt))
        except (WrongAnswerError, SupervisorUnavailableError) as error:
            results.append(error)
    return results


def _log_probs(answer: Any, prompt: Prompt) -> list[Any]:
    meta = answer.get("meta_info") if isinstance(answer, dict) else None
    if not isinstance(meta, dict):
        raise WrongAnswerError(f"{name_of(prompt)}: expected a meta_info, found {short(answer)}")
    reason = meta.get("finish_reason")
    check_finish(reason.get("type") if isinstance(reason, dict) else reason, prompt)
    check_count(meta, [prompt])
    rows = meta.get("input_token_logprobs")
    expected = prompt.ids[-prompt.num_continuation - 1 :]
    if not isinstance(rows, list) or len(rows) != len(expected):
        raise WrongAnswerError(
            f"{name_of(prompt)}: expected input_token_logprobs of {len(expected)} positions,"
            f" found {short(rows)}"
        )
    for row, token in zip(rows, expected, strict=True):
        if not isinstance(row, list) or len(row) < 2 or type(row[1]) is not int or row[1] != token:
            raise WrongAnswerError(f"{name_of(prompt)}: expected token {token}, found {short(row)}")
    if rows[0][0] is not None:
        raise WrongAnswerError(
            f"{name_of(prompt)}: input_token_logprobs are shifted: the first must be null,"
            f" not {short(rows[0])}"
        )
    return [row[0] for row in rows[1:]]


SGLANG = WireFormat("sglang", "/generate", build_sglang, parse_sglang, verifies_ids=True, beside_v1=True)
