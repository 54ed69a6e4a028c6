"""What a training run works with: opened, checked against each other, and ready."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
from sentence_transformers import SentenceTransformer

from replug_client.corpus.records import Example
from replug_client.corpus.store import PassageStore
from replug_client.errors import OptionError
from replug_client.retriever.asymmetric import is_asymmetric
from replug_client.retriever.encoder import ComputeDtype, check_projection_size, load_encoder
from replug_client.retriever.hybrid import LazyMatches
from replug_client.retriever.index import FaissIndex, PassageIndex, check_fresh, positions
from replug_client.retriever.lexical import LexicalIndex
from replug_client.retriever.lexical_weights import LEXICAL_NAME, lexical_weights
from replug_client.retriever.shards import open_shards
from replug_client.supervisor.cached import CachedSupervisor
from replug_client.supervisor.prompts import PromptBuilder
from replug_client.supervisor.protocol import Prompt
from replug_client.supervisor.tokenizer import SupervisorTokenizer
from replug_client.training.candidates import NO_PASSAGE, CandidateMiner, Rows
from replug_client.training.data import ExampleSets, load_examples
from replug_client.training.distributed import ALONE, Processes
from replug_client.training.options import StepOptions, Train, TrainOptions
from replug_client.training.schedule import Schedule
from replug_client.training.trainable import trainable_encoder

_TEXTS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a run works with, opened and checked.

    Attributes:
        model: The encoder that is trained.
        base: The same encoder as it was, for the passages (``query``) and for comparison.
        store: The corpus.
        index: The base's index over it.
        indexed: Corpus rows that are in the index.
        supervisor: Scores, through the cache.
        builder: Makes prompts.
        sets: Training and validation examples.
        miner: Finds candidates.
        matches: Gives the terms of the indexed passages.
        index_dtype: Precision of the encoder when the base's index was embedded.
        processes: Which share in the run.
    """

    model: SentenceTransformer
    base: SentenceTransformer
    store: PassageStore
    index: PassageIndex
    indexed: Rows
    supervisor: CachedSupervisor
    builder: PromptBuilder
    sets: ExampleSets
    miner: CandidateMiner
    matches: LazyMatches
    index_dtype: ComputeDtype
    processes: Processes = ALONE

    def prompt(self, example: Example, row: int) -> Prompt:
        """The prompt of one example behind one corpus row."""
        passage = self.store[row]
        label = f"query {example.query[:40]!r} of document {example.document_id!r}, passage {passage.id!r}"
        return self.builder.build(passage.text, example.query_ids, example.continuation_ids, label)

    def schedule(self, steps: StepOptions, levels: Rows | None = None) -> Schedule:
        """The order of the training examples, in batches of all processes together."""
        size = steps.batch_size * steps.processes
        return Schedule(len(self.sets.train), size, steps.seed, steps.accumulation, levels)

    def word_matches(self, queries: Sequence[str], rows: Rows) -> npt.NDArray[np.float32]:
        """How well the words of B queries match those of N corpus rows: ``(B, N, 2)``."""
        matches = self.matches()
        return matches.of(matches.queries(queries), positions(self.indexed, rows))

    def log_likelihoods(self, numbers: Rows, rows: Rows) -> npt.NDArray[np.float64]:
        """Ask the supervisor for the scores of training examples; each process for those that it owns.

        Args:
            numbers: ``(n,)`` example numbers.
            rows: ``(n, K)`` their candidates, ``NO_PASSAGE`` where there is none.

        Returns:
            ``(n, K)`` nats; 0 where there is no candidate.
        """
        owned = (rows != NO_PASSAGE) & self.processes.owns(numbers)[:, None]
        prompts = [
            self.prompt(self.sets.train[numbers[line]], int(rows[line, column]))
            for line, column in np.argwhere(owned)
        ]
        found = np.zeros(rows.shape)
        found[owned] = [score.log_likelihood for score in self.supervisor.score(prompts)]
        return self.processes.total(found)


def prepare(
    options: TrainOptions,
    store: PassageStore,
    supervisor: CachedSupervisor,
    tokenizer: SupervisorTokenizer,
    processes: Processes = ALONE,
) -> Prepared:
    """Open and check everything that a run needs; what is cheap to find wrong is looked at first.

    Raises:
        StaleArtefactError: the shards were made by another encoder or of other passages.
        OptionError: options that do not go together.
        CorpusError: the documents cannot be read or give no example.
    """
    base = load_encoder(options.encoder)
    check_projection_size(base, options.projection_size)
    if options.steps.train is Train.BOTH and is_asymmetric(base):
        raise OptionError(
            f"--train both: {options.encoder.model_name_or_path} has separate encoders for queries and passages; "
            "expected one encoder for both. Use --train query."
        )
    if lexical_weights(base) is not None:
        raise OptionError(
            f"{options.encoder.model_name_or_path}: found {LEXICAL_NAME}, weights that were trained with --lexical; "
            "expected an encoder alone. Train from the base that it was made of, or take the file away."
        )
    shards = open_shards(options.data.passages_embeddings)
    check_fresh(shards, base, store, model_name=options.encoder.model_name_or_path)
    with processes.first_before_others():
        index = FaissIndex.from_shards(shards, options.place.save_or_load_index)
    builder = PromptBuilder(
        tokenizer,
        retrieved_max_length=options.retrieved_max_length,
        max_prompt_tokens=supervisor.max_prompt_tokens,
        separator=options.separator,
    )
    sets = load_examples(options.data, store, tokenizer, options.steps.seed)
    lexical = LexicalIndex(_texts(store, index.rows)) if options.candidates.bm25_docs else None
    matches = LazyMatches(lambda: _texts(store, index.rows))
    miner = CandidateMiner(index, lexical, index.rows, options.candidates, options.steps.seed, matches)
    model = trainable_encoder(options, base, index)
    return Prepared(
        model,
        base,
        store,
        index,
        index.rows,
        supervisor,
        builder,
        sets,
        miner,
        matches,
        cast(ComputeDtype, shards[0].manifest.compute_dtype),
        processes,
    )


def _texts(store: PassageStore, rows: Rows) -> Iterator[str]:
    """Texts of the indexed rows, a block at a time."""
    for start in range(0, len(rows), _TEXTS_AT_ONCE):
        yield from store.texts(rows[start : start + _TEXTS_AT_ONCE])
