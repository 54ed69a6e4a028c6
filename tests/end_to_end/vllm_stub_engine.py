"""vLLM's own server over an engine core that computes no model. Runs in vLLM's interpreter, not in ours.

HTTP, routes, request classes, validation of sampling parameters, input and output processing, and the code
that picks the rows to score (``PromptLogprobsWorker``, chunk by chunk) are vLLM's; only the logits are made
up: those of row i say ``stub_log_prob(i, token)``. Takes vLLM's own arguments.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from vllm.entrypoints.launchers.api_server import entry
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.worker.gpu.sample.prompt_logprob import PromptLogprobsWorker

_CHUNK = 16  # tokens a step: several steps for most prompts, as in chunked prefill


class StubCore:
    """What ``AsyncLLM`` asks of the client of its engine core."""

    engine_ranks_managed = (0,)
    resources = SimpleNamespace(engine_dead=False)

    def __init__(self, vocabulary: int) -> None:
        self._tokens = torch.arange(vocabulary)
        self._outputs: asyncio.Queue[EngineCoreOutputs] = asyncio.Queue()

    async def get_supported_tasks_async(self) -> tuple[str, ...]:
        return ("generate",)

    async def reset_mm_cache_async(self) -> None:
        pass

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        pass

    async def get_output_async(self) -> EngineCoreOutputs:
        return await self._outputs.get()

    def shutdown(self, timeout: float | None = None) -> None:
        pass

    async def add_request_async(self, request: Any) -> None:
        output = EngineCoreOutput(
            request_id=request.request_id,
            new_token_ids=[7],
            finish_reason=FinishReason.LENGTH,
            prompt_token_id_logprobs=self._scores(request),
        )
        await self._outputs.put(EngineCoreOutputs(outputs=[output]))

    def _scores(self, request: Any) -> torch.Tensor | None:
        params, length = request.sampling_params, len(request.prompt_token_ids)
        if not params.skip_reading_prefix_cache:
            return None  # as where the scored rows came from the prefix cache
        # In logits mode the worker hands on what logits_fn says, and needs no Triton.
        worker = PromptLogprobsWorker(1, torch.device("cpu"), "raw_logits")
        worker.add_request(request.request_id, 0, params)
        scores: dict[str, torch.Tensor] = {}
        for start in range(0, length, _CHUNK):
            rows = torch.arange(start, min(start + _CHUNK, length))
            batch = SimpleNamespace(
                req_ids=[request.request_id],
                idx_mapping_np=np.array([0]),
                num_computed_prefill_tokens_np=np.array([start]),
                num_scheduled_tokens=np.array([len(rows)]),
                prefill_len_np=np.array([length]),
                query_start_loc_np=np.array([0, len(rows)]),
            )
            scores |= worker.compute_prompt_token_id_logprobs(
                self._logits, rows, batch, np.array([length], dtype=np.int32)
            )
        return scores.get(request.request_id)

    def _logits(self, rows: torch.Tensor) -> torch.Tensor:
        return -((31 * rows[:, None] + 17 * self._tokens) % 4096).float() / 512


def make_stub(vllm_config: Any, *_: object, **__: object) -> StubCore:
    """In the place of an engine with the V2 model runner, which would need Triton, that is a GPU."""
    type(vllm_config).use_v2_model_runner = property(lambda _: True)
    return StubCore(vllm_config.model_config.get_vocab_size())


if __name__ == "__main__":
    EngineCoreClient.make_async_mp_client = staticmethod(make_stub)
    entry.main()
