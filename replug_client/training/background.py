"""Re-embedding beside the training: a copy of the encoder as it was, in a thread of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Any

import numpy as np
import numpy.typing as npt
from sentence_transformers import SentenceTransformer

from replug_client.training.validation import full_precision

Vectors = npt.NDArray[np.float32]
# Texts between two looks at whether the result is still wanted.
_AT_ONCE = 1024


class BackgroundEmbedding:
    """Embeds passages with a copy of a model while the model itself goes on training.

    A thread is enough: the work is in torch and the tokenizer, which let other threads run. One embedding is
    under way at a time.

    Args:
        model: The model that is being trained.
        count: Number of passages.
        encode: Vectors ``(n, D)`` of the passages at these ``(n,)`` positions, with this encoder.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        count: int,
        encode: Callable[[SentenceTransformer, npt.NDArray[np.int64]], Vectors],
    ) -> None:
        self._model = model
        self._count = count
        self._encode = encode
        self._copy: SentenceTransformer | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="refresh")
        self._stop = Event()
        self._running: tuple[int, Future[Vectors]] | None = None

    @property
    def is_running(self) -> bool:
        """Whether a result is still to be taken."""
        return self._running is not None

    @property
    def is_ready(self) -> bool:
        """Whether :meth:`take` has something to give."""
        return self._running is not None and self._running[1].done()

    def start(self, step: int) -> None:
        """Embed with the weights as they are at this optimiser step.

        Raises:
            RuntimeError: the one before was not taken.
        """
        if self._running is not None:
            raise RuntimeError(f"the embedding of step {self._running[0]} is still under way")
        encoder = self._snapshot()
        self._running = step, self._pool.submit(self._embed, encoder)

    def take(self) -> tuple[int, Vectors] | None:
        """The step that was embedded and its ``(count, D)`` vectors; None while they are not ready.

        Raises:
            ReplugError: what went wrong in the thread.
        """
        if self._running is None or not self.is_ready:
            return None
        step, future = self._running
        self._running = None
        return step, future.result()

    def close(self) -> None:
        """Give up what is under way, and wait for the thread to end."""
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _embed(self, encoder: SentenceTransformer) -> Vectors:
        positions = np.arange(self._count)
        parts = []
        for start in range(0, self._count, _AT_ONCE):
            if self._stop.is_set():
                raise InterruptedError("the training has ended")
            parts.append(self._encode(encoder, positions[start : start + _AT_ONCE]))
        return np.concatenate(parts)

    def _snapshot(self) -> SentenceTransformer:
        # Without the wrapper that accelerate puts around forward: it is bound to the model that is trained.
        with full_precision(self._model):
            if self._copy is None:
                self._copy = copy.deepcopy(self._model).requires_grad_(False).eval()
                for parameter in self._copy.parameters():
                    parameter.grad = None
            weights: dict[str, Any] = self._model.state_dict()
            self._copy.load_state_dict(weights)
        return self._copy
