"""The language model in this process: every probability of the vocabulary, exact. The reference for the others."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from replug_client.errors import WrongAnswerError
from replug_client.inference.generation import GenerationOptions, Ids, Token
from replug_client.inference.mixing import Candidates
from replug_client.inference.steps import generate
from replug_client.mixtures import uniform_log_weights
from replug_client.supervisor.local import LocalSupervisor
from replug_client.supervisor.protocol import Prompt


class LocalModel:
    """A ``LanguageModel`` over the causal LM of a ``LocalSupervisor``."""

    def __init__(self, supervisor: LocalSupervisor) -> None:
        self._supervisor = supervisor
        self._end_ids = supervisor.on_model(_end_ids)

    @property
    def max_prompt_tokens(self) -> int:
        """See ``LanguageModel.max_prompt_tokens``."""
        return self._supervisor.max_prompt_tokens

    def contexts(self, prompts: Sequence[Ids]) -> LocalContexts:
        """See ``LanguageModel.contexts``."""
        return LocalContexts(self._supervisor, prompts, self._end_ids)

    def continuations(
        self, prompts: Sequence[Ids], options: GenerationOptions
    ) -> Generator[tuple[int, Token], None, None]:
        """See ``LanguageModel.continuations``: one prompt after the other."""
        for position, prompt in enumerate(prompts):
            for step in generate(self.contexts([prompt]), uniform_log_weights(1), options):
                yield position, step.token


class LocalContexts:
    """Contexts of one batch, padded on the left, with their keys and values kept: one forward pass a token."""

    def __init__(self, supervisor: LocalSupervisor, prompts: Sequence[Ids], end_ids: frozenset[int]) -> None:
        supervisor.check_ids([Prompt(tuple(prompt), 1) for prompt in prompts])
        self._supervisor = supervisor
        self._end_ids = end_ids
        longest = max(map(len, prompts))
        self._new = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        self._mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        self._cache: Any = None
        self._log_probs: npt.NDArray[np.float64] | None = None

    def candidates(self) -> Candidates:
        """See ``Contexts.candidates``: the whole vocabulary."""
        if self._log_probs is None:
            self._log_probs = self._supervisor.on_model(self._forward)
        rows, size = self._log_probs.shape
        return Candidates(np.arange(size), self._log_probs, np.full(rows, -np.inf))

    def log_probs(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """See ``Contexts.log_probs``."""
        return self.candidates().log_probs[:, ids]

    def append(self, token: int) -> None:
        """See ``Contexts.append``."""
        self.candidates()  # whatever came before is in the cache by now
        self._new = [[token] for _ in self._mask]
        for row in self._mask:
            row.append(1)
        self._log_probs = None

    def ends(self, token: int) -> bool:
        """See ``Contexts.ends``."""
        return token in self._end_ids

    def _forward(self, model: Any) -> npt.NDArray[np.float64]:
        """``(K, V)`` nats, float64 of float32: what comes behind the new tokens, which the cache gets."""
        device = next(model.parameters()).device
        ids = torch.tensor(self._new, dtype=torch.long, device=device)
        mask = torch.tensor(self._mask, dtype=torch.long, device=device)
        parameters = inspect.signature(model.forward).parameters
        extra: dict[str, Any] = {}
        if "position_ids" in parameters:  # else the model counts them by the mask
            extra["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if "logits_to_keep" in parameters:
            extra["logits_to_keep"] = 1
        output = model(
            input_ids=ids, attention_mask=mask, past_key_values=self._cache, use_cache=True, **extra
        )
        self._cache = output.past_key_values
        log_probs: npt.NDArray[np.float64] = (
            torch.log_softmax(output.logits[:, -1].float(), dim=-1).double().cpu().numpy()
        )
        if np.isnan(log_probs).any():
            raise WrongAnswerError("the model gave a log-prob that is no number; try --dtype float32")
        return log_probs


def _end_ids(model: Any) -> frozenset[int]:
    """What the model's own configuration ends a text with."""
    configured = getattr(model, "generation_config", None) or model.config
    ids = getattr(configured, "eos_token_id", None)
    return frozenset([] if ids is None else [ids] if isinstance(ids, int) else ids)
