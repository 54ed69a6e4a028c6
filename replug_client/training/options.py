"""What a training run is asked to do: one frozen dataclass a stage."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from replug_client.errors import OptionError
from replug_client.retriever.options import EncoderOptions
from replug_client.supervisor.open import SupervisorOptions
from replug_client.training.candidates import CandidateOptions
from replug_client.training.choices import (
    Aggregation,
    Denominator,
    Direction,
    Objective,
    check_objective,
    direction_of,
)
from replug_client.training.modes import ModeOptions

_INDEX_NEGATIVES = 3000


class Train(StrEnum):
    """What is trained."""

    QUERY = "query"  # the query encoder; passage vectors stay as they are (RA-DIT)
    BOTH = "both"  # one encoder for both; candidates are re-encoded in each step (REPLUG)
    HEAD = "head"  # a projection after an encoder that stays; base vectors are kept


class Curriculum(StrEnum):
    """In which order the first epoch shows the examples; later epochs show them at random."""

    NONE = "none"  # at random
    EASY_FIRST = "easy-first"  # from the easiest part of them to the hardest


class Easy(StrEnum):
    """What an easy example is; both are measured before the first step."""

    MARGIN = "margin"  # the base prefers, by much, the passage that the supervisor scores best
    SPREAD = "spread"  # the supervisor's scores differ much, so that Q says something


class Keep(StrEnum):
    """Which weights a run ends with."""

    BEST = "best"  # those that were best on the validation examples
    LAST = "last"  # the last ones: with few validation examples, the best are the luckiest


class BestMetric(StrEnum):
    """The validation figure that decides which weights are best, named as it is logged."""

    BITS_PER_BYTE = "bits_per_byte"  # of the first passage; lower is better
    KL = "kl"  # of P and Q over the base's own candidates; lower is better
    EXPECTED_SCORE = "expected_score"  # under P, over the validation pool; higher is better
    RECALL = "recall_at_10"  # of the LM's own best passage; higher is better
    MRR = "mrr"  # of the LM's own best passage; higher is better

    @property
    def lower_is_better(self) -> bool:
        """Whether less of it is better."""
        return self in (BestMetric.BITS_PER_BYTE, BestMetric.KL)


_LEARNING_RATE, _GOLD_ENTROPY = 2e-5, 0.5


@dataclass(frozen=True, slots=True)
class DataOptions:
    """Where passages, their vectors and the documents are, and how examples are cut.

    Attributes:
        passages: Corpus files.
        passages_embeddings: Shards, or globs of shards.
        data: Documents that training examples are cut from.
        validation_data: Documents for validation; None takes ``validation_fraction`` of ``data``.
        validation_fraction: Share of the documents of ``data`` held out, by a hash of their ids.
        max_validation: At most this many validation examples, spread over the documents.
        context_len: Supervisor tokens of the query.
        pred_len: Supervisor tokens of the continuation.
        min_pred_len: A shorter last continuation is dropped.
        stride: Tokens from one window's start to the next; None is a whole window.
        continuations: Continuations of ``pred_len`` tokens, one behind the other, that a training query has;
            each is an example, with candidates and a target of its own.
        max_examples: At most this many training examples, drawn at random; None takes all.
        ngram_guard: Drop an example when a run of this many tokens also stands in a passage; 0 is off.
    """

    passages: tuple[Path, ...]
    passages_embeddings: tuple[str, ...]
    data: tuple[Path, ...]
    validation_data: tuple[Path, ...] = ()
    validation_fraction: float = 0.1
    max_validation: int = 300
    context_len: int = 128
    pred_len: int = 128
    min_pred_len: int = 16
    stride: int | None = None
    continuations: int = 1
    max_examples: int | None = None
    ngram_guard: int = 0


@dataclass(frozen=True, slots=True)
class TargetOptions:
    """P and Q; a temperature of None is calibrated on the first candidates.

    Attributes:
        temperature_score: gamma, or None: P under the base gets the entropy that Q has.
        temperature_gold: beta, or None: the median entropy of Q becomes ``gold_entropy`` of log K.
        gold_entropy: Used where beta is calibrated.
        score: Aggregation of the continuation's log-probs.
        kl: Direction of the divergence; None becomes the objective's own.
        denominator: Which passages share P's mass.
        index_negatives: Passages drawn from the whole index into the batch's denominator, anew for each batch.
        objective: Which loss.
        contrastive_weight: Of the InfoNCE term over the batch's passages; 0 leaves it out.
    """

    temperature_score: float | None = None
    temperature_gold: float | None = None
    gold_entropy: float = _GOLD_ENTROPY
    score: Aggregation = Aggregation.MEAN
    kl: Direction | None = None
    denominator: Denominator = Denominator.CANDIDATES
    index_negatives: int = 0
    objective: Objective = Objective.LSR
    contrastive_weight: float = 0.0

    def __post_init__(self) -> None:
        for flag, value in (
            ("--temperature_score", self.temperature_score),
            ("--temperature_gold", self.temperature_gold),
        ):
            if value is not None and not 0 < value < float("inf"):
                raise OptionError(f"{flag} {value}: expected a positive number, or auto")
        if self.temperature_gold is not None and self.gold_entropy != _GOLD_ENTROPY:
            raise OptionError(
                f"--gold_entropy {self.gold_entropy:g} goes with --temperature_gold auto, which it chooses; found "
                f"--temperature_gold {self.temperature_gold:g}. Leave one of them out."
            )
        check_objective(self.objective, self.score, self.kl, self.denominator, self.contrastive_weight)
        object.__setattr__(self, "kl", direction_of(self.objective, self.kl))
        joined = self.denominator is Denominator.BATCH or self.contrastive_weight
        if self.index_negatives < 0 or (self.index_negatives and not joined):
            raise OptionError(
                f"--index_negatives {self.index_negatives}: expected 0 or more, and with --denominator batch or "
                "--contrastive_weight, whose passages they join"
            )

    @classmethod
    def that_won(
        cls,
        train: Train,
        *,
        kl: Direction | None = None,
        denominator: Denominator | None = None,
        index_negatives: int | None = None,
        **others: Any,
    ) -> TargetOptions:
        """What is left open filled with what gave most on held-out text (docs/objectives.md, *Measured*).

        KL(Q||P) with P over the batch's passages, and 3,000 of the index beside them where passage vectors are frozen:
        that holds the order over the whole index, which a loss over a query's own candidates loses. ``kl`` p-q, which
        the REPLUG paper writes, goes with the candidates alone. The class's own defaults are the paper's.

        Args:
            train: What is trained.
            kl: Direction; None takes q-p.
            denominator: None takes the batch's passages, with p-q the candidates.
            index_negatives: None takes 3,000 where they can be had, with the batch's passages.
            others: As the class's.

        Raises:
            OptionError: options that do not go together.
        """
        kl = kl or Direction.Q_P
        if denominator is None:
            denominator = Denominator.CANDIDATES if kl is Direction.P_Q else Denominator.BATCH
        if index_negatives is None:
            frozen = train is not Train.BOTH
            index_negatives = _INDEX_NEGATIVES if frozen and denominator is Denominator.BATCH else 0
        return cls(kl=kl, denominator=denominator, index_negatives=index_negatives, **others)


def started_processes() -> int:
    """How many processes the launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@dataclass(frozen=True, slots=True)
