"""Keeps candidates, and where passages are trained too their index, up with the weights."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sentence_transformers import SentenceTransformer

from replug_client.artefacts import atomic_write
from replug_client.retriever.encoder import ComputeDtype, encode_passages, encode_queries
from replug_client.retriever.index import FaissIndex, PassageIndex
from replug_client.retriever.lexical_weights import lexical_weights
from replug_client.retriever.projection import project
from replug_client.training import record
from replug_client.training.background import BackgroundEmbedding
from replug_client.training.candidates import Rows
from replug_client.training.options import Train, TrainOptions
from replug_client.training.prepare import Prepared
from replug_client.training.rerank import RerankedIndex
from replug_client.training.validation import full_precision

logger = logging.getLogger(__name__)

Vectors = npt.NDArray[np.float32]
_ROWS_AT_ONCE = 1 << 14


class BaseQueries:
    """The base's vectors of the training queries, where it stays as it is: each query is encoded once in a run.

    All at once, when they are first asked for: which texts share a batch then does not depend on where a run
    was resumed, nor do the last bits of the vectors. They take ``4 * n * D`` bytes.

    Args:
        needed: Gives the ``(n,)`` example numbers that the run will use, ascending.
        encode: Example numbers to ``(n, D)`` vectors.
    """

    def __init__(self, needed: Callable[[], Rows], encode: Callable[[Rows], Vectors]) -> None:
        self._asked_for = needed
        self._encode = encode
        self._needed: Rows = np.zeros(0, dtype=np.int64)
        self._vectors: Vectors | None = None

    def __call__(self, numbers: Rows) -> Vectors:
        """``(n, D)`` vectors of these examples."""
        if self._vectors is None:
            self._needed = self._asked_for()
            self._vectors = self._encode(self._needed)
        return self._vectors[np.searchsorted(self._needed, numbers)]


class Refresher:
    """Retrieves with the retriever as it is, over an index that is as fresh as was asked for.

    Args:
        options: The run's.
        prepared: What the run works with.
        needed: Gives the example numbers that the run will use, ascending.
    """

    def __init__(self, options: TrainOptions, prepared: Prepared, needed: Callable[[], Rows]) -> None:
        self._options = options
        self._prepared = prepared
        self._miner = prepared.miner
        self._dtype: ComputeDtype = "bfloat16" if options.steps.bf16 else "float32"
        self._static = options.steps.refresh_every == 0
        self._folder = options.place.output_dir / "refreshed"
        self._index: PassageIndex = prepared.index  # the miner's
        self._validated: PassageIndex = prepared.index
        self._index_step = self._step = 0
        self.seconds = 0.0  # spent on re-embedding
        modes = options.modes
        ready_made = options.steps.train is Train.HEAD and modes.head_layers == 0
        self.base_queries = BaseQueries(needed, self._encode_base) if ready_made else None
        self._background: BackgroundEmbedding | None = None
        if modes.background_refresh:
            self._background = BackgroundEmbedding(prepared.model, len(prepared.indexed), self._encode_with)
        if options.steps.train is Train.HEAD and not self._static:
            self._take(0, self._embed_anew())

    @property
    def moves(self) -> bool:
        """Whether the index has to follow the weights."""
        return self._options.steps.train is not Train.QUERY and not self._static

    def mine(self, numbers: Rows) -> Rows:
        """Candidates of the numbered examples under the retriever as it is now (static: as the base was)."""
        queries = [self._prepared.sets.train[number].query for number in numbers]
        weights = None if self._static else lexical_weights(self._prepared.model)
        return self._miner.mine(self._query_vectors(numbers, queries), queries, numbers, weights)

    def keep_up(self, step: int) -> None:
        """See to the index before a retrieval at this optimiser step, also where a run goes on there."""
        self._step = step
        steps, modes = self._options.steps, self._options.modes
        due = modes.refresh_schedule.last_due(step, steps.refresh_every)
        if self._background is not None:
            self._keep_up_beside(self._background, step, due)
        elif due > self._index_step:
            if due == step:
                self._reindex(step)
            elif modes.retrieves_from_old:
                self._restore(due)
            else:
                # What that step's index gave is on disk, and the next retrieval meets a new one: only its age is told.
                self._index_step = due
        index = self._index
        if modes.over_retrieve and step > self._index_step:
            index = RerankedIndex(index, self._encode_rows, modes.over_retrieve)
        self._miner.index = index

    def index_age(self, step: int) -> int:
        """Optimiser steps since the weights that made the index."""
        return step - self._index_step

    def close(self) -> None:
        """End what runs beside the training."""
        if self._background is not None:
            self._background.close()

    def current_index(self, _: SentenceTransformer) -> PassageIndex:
        """What :meth:`prepare_validation` made ready."""
        return self._validated

    def prepare_validation(self, step: int) -> None:
        """Ready the index for the model as it is at this optimiser step.

        The base's where passages are frozen, or encoded by the base's weights before the first step; else one of its
        own.
        """
        if self._options.steps.train is Train.HEAD or (self._options.steps.train is Train.BOTH and step > 0):
            # In the precision of the base's index: else a difference of precisions would count as one of weights.
            with full_precision(self._prepared.model):
                vectors = self._embed_anew(self._prepared.index_dtype)
            self._validated = FaissIndex.from_vectors(vectors, self._prepared.indexed)

    def _keep_up_beside(self, background: BackgroundEmbedding, step: int, due: int) -> None:
        steps, modes = self._options.steps, self._options.modes
        begun = modes.refresh_schedule.last_due(max(0, step - 1), steps.refresh_every)
        if begun and self._index_step == 0 and not background.is_running:
            self._reindex(step)  # a run that goes on: what was made, or under way, is gone
        if all(self._prepared.processes.each(background.is_ready)) and (ready := background.take()):
            self._take(*ready)
            logger.info("step %d: the passages' index of step %d is ready and in use", step, ready[0])
        if due == step and due > self._index_step:
            if background.is_running:
                logger.warning(
                    "step %d: the last re-embedding is still under way, so none begins; --refresh_every is shorter "
                    "than one takes",
                    step,
                )
            else:
                background.start(step)

    def _reindex(self, step: int) -> None:
        began = time.perf_counter()
        vectors = self._embed_anew()
        self._take(step, vectors)
        logger.info(
            "step %d: %d passages re-embedded in %.1f s", step, len(vectors), time.perf_counter() - began
        )
        if self._options.modes.retrieves_from_old and self._background is None:
            self._keep(step, vectors)

    def _take(self, step: int, vectors: Vectors) -> None:
        self._index = self._miner.index = FaissIndex.from_vectors(vectors, self._prepared.indexed)
        self._index_step = step

    def _path(self, step: int) -> Path:
        return self._folder / f"passages_{step:08d}.npy"

    def _keep(self, step: int, vectors: Vectors) -> None:
        """A run that goes on later may need the index of weights that no checkpoint holds."""
        if not self._prepared.processes.is_first:
            return
        with atomic_write(self._path(step)) as stream:
            np.save(stream, vectors, allow_pickle=False)
        checkpoint = record.last_checkpoint(self._options.place.output_dir)
        reached = int(checkpoint.name.rsplit("-", 1)[1]) if checkpoint else 0
        steps, modes = self._options.steps, self._options.modes
        needed = modes.refresh_schedule.last_due(reached, steps.refresh_every)
        for path in self._folder.glob("passages_*.npy"):
            if int(path.stem.rsplit("_", 1)[1]) < needed:
                path.unlink()

    def _restore(self, step: int) -> None:
        path = self._path(step)
        if path.exists():
            self._take(step, np.load(path, allow_pickle=False))
            logger.info("the passages' index of step %d is taken from %s", step, path)
            return
        logger.warning(
            "%s is missing: the passages are re-embedded with the weights of step %d instead, so the run will not "
            "be that of an uninterrupted one",
            path,
            self._step,
        )
        self._take(self._step, self._embed_anew())

    def _query_vectors(self, numbers: Rows, queries: list[str]) -> Vectors:
        prepared = self._prepared
        if self.base_queries is not None:
            vectors = self.base_queries(numbers)
            return vectors if self._static else project(prepared.model, [vectors])
        encoder = prepared.base if self._static else prepared.model
        return encode_queries(encoder, queries, dtype=self._dtype, description="retrieving")

    def _encode_base(self, numbers: Rows) -> Vectors:
        prepared = self._prepared
        queries = [prepared.sets.train[number].query for number in numbers]
        return prepared.processes.divide(
            len(queries),
            lambda positions: encode_queries(
                prepared.base,
                [queries[position] for position in positions],
                dtype=self._dtype,
                description="encoding the queries",
            ),
        )

    def _embed_anew(self, dtype: ComputeDtype | None = None) -> Vectors:
        """``(n, D)`` of all passages with the weights as they are; one matrix product for a projection.

        ``dtype`` is the encoder's precision; None is that of the training.
        """
        began = time.perf_counter()
        prepared = self._prepared
        if self._options.steps.train is Train.HEAD:
            vectors = project(prepared.model, self._base_blocks())
        else:
            vectors = prepared.processes.divide(
                len(prepared.indexed),
                lambda positions: encode_passages(
                    prepared.model,
                    prepared.store.texts(prepared.indexed[positions]),
                    dtype=dtype or self._dtype,
                    description="re-embedding the passages",
                ),
            )
        self.seconds += time.perf_counter() - began
        return vectors

    def _base_blocks(self) -> Iterator[Vectors]:
        rows, index = self._prepared.indexed, self._prepared.index
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            yield index.vectors(rows[start : start + _ROWS_AT_ONCE])

    def _encode_rows(self, rows: Rows) -> Vectors:
        prepared = self._prepared
        return encode_passages(
            prepared.model, prepared.store.texts(rows), dtype=self._dtype, description="re-ranking"
        )

    def _encode_with(self, encoder: SentenceTransformer, positions: npt.NDArray[np.int64]) -> Vectors:
        prepared = self._prepared
        return encode_passages(encoder, prepared.store.texts(prepared.indexed[positions]), dtype=self._dtype)
