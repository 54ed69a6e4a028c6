"""The in-process supervisor: a causal LM of transformers, on the CPU or a GPU."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from replug_client.errors import OptionError, SupervisorError, WrongAnswerError
from replug_client.supervisor.canary import CANARY, Identity
from replug_client.supervisor.checks import check_lengths
from replug_client.supervisor.options import LocalOptions
from replug_client.supervisor.prefixes import Group, batches, group_by_prefix, waves
from replug_client.supervisor.protocol import OnScores, Prompt, Score

_log = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_MAX_LOGITS = 1 << 27  # elements of (rows, vocabulary) in one batch: half a gigabyte of float32
_SHARING_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}  # nats per token


_T = TypeVar("_T")
_Scored = tuple[list[int], list[npt.NDArray[np.float32]]]
"""Positions in the submission, and their continuations' log-probs, each ``(num_continuation,)``."""


class LocalSupervisor:
    """Scores with a causal LM in this process.

    Exact for any mixture of lengths: prompts are padded on the right, where causal attention cannot see
    the padding, and log-softmax is taken in float32. Logits are computed for the continuation's rows
    only. Prompts of one submission that share a prefix (the same passage before many queries) have it
    run once, so a large submission is cheaper than many small ones. One worker thread does all the work.
    """

    def __init__(self, model: Any, name: str, options: LocalOptions | None = None) -> None:
        """``model`` is a causal LM of transformers, already on its device; ``load`` makes one."""
        self.name = name
        self._options = options or LocalOptions()
        self._model = model.eval()
        self._device = next(model.parameters()).device
        self._vocabulary = model.get_input_embeddings().num_embeddings
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._batch_tokens = self._options.batch_tokens or (4096 if self._device.type == "cpu" else 32768)
        self.max_prompt_tokens: int = int(getattr(model.config, "max_position_embeddings", 0) or 1 << 31)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="local-supervisor")
        self._closed = threading.Event()
        self._shares = False
        canary = self.score([CANARY])[0]
        self.identity = Identity({"kind": "local", "weights": _weights_sha256(model)}, canary)
        self.fingerprint = self.identity.fingerprint
        self._shares = self._options.share_prefixes and self._sharing_is_exact(canary)

    @classmethod
    def load(cls, name_or_path: str, options: LocalOptions | None = None) -> LocalSupervisor:
        """Load a folder, or a hub name.

        Raises:
            OptionError: no such model, or a device or dtype that is not to be had.
        """
        from transformers import AutoModelForCausalLM

        options = options or LocalOptions()
        device, dtype = _device(options.device), options.dtype
        if dtype == "auto":
            dtype = "float32" if device.type == "cpu" else "bfloat16"
        if dtype not in _DTYPES:
            raise OptionError(f"unknown dtype {dtype!r}; one of auto, {', '.join(_DTYPES)}")
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(name_or_path, dtype=_DTYPES[dtype])
        except (OSError, ValueError) as error:
            reason = str(error).strip().split("\n", 1)[0]
            raise OptionError(
                f"no causal LM could be loaded from {name_or_path!r} ({reason})."
                " Give a local folder in Hugging Face form, or a name that the hub's cache holds."
            ) from error
        _log.info("in-process supervisor %s: %s on %s", name_or_path, dtype, device)
        return cls(model.to(device), Path(name_or_path).name or name_or_path, options)

    def score(self, prompts: Sequence[Prompt]) -> list[Score]:
        """See ``Supervisor.score``."""
        return self.submit(prompts).result()

    def submit(self, prompts: Sequence[Prompt], on_scores: OnScores | None = None) -> Future[list[Score]]:
        """See ``StreamingSupervisor.submit``."""
        if self._closed.is_set():
            raise SupervisorError(f"supervisor {self.name} is closed")
        prompts = tuple(prompts)
        check_lengths(prompts, self.max_prompt_tokens)
        self.check_ids(prompts)
        return self._worker.submit(self._run, prompts, on_scores)

    def on_model(self, work: Callable[[Any], _T]) -> _T:
        """What ``work`` makes of the model, in the thread that does all its work, without gradients."""
        if self._closed.is_set():
            raise SupervisorError(f"supervisor {self.name} is closed")

        def run() -> _T:
            with torch.inference_mode():
                return work(self._model)

        return self._worker.submit(run).result()

    def close(self) -> None:
        """Stop, after the batch that is being scored."""
        self._closed.set()
        self._worker.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> LocalSupervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check_ids(self, prompts: Sequence[Prompt]) -> None:
        """Refuse ids that the model does not know.

        Raises:
            SupervisorError: another tokenizer made them.
        """
        for prompt in prompts:
            if max(prompt.ids) >= self._vocabulary or min(prompt.ids) < 0:
                raise SupervisorError(
                    f"{prompt.label or 'a prompt'}: token ids up to {max(prompt.ids)}, but {self.name} has"
                    f" a vocabulary of {self._vocabulary}. Another tokenizer made it; see --tokenizer."
                )

    def _run(self, prompts: Sequence[Prompt], on_scores: OnScores | None) -> list[Score]:
        scores: list[Score | None] = [None] * len(prompts)
        with torch.inference_mode():
            for positions, rows in self._batches(prompts):
                if self._closed.is_set():
                    raise SupervisorError(f"supervisor {self.name} was closed while it was scoring")
                found = [_checked(prompts[p], row) for p, row in zip(positions, rows, strict=True)]
                for position, score in zip(positions, found, strict=True):
                    scores[position] = score
                if on_scores is not None:
                    on_scores(positions, found)
        return [score for score in scores if score is not None]

    def _batches(self, prompts: Sequence[Prompt]) -> Iterator[_Scored]:
        groups = group_by_prefix(prompts) if self._shares else [Group(0, tuple(range(len(prompts))))]
        for wave in waves(groups, self._batch_tokens):
            yield from self._score_wave(prompts, wave)
        alone = [position for group in groups if not group.shared for position in group.members]
        yield from self._score_behind(prompts, alone, 0, None, [])

    def _score_wave(self, prompts: Sequence[Prompt], wave: Sequence[Group]) -> Iterator[_Scored]:
        shared = min(group.shared for group in wave)
        prefixes = self._tensor([prompts[group.members[0]].ids[:shared] for group in wave])
        # The logits of a prefix are of no use; where the model can, none but the last row's are computed.
        last = {"logits_to_keep": 1} if self._keeps_logits else {}
        cache = self._model(input_ids=prefixes, use_cache=True, **last).past_key_values
        members = [(row, position) for row, group in enumerate(wave) for position in group.members]
        rows, positions = zip(*members, strict=True)
        yield from self._score_behind(prompts, positions, shared, cache, rows)

    def _score_behind(
        self,
        prompts: Sequence[Prompt],
        positions: Sequence[int],
        shared: int,
        cache: Any,
        rows: Sequence[int],
    ) -> Iterator[_Scored]:
        """Score prompts of which the first ``shared`` ids are in ``cache``, at row ``rows[i]``."""
        lengths = [len(prompts[position].ids) - shared for position in positions]
        longest = max((prompts[position].num_continuation for position in positions), default=1)
        max_rows = max(1, _MAX_LOGITS // (self._vocabulary * longest))
        for batch in batches(lengths, self._batch_tokens, max_rows):
            past = None if cache is None else _select(cache, [rows[i] for i in batch])
            chosen = [positions[i] for i in batch]
            yield chosen, self._forward([prompts[position] for position in chosen], shared, past)

    def _forward(self, batch: Sequence[Prompt], shared: int, past: Any) -> list[npt.NDArray[np.float32]]:
        """Log-probs of the continuations, each ``(num_continuation,)``; nats."""
        longest = max(len(prompt.ids) for prompt in batch) - shared
        ids = self._tensor(
            [prompt.ids[shared:] + (0,) * (shared + longest - len(prompt.ids)) for prompt in batch]
        )
        firsts = [len(prompt.ids) - prompt.num_continuation - 1 - shared for prompt in batch]
        low = min(firsts)
        high = max(first + prompt.num_continuation for first, prompt in zip(firsts, batch, strict=True))
        if self._keeps_logits:
            keep = torch.arange(low, high, device=self._device)
            arguments = {"logits_to_keep": keep}
        else:
            arguments = {}
        logits = self._model(
            input_ids=ids, past_key_values=past, use_cache=past is not None, **arguments
        ).logits
        if not self._keeps_logits:
            logits = logits[:, low:high]
        targets = ids[:, low + 1 : high + 1, None]
        all_log_probs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
        log_probs = all_log_probs.gather(-1, targets)[..., 0].cpu().numpy()
        return [
            log_probs[row, first - low : first - low + prompt.num_continuation].copy()
            for row, (first, prompt) in enumerate(zip(firsts, batch, strict=True))
        ]

    def _tensor(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        return torch.tensor(rows, dtype=torch.long, device=self._device)

    def _sharing_is_exact(self, canary: Score) -> bool:
        """Whether a kept prefix gives the same scores: not with sliding windows or recurrent states."""
        shared = len(CANARY.ids) - CANARY.num_continuation - 1
        group = Group(shared, (0,))
        with torch.inference_mode(), contextlib.suppress(AttributeError, TypeError, ValueError, RuntimeError):
            cache = self._model(input_ids=self._tensor([CANARY.ids[:shared]]), use_cache=True).past_key_values
            if _plain_layers(cache):
                ((_, (row,)),) = self._score_wave([CANARY], [group])
                return bool(
                    np.abs(row - canary.token_log_probs).max() < _SHARING_TOLERANCE[self._model.dtype]
                )
        _log.info(
            "supervisor %s: shared prefixes are run for each prompt; its cache is not a plain one", self.name
        )
        return False


def _plain_layers(cache: Any) -> bool:
    from transformers.cache_utils import DynamicLayer

    return all(type(layer) is DynamicLayer for layer in cache.layers)


def _select(cache: Any, rows: Sequence[int]) -> Any:
    """A new cache that holds the given rows of ``cache``, which stays as it is."""
    from transformers import DynamicCache

    selected = DynamicCache()
    index = None if len(set(rows)) == 1 else torch.tensor(rows, device=cache.layers[0].keys.device)
    for number, layer in enumerate(cache.layers):
        if index is None:
            row = slice(rows[0], rows[0] + 1)
            keys, values = (x[row].expand(len(rows), -1, -1, -1) for x in (layer.keys, layer.values))
        else:
            keys, values = layer.keys[index], layer.values[index]
        selected.update(keys, values, number)
    return selected


def _checked(prompt: Prompt, log_probs: npt.NDArray[np.float32]) -> Score:
    if not np.isfinite(log_probs).all():
        raise WrongAnswerError(
            f"{prompt.label or 'a prompt'}: the model gave a log-prob that is not finite; try --dtype float32"
        )
    return Score(log_probs)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"device {name!r} is not to be had here: {str(error).splitlines()[0]}") from error


def _weights_sha256(model: Any) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
