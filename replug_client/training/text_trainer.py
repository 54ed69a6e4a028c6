"""A training run from plain texts in memory: the parts of `replug train`, put together for Python."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import SequentialEvaluator
from transformers import PrinterCallback
from transformers.trainer_utils import TrainOutput

from replug_client.corpus.store import PassageStore
from replug_client.errors import CorpusError, OptionError
from replug_client.retriever.asymmetric import combine
from replug_client.retriever.encoder import encode_passages, encode_queries
from replug_client.retriever.index import ArrayIndex, PassageIndex
from replug_client.retriever.lexical_weights import LEXICAL_NAME, lexical_weights
from replug_client.supervisor.protocol import StreamingSupervisor
from replug_client.supervisor.tokenizer import SupervisorTokenizer
from replug_client.training.alarms import Freshness
from replug_client.training.arguments import LSRTrainingArguments
from replug_client.training.callbacks import KeptValidation, LogWithAdvice
from replug_client.training.candidates import Rows
from replug_client.training.choices import Denominator
from replug_client.training.collator import IndexNegatives, LSRDataCollator
from replug_client.training.lora import has_lora, merge_lora
from replug_client.training.loss import LSRLoss
from replug_client.training.options import Train
from replug_client.training.schedule import Schedule
from replug_client.training.stream import CandidateStream
from replug_client.training.text_collator import check_parts, miner_of
from replug_client.training.texts import TextCorpus, TextScorer
from replug_client.training.trainer import LSRTrainer, StreamHooks, freeze_word_embeddings, set_dropout
from replug_client.training.validation import (
    DEPTH,
    HeldOutLikelihood,
    ValidationSet,
    full_precision,
    own_candidates,
)

_STATIC_GENERATION = 100


class TrainerForLSR(LSRTrainer):
    """Trains an encoder on pairs of texts: retrieval, scoring ahead of the steps, refresh and validation included.

    A :class:`~sentence_transformers.SentenceTransformerTrainer` in all else: callbacks, mixed precision,
    accumulation, checkpoints, ``resume_from_checkpoint``. One process; on several, run ``replug train``.

    Args:
        model: The encoder; it is trained in place.
        args: Training arguments.
        train_dataset: Rows with ``query`` and ``continuation``: a ``datasets.Dataset``, or a list.
        eval_dataset: The same, held out; the figures of ``HeldOutLikelihood`` are then logged as ``eval_*``, before
            those of an ``evaluator`` of yours. Where rows name their ``document``, intervals are over documents.
        loss: An :class:`LSRLoss` over ``model``; None is REPLUG's own, with gamma and beta 0.1.
        passages: The corpus, as texts.
        supervisor: The LM that scores.
        tokenizer: The supervisor's.
        index: Over the passages, row for row; None embeds them with ``model`` now.
        keywords: Passed on to the parents (``callbacks``, ``optimizers``, ...).

    Raises:
        CorpusError: rows or passages that are no texts, or none.
        OptionError: parts that are no encoder, arguments, supervisor, tokenizer or index; several processes, a loss
            over another model, or negatives that it has no use for.

    Example:
        >>> import tempfile
        >>> from replug_client.training import LSRLoss, LSRTrainingArguments, ObjectiveOptions, TrainerForLSR
        >>> from replug_client.training.toy import toy
        >>> passages = ["paris lies in france", "rome lies in italy", "cats chase mice"]
        >>> rows = [{"query": "capital of france", "continuation": "paris"},
        ...         {"query": "capital of italy", "continuation": "rome"}]
        >>> model, supervisor, tokenizer = toy(passages + [row["query"] for row in rows])
        >>> args = LSRTrainingArguments(
        ...     tempfile.mkdtemp(), max_steps=30, learning_rate=0.05, per_device_train_batch_size=2, use_cpu=True,
        ...     n_docs=3, bm25_docs=0, random_docs=0, report_to="none", disable_tqdm=True, save_strategy="no")
        >>> trainer = TrainerForLSR(
        ...     model, args, rows, loss=LSRLoss(model, ObjectiveOptions(0.1, 1.0)),
        ...     passages=passages, supervisor=supervisor, tokenizer=tokenizer)
        >>> _ = trainer.train()
        >>> found = trainer.index.search(model.encode_query([row["query"] for row in rows]), 1)
        >>> [passages[row] for row in found.rows[:, 0]]
        ['paris lies in france', 'rome lies in italy']
        >>> trainer.save_retriever(args.output_dir)  # SentenceTransformer(args.output_dir) loads it
        >>> supervisor.close()
    """

    def __init__(
        self,
        model: SentenceTransformer,
        args: LSRTrainingArguments,
        train_dataset: Iterable[Mapping[str, Any]],
        eval_dataset: Iterable[Mapping[str, Any]] | None = None,
        loss: LSRLoss | None = None,
        *,
        passages: Sequence[str],
        supervisor: StreamingSupervisor,
        tokenizer: SupervisorTokenizer,
        index: PassageIndex | None = None,
        **keywords: Any,
    ) -> None:
        check_parts(model, supervisor, tokenizer, index)
        loss = loss or LSRLoss(model)
        _check(model, args, loss)
        set_dropout(model, args.dropout)
        if not args.train_word_embeddings:
            freeze_word_embeddings(model)
        self._passages, self._corpus = passages, TextCorpus(passages)
        self._scorer = TextScorer(
            self._corpus,
            supervisor,
            tokenizer,
            retrieved_max_length=args.retrieved_max_length,
            separator=args.separator,
        )
        self._encoder, self._base = model, copy.deepcopy(model)
        self._is_static = args.refresh_every == 0
        self._frozen = args.train == Train.QUERY
        self._supervisor, self._n_docs, self._objective = supervisor, args.n_docs, loss.options
        self.index: PassageIndex = self._embedded() if index is None else index
        self._miner = miner_of(self._corpus, passages, self.index, args.candidates, args.seed)
        self._examples = self._scorer.examples(train_dataset)
        if not self._examples:
            raise CorpusError("train_dataset is empty; expected rows with 'query' and 'continuation'")
        self._folder = Path(str(args.output_dir)) / "candidates"
        accumulation = args.gradient_accumulation_steps
        data_seed = args.seed if args.data_seed is None else args.data_seed
        schedule = Schedule(len(self._examples), args.per_device_train_batch_size, data_seed, accumulation)
        stream = self._stream(args, schedule, supervisor)
        refresh = None if self._frozen or self._is_static else self._refresh
        collator = LSRDataCollator(
            model,
            self._examples,
            stream.take,
            passage_texts=None if self._frozen else self._corpus.texts,
            frozen=self.index if self._frozen else None,
            negatives=IndexNegatives(self.index.rows, args.index_negatives, args.seed)
            if args.index_negatives
            else None,
        )
        callbacks: list[Any] = [LogWithAdvice(Freshness(refresh_every=args.refresh_every))]
        if eval_dataset is not None:
            own = self._evaluator(eval_dataset, self.index)
            theirs = keywords.get("evaluator") or []
            theirs = theirs if isinstance(theirs, list) else [theirs]
            keywords["evaluator"] = SequentialEvaluator([own, *theirs], _first) if theirs else own
            callbacks.append(KeptValidation(own))
        hooks = StreamHooks(
            stream, self._mine, refresh, accumulation, first_is_own=args.n_docs > 0, passages=len(passages)
        )
        super().__init__(model, args, loss, collator, schedule, hooks, **keywords)
        # transformers' own printer says the same as LogWithAdvice, as raw dictionaries.
        self.remove_callback(PrinterCallback)
        for callback in callbacks:
            self.add_callback(callback)

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *arguments: Any, **keywords: Any
    ) -> TrainOutput:
        """As the parent's; a run that begins anew forgets the candidates of an earlier one in the same folder.

        Where passages have been trained, :attr:`index` is of the final weights afterwards.
        """
        if not resume_from_checkpoint:
            for path in self._folder.glob("generation_*.npy"):
                path.unlink()
        output = cast(TrainOutput, super().train(resume_from_checkpoint, *arguments, **keywords))
        if not self._frozen:
            self.index = self._embedded()
            if not self._is_static:
                self._miner.index = self.index
        return output

    def evaluate(  # type: ignore[override]
        self,
        eval_dataset: Iterable[Mapping[str, Any]] | Mapping[str, Iterable[Mapping[str, Any]]] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """The figures of validation; of ``eval_dataset``, where given, those of ``HeldOutLikelihood``.

        Args:
            eval_dataset: Rows, or several sets of them by name; None takes what the trainer was made with.
            ignore_keys: The parent's.
            metric_key_prefix: Stands before each figure's name.

        Raises:
            CorpusError: as at the start.
            OptionError: no rows, neither here nor when the trainer was made.
        """
        if eval_dataset is None and self.evaluator is None:
            raise OptionError(
                "evaluate() has nothing to evaluate on; give rows, or eval_dataset when it is made"
            )
        if eval_dataset is None:
            return super().evaluate(None, ignore_keys, metric_key_prefix)
        if isinstance(eval_dataset, Mapping):
            sets = [
                self.evaluate(rows, ignore_keys, f"{metric_key_prefix}_{name}")
                for name, rows in eval_dataset.items()
            ]
            return {name: figure for figures in sets for name, figure in figures.items()}
        base = self.index if self._frozen else ArrayIndex(encode_passages(self._base, list(self._passages)))
        figures = self._evaluator(eval_dataset, base)(self._encoder, steps=self.state.global_step)
        named = {f"{metric_key_prefix}_{name}": figure for name, figure in figures.items()}
        self.log(dict(named))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, named)
        return named

    def predict(self, *_: Any, **__: Any) -> Any:
        """A retriever predicts nothing; see :meth:`evaluate`, and the encoder's ``encode_query``.

        Raises:
            OptionError: always.
        """
        raise OptionError(
            "TrainerForLSR has no predict: evaluate(rows) gives figures, model.encode_query(texts) vectors"
        )

    def save_retriever(self, folder: str | Path) -> None:
        """Save what plain ``SentenceTransformer(folder)`` loads; ``query`` keeps the base's passage encoder.

        LoRA's updates (``model.add_adapter(...)``) are folded into the weights that are saved; the model keeps them.
        """
        encoder, base = _merged(self._encoder), _merged(self._base)
        (combine(encoder, base) if self._frozen else encoder).save_pretrained(str(folder))

    def _stream(
        self, args: LSRTrainingArguments, schedule: Schedule, supervisor: StreamingSupervisor
    ) -> CandidateStream:
        accumulation = args.gradient_accumulation_steps
        steps_an_epoch = schedule.batches_per_epoch // accumulation
        steps = args.max_steps if args.max_steps > 0 else math.ceil(steps_an_epoch * args.num_train_epochs)
        return CandidateStream(
            self._examples,
            schedule,
            self._scorer.prompt,
            supervisor,
            generation=(args.refresh_every or _STATIC_GENERATION) * accumulation,
            total=steps * accumulation,
            folder=self._folder,
            static=self._is_static,
        )

    def _mine(self, numbers: Rows) -> Rows:
        queries = [self._examples[number].query for number in numbers]
        vectors = encode_queries(self._base if self._is_static else self._encoder, queries)
        return self._miner.mine(vectors, queries, numbers)

    def _embedded(self) -> ArrayIndex:
        with full_precision(self._encoder):
            return ArrayIndex(encode_passages(self._encoder, list(self._passages)))

    def _refresh(self) -> None:
        self.index = self._miner.index = self._embedded()

    def _evaluator(self, rows: Iterable[Mapping[str, Any]], base: PassageIndex) -> HeldOutLikelihood:
        """Validation on ``rows``, beside the base retriever over its own index."""
        examples = self._scorer.examples(rows)
        if not examples:
            raise CorpusError("eval_dataset is empty; expected rows with 'query' and 'continuation'")
        queries = [example.query for example in examples]
        vectors = encode_queries(self._base, queries)
        lists = base.search(vectors, DEPTH).rows
        miner = copy.copy(self._miner)
        miner.index = base
        data = ValidationSet(
            examples,
            own_candidates(lists, self._n_docs),
            cast(PassageStore, self._corpus),  # of which a passage's text is all that is read
            self._scorer.builder,
            self._supervisor,
            self._objective,
            # Candidates of every source: among the base's own alone, none could do better than the base.
            pool_rows=miner.mine(vectors, queries, np.arange(len(queries))),
            base_lists=lists,
        )
        return HeldOutLikelihood(data, lambda _: self.index if self._frozen else self._embedded())


def _first(figures: Sequence[float]) -> float:
    return figures[0]


def _check(model: SentenceTransformer, args: LSRTrainingArguments, loss: LSRLoss) -> None:
    found: object = args
    if not isinstance(found, LSRTrainingArguments):
        raise OptionError(
            f"args is {type(found).__name__}; expected LSRTrainingArguments, which extend it by candidates and refresh"
        )
    if args.world_size > 1:
        raise OptionError(
            f"TrainerForLSR runs in one process, and {args.world_size} were started. Run `replug train` under "
            "torchrun or accelerate launch, which divides the scoring among them."
        )
    if loss.model is not model:
        raise OptionError(
            "the loss was made over another model than the one to train; make it with LSRLoss(model)"
        )
    if lexical_weights(model) is not None:
        raise OptionError(
            f"TrainerForLSR trains encoders alone; found one with {LEXICAL_NAME}, weights for words. Take the base "
            "that it was made of, or run `replug train --lexical`."
        )
    options = loss.options
    if args.index_negatives and not (options.denominator is Denominator.BATCH or options.contrastive_weight):
        raise OptionError(
            f"index_negatives={args.index_negatives} would join nothing; expected a loss with denominator 'batch' or a "
            "contrastive_weight, whose passages they join. Give ObjectiveOptions one of them, or leave it out."
        )
    if options.contrastive_weight and args.per_device_train_batch_size == 1 and not args.index_negatives:
        raise OptionError(
            f"contrastive_weight={options.contrastive_weight} with per_device_train_batch_size=1: other queries' "
            "passages are the negatives, and there are none; take a larger batch, or index_negatives"
        )


def _merged(model: SentenceTransformer) -> SentenceTransformer:
    if not has_lora(model):
        return model
    copied = copy.deepcopy(model)
    merge_lora(copied)
    return copied