class StepOptions:
    """The optimisation.

    Attributes:
        train: What is trained.
        batch_size: Examples a step and process.
        processes: How many processes share the run; set by the launcher, not by a flag.
        learning_rate: Peak of AdamW's schedule; of ``head`` that of the layers, where some are trained.
        epochs: Passes over the examples.
        max_steps: Optimiser steps in all, epochs repeated until then; None goes by ``epochs``.
        warmup_ratio: Share of the steps with a rising learning rate (linear decay after it).
        weight_decay: AdamW's.
        accumulation: Batches an optimiser step.
        refresh_every: Optimiser steps between two retrievals with the current retriever (``both``: and
            re-embeddings of the passages); 0 keeps the base's candidates for the whole run.
        eval_every: Optimiser steps between two validations; 0: a quarter of the run, rounded up.
        keep: Which weights the run ends with.
        dropout: Of the encoder while training.
        train_word_embeddings: Whether the input word embeddings are trained.
        curriculum: Order of the first epoch.
        curriculum_by: What is easy, where easy examples come first.
        max_grad_norm: Longer gradients are scaled down to this length; 0 leaves them as they are.
        gradient_checkpointing: Compute the encoder's activations again in the backward pass instead of keeping
            them: the same gradient in less memory.
        bf16: bfloat16 autocast.
        seed: Of everything random.
    """

    train: Train = Train.QUERY
    batch_size: int = 4
    processes: int = 1
    learning_rate: float = _LEARNING_RATE
    epochs: int = 1
    max_steps: int | None = None
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01
    accumulation: int = 1
    refresh_every: int = 100
    eval_every: int = 0
    keep: Keep = Keep.BEST
    dropout: float = 0.0
    train_word_embeddings: bool = False
    curriculum: Curriculum = Curriculum.NONE
    curriculum_by: Easy = Easy.MARGIN
    max_grad_norm: float = 1.0
    gradient_checkpointing: bool = False
    bf16: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        counts = {
            "--per_gpu_batch_size": self.batch_size,
            "--epochs": self.epochs,
            "--gradient_accumulation_steps": self.accumulation,
            "--max_steps": 1 if self.max_steps is None else self.max_steps,
        }
        for flag, value in counts.items():
            if value < 1:
                raise OptionError(f"{flag} {value}: expected at least 1")
        if not 0 <= self.learning_rate < float("inf"):
            raise OptionError(
                f"--learning_rate {self.learning_rate}: expected a positive, finite number, or 0 to learn nothing"
            )
        if not 0 <= self.max_grad_norm < float("inf"):
            raise OptionError(
                f"--max_grad_norm {self.max_grad_norm}: expected a length, or 0 for no clipping"
            )
        if not 0 <= self.seed < 2**32:
            raise OptionError(f"--seed {self.seed}: expected 0 to {2**32 - 1}")
        if not 0 <= self.weight_decay < float("inf"):
            raise OptionError(f"--weight_decay {self.weight_decay}: expected a finite number, 0 or more")
        if self.curriculum is Curriculum.NONE and self.curriculum_by is not Easy.MARGIN:
            raise OptionError(
                f"--curriculum_by {self.curriculum_by} goes with --curriculum easy-first; found --curriculum none. "
                "Give that too, or leave it out."
            )
        if self.refresh_every < 0 or self.eval_every < 0:
            raise OptionError("--refresh_every and --eval_every: expected 0 or more steps")


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """What validation decides, and when to warn.

    Attributes:
        best_metric: Decides which checkpoint is best, for ``keep best`` and for early stopping.
        early_stopping: Stop after this many validations in a row without a new best; 0 never stops early.
        stale_after: Warn where the index or the candidates in use are older than this many optimiser steps.
    """

    best_metric: BestMetric = BestMetric.BITS_PER_BYTE
    early_stopping: int = 0
    stale_after: int = 1000

    def __post_init__(self) -> None:
        if self.early_stopping < 0 or self.stale_after < 1:
            raise OptionError(
                f"--early_stopping {self.early_stopping}, --stale_after {self.stale_after}: expected 0 or more "
                "validations, and at least 1 step"
            )


