"""What a pair costs by wire format: bytes both ways, and this side's CPU for building and reading."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks._load import request_bytes, run_load
from replug_client.errors import SupervisorError
from replug_client.supervisor.client import RemoteSupervisor
from replug_client.supervisor.endpoint import Endpoint
from replug_client.supervisor.formats import FORMATS, WireFormat
from replug_client.supervisor.formats.completions import parse_vllm_json
from replug_client.supervisor.protocol import Prompt, Score

_A_REQUEST = 8
_REPEAT = 5
_ROW = "{:<16}{:>12}{:>12}{:>16}{:>16}{:>16}\n"


def format_table(base_url: str, model: str, prompts: Sequence[Prompt]) -> str:
    """One line for each format: real answers where the server has it, made-up ones (*) where it has not."""
    text = _ROW.format("", "bytes out", "bytes in", "build, s", "read, s", "whole client, s")
    text += _ROW.format("format", "a pair", "a pair", "CPU/1,000 pairs", "CPU/1,000 pairs", "CPU/1,000 pairs")
    for wire_format in FORMATS:
        groups = _groups(prompts, wire_format)
        cpu = _client_cpu(base_url, model, prompts, wire_format)
        if cpu is not None:
            requests = [request_bytes(base_url, wire_format, model, group) for group in groups]
            bodies = [body for _, body in sorted(run_load(base_url, requests, 4, keep=True).bodies.items())]
        elif wire_format.name in _MADE_UP:
            bodies = [_MADE_UP[wire_format.name](group) for group in groups]
        else:
            text += f"{wire_format.name:<16} not at this server\n"
            continue
        name = wire_format.name + ("" if cpu is not None else " *")
        text += _line(name, wire_format, wire_format.parse, groups, bodies, cpu)
        if wire_format.parse is not parse_vllm_json and wire_format.name == "vllm":
            text += _line("  by JSON alone", wire_format, parse_vllm_json, groups, bodies, None)
    return text + "* not at this server: answers made up after the server's protocol"


def _groups(prompts: Sequence[Prompt], wire_format: WireFormat) -> list[Sequence[Prompt]]:
    size = wire_format.max_prompts or _A_REQUEST
    return [prompts[start : start + size] for start in range(0, len(prompts), size)]


def _line(
    name: str,
    wire_format: WireFormat,
    parse: Callable[[bytes, Sequence[Prompt]], Sequence[Score | SupervisorError]],
    groups: Sequence[Sequence[Prompt]],
    bodies: Sequence[bytes],
    cpu: float | None,
) -> str:
    pairs = sum(map(len, groups))
    built = [json.dumps(wire_format.build("m", group), separators=(",", ":")).encode() for group in groups]
    for group, body in zip(groups, bodies, strict=True):
        if not all(isinstance(result, Score) for result in parse(body, group)):
            raise SystemExit(f"format {name}: an answer holds no scores: {body[:300]!r}")
    build = _cpu(lambda: [json.dumps(wire_format.build("m", group)) for group in groups])
    read = _cpu(lambda: [parse(body, group) for body, group in zip(bodies, groups, strict=True)])
    return _ROW.format(
        name,
        f"{sum(map(len, built)) / pairs:,.0f}",
        f"{sum(map(len, bodies)) / pairs:,.0f}",
        f"{1000 * build / pairs:.3f}",
        f"{1000 * read / pairs:.3f}",
        "" if cpu is None else f"{cpu:.2f}",
    )


def _cpu(work: Callable[[], object]) -> float:
    """The least of a few measurements, in CPU seconds."""
    found = []
    for _ in range(_REPEAT):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


def _client_cpu(
    base_url: str, model: str, prompts: Sequence[Prompt], wire_format: WireFormat
) -> float | None:
    """CPU seconds of the client for 1,000 pairs; None where the server does not have the format."""
    try:
        supervisor = RemoteSupervisor(Endpoint.open(base_url), model, formats=[wire_format])
    except SupervisorError:
        return None
    with supervisor:
        began = time.process_time()
        supervisor.score(prompts)
        return 1000 * (time.process_time() - began) / len(prompts)


def _generate(prompts: Sequence[Prompt]) -> bytes:
    (prompt,) = prompts
    buffer = io.BytesIO()
    np.save(buffer, np.full((prompt.num_continuation, 1), -1.5, dtype=np.float32), allow_pickle=False)
    choice = {
        "index": 0, "finish_reason": "length", "stop_reason": None, "token_ids": [7], "routed_experts": None,
        "sampling_mask": None, "weight_versions": None, "logprobs": None,
    }  # fmt: skip
    answer = {
        "request_id": "generate-tokens-" + "0" * 32, "created": 1795265445, "model": "m",
        "usage": {"prompt_tokens": len(prompt.ids), "total_tokens": len(prompt.ids) + 1, "completion_tokens": 1},
        "prompt_logprobs": None, "prompt_token_id_logprobs": base64.b64encode(buffer.getvalue()).decode(),
        "prompt_token_ids": None, "mm_placeholders": None, "metrics": None, "choices": [choice],
    }  # fmt: skip
    return json.dumps(answer, separators=(",", ":")).encode()


def _sglang(prompts: Sequence[Prompt]) -> bytes:
    answers = []
    for prompt in prompts:
        scored = prompt.ids[-prompt.num_continuation - 1 :]
        rows = [[None if at == 0 else -1.5432109832763672, token, None] for at, token in enumerate(scored)]
        meta = {
            "id": "0" * 32, "finish_reason": {"type": "length", "length": 0}, "prompt_tokens": len(prompt.ids),
            "completion_tokens": 0, "cached_tokens": 0, "input_token_logprobs": rows, "output_token_logprobs": [],
        }  # fmt: skip
        answers.append({"text": "", "output_ids": [], "meta_info": meta})
    return json.dumps(answers, separators=(",", ":")).encode()


_MADE_UP: dict[str, Callable[[Sequence[Prompt]], bytes]] = {"vllm-generate": _generate, "sglang": _sglang}