@dataclass(frozen=True, slots=True)
class PlaceOptions:
    """Where things go, and whether to go on.

    Attributes:
        output_dir: The tuned retriever, its checkpoints and its record.
        cache_dir: Score cache and converted corpora.
        resume: Go on from the last checkpoint.
        overwrite: Throw away what an earlier run left in ``output_dir``.
        save_or_load_index: Keep the FAISS index beside the shards, and take it from there.
    """

    output_dir: Path
    cache_dir: Path
    resume: bool = False
    overwrite: bool = False
    save_or_load_index: bool = False

    def __post_init__(self) -> None:
        if self.resume and self.overwrite:
            raise OptionError(
                f"--resume goes on with the run in {self.output_dir}, and --overwrite throws it away: found both, "
                "expected one of them"
            )


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """A whole run."""

    data: DataOptions
    encoder: EncoderOptions
    supervisor: SupervisorOptions
    place: PlaceOptions
    candidates: CandidateOptions = field(default_factory=CandidateOptions)
    target: TargetOptions = field(default_factory=TargetOptions)
    steps: StepOptions = field(default_factory=StepOptions)
    modes: ModeOptions = field(default_factory=ModeOptions)
    watch: WatchOptions = field(default_factory=WatchOptions)
    retrieved_max_length: int = 128
    separator: str = "\n"
    projection_size: int | None = None

    def __post_init__(self) -> None:
        self.modes.check(
            self.steps.train,
            refresh_every=self.steps.refresh_every,
            n_docs=self.candidates.n_docs,
            processes=self.steps.processes,
        )
        self._check_what_moves()
        self._check_what_decides()
        self._check_batch()

    def _check_what_decides(self) -> None:
        """Refuse a figure by which no weights are chosen, or that is always the same."""
        chosen = self.watch.best_metric
        decides = self.steps.keep is Keep.BEST or self.watch.early_stopping
        if chosen is not BestMetric.BITS_PER_BYTE and not decides:
            raise OptionError(
                f"--best_metric {chosen} decides nothing with --keep last: add --early_stopping N, or use --keep best"
            )
        if chosen is BestMetric.KL and self.candidates.n_docs < 2:
            raise OptionError(
                f"--best_metric kl with --n_docs {self.candidates.n_docs}: it is of P and Q over the retriever's own "
                "candidates, of which it needs at least two. Raise --n_docs, or take another --best_metric."
            )

    def _check_batch(self) -> None:
        """Refuse terms over a step's passages that the step has too few of, or whose vectors cannot be had."""
        alone = self.steps.batch_size * self.steps.processes == 1
        if self.modes.isotropy_weight and alone:
            raise OptionError(
                f"--isotropy_weight {self.modes.isotropy_weight} with --per_gpu_batch_size 1: found one query a step, "
                "expected at least two vectors to tell whether they spread; take a larger batch, of 32 and more"
            )
        if self.target.contrastive_weight and alone and not self.target.index_negatives:
            raise OptionError(
                "--contrastive_weight with --per_gpu_batch_size 1: other queries' passages are the negatives, and "
                "there are none; take a larger batch, or --index_negatives"
            )
        if self.target.index_negatives and self.steps.train is Train.BOTH:
            raise OptionError(
                "--index_negatives needs --train query or head: passages that are encoded in each step cannot be "
                "drawn by the thousand"
            )

    def _check_what_moves(self) -> None:
        """Refuse what concerns weights that the mode leaves as they are."""
        steps, modes = self.steps, self.modes
        if steps.train is Train.HEAD and not modes.head_layers:
            for flag, given in (
                ("--dropout", steps.dropout),
                ("--gradient_checkpointing", steps.gradient_checkpointing),
                ("--learning_rate", steps.learning_rate != _LEARNING_RATE),
            ):
                if given:
                    raise OptionError(
                        f"{flag} is for layers that are trained; found --train head without --head_layers, which "
                        "trains the projection alone (at --head_learning_rate). Give --head_layers, or leave it out."
                    )
        if steps.train_word_embeddings and (steps.train is Train.HEAD or modes.lora_rank):
            found = "--train head" if steps.train is Train.HEAD else f"--lora_rank {modes.lora_rank}"
            raise OptionError(
                "--train_word_embeddings goes with --train query or both without --lora_rank; found "
                f"{found}, which leaves them as they are. Leave one of them out."
            )
