"""What a mode of training (``--train``) may be asked beyond its name, and which of it goes together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from replug_client.errors import OptionError


class RefreshSchedule(StrEnum):
    """After how many optimiser steps the passages are re-embedded, ``--refresh_every`` being N."""

    CONSTANT = "constant"  # at N, 2N, 3N, 4N, ...
    DOUBLING = "doubling"  # at N, 2N, 4N, 8N, ...: often while the weights move fast, then seldom

    def last_due(self, step: int, every: int) -> int:
        """The last step, up to ``step``, at which a re-embedding is due; 0 for none yet."""
        times = step // every
        if self is RefreshSchedule.DOUBLING and times:
            times = 1 << (times.bit_length() - 1)
        return times * every


_HEAD_LEARNING_RATE = 1e-4
_LEXICAL_LEARNING_RATE = 1e-2


@dataclass(frozen=True, slots=True)
class ModeOptions:
    """How the mode that ``--train`` names works; what does not concern the mode stays at its default.

    Attributes:
        projection_dim: ``head``: numbers of the projected vectors; None keeps the base's.
        head_layers: ``head``: how many of the query encoder's last layers are trained too. Passages keep the base's,
            so that their vectors stay one matrix product away.
        head_learning_rate: ``head``: peak for the projection; ``--learning_rate`` is for the layers.
        lora_rank: ``query``, ``both``: train low-rank updates of this rank instead of the weights (Hu et al. 2021,
            "LoRA", arXiv 2106.09685, by peft); 0 trains the weights.
        lora_alpha: The updates are scaled by alpha / rank; None is twice the rank.
        grad_cache_chunk: ``both``: passages encoded at once; the gradient is the same, the memory that of a
            chunk. 0 encodes the batch's passages together.
        retrieve_every: ``both``: optimiser steps between two retrievals, a part of ``--refresh_every``; None
            retrieves when the passages have been re-embedded.
        refresh_schedule: ``both``: when the passages are re-embedded.
        background_refresh: ``both``: re-embed beside the training, and take the new index when it is ready. What is
            retrieved then depends on how fast the machine is, so two runs differ.
        over_retrieve: ``both``: take this many from an index that has aged, and keep the best by fresh vectors; 0: off.
        isotropy_weight: Of the regulariser (:mod:`replug_client.training.isotropy`) in the loss; 0 leaves it out.
        lexical: ``query``, ``both``: a passage's similarity is that of the vectors and, by weights that are trained
            too, how well its words match the query's (:mod:`replug_client.retriever.hybrid`).
        lexical_learning_rate: Peak for these weights; they begin at 0.
    """

    projection_dim: int | None = None
    head_layers: int = 0
    head_learning_rate: float = _HEAD_LEARNING_RATE
    lora_rank: int = 0
    lora_alpha: int | None = None
    grad_cache_chunk: int = 0
    retrieve_every: int | None = None
    refresh_schedule: RefreshSchedule = RefreshSchedule.CONSTANT
    background_refresh: bool = False
    over_retrieve: int = 0
    isotropy_weight: float = 0.0
    lexical: bool = False
    lexical_learning_rate: float = _LEXICAL_LEARNING_RATE

    def __post_init__(self) -> None:
        counts = {
            "--head_layers": self.head_layers,
            "--lora_rank": self.lora_rank,
            "--grad_cache_chunk": self.grad_cache_chunk,
            "--over_retrieve": self.over_retrieve,
        }
        for flag, count in counts.items():
            if count < 0:
                raise OptionError(f"{flag} {count}: expected 0 (off) or more")
        for flag, rate in (
            ("--head_learning_rate", self.head_learning_rate),
            ("--lexical_learning_rate", self.lexical_learning_rate),
        ):
            if not 0 < rate < math.inf:
                raise OptionError(f"{flag} {rate}: expected a positive number")
        if self.lexical_learning_rate != _LEXICAL_LEARNING_RATE and not self.lexical:
            raise OptionError(
                f"--lexical_learning_rate {self.lexical_learning_rate} is for the weights that --lexical adds: give "
                "that too"
            )
        if self.lexical and self.over_retrieve:
            raise OptionError(
                f"--over_retrieve {self.over_retrieve} re-ranks by vectors alone; found --lexical, which retrieves by "
                "words too. Leave one of them out."
            )
        if self.lora_alpha is not None and self.lora_alpha < 1:
            raise OptionError(f"--lora_alpha {self.lora_alpha}: expected at least 1")
        if not 0 <= self.isotropy_weight < math.inf:
            raise OptionError(
                f"--isotropy_weight {self.isotropy_weight}: expected 0 (off) or a positive number"
            )

    def check(self, train: str, *, refresh_every: int, n_docs: int, processes: int) -> None:
        """Refuse what the mode ``train``, and the rest of the run, cannot honour.

        Raises:
            OptionError: names the option, and what it goes with.
        """
        if self.lora_alpha is not None and not self.lora_rank:
            raise OptionError(f"--lora_alpha {self.lora_alpha} scales what --lora_rank adds: give that too")
        for flag, given, modes in (
            ("--projection_dim", self.projection_dim is not None, ("head",)),
            ("--head_layers", self.head_layers, ("head",)),
            ("--head_learning_rate", self.head_learning_rate != _HEAD_LEARNING_RATE, ("head",)),
            ("--lora_rank", self.lora_rank, ("query", "both")),
            ("--grad_cache_chunk", self.grad_cache_chunk, ("both",)),
            ("--retrieve_every", self.retrieve_every is not None, ("both",)),
            ("--refresh_schedule", self.refresh_schedule is not RefreshSchedule.CONSTANT, ("both",)),
            ("--background_refresh", self.background_refresh, ("both",)),
            ("--over_retrieve", self.over_retrieve, ("both",)),
            ("--lexical", self.lexical, ("query", "both")),
        ):
            if given and train not in modes:
                raise OptionError(
                    f"{flag} goes with --train {' or '.join(modes)}; found --train {train}. Leave one of them out."
                )
        self._check_refreshing(refresh_every, n_docs)
        if self.background_refresh and processes > 1:
            raise OptionError(
                f"--background_refresh: found {processes} processes, expected one; they would take the new index at "
                "different steps"
            )

    @property
    def retrieves_from_old(self) -> bool:
        """Whether retrieval may meet an index that was made by earlier weights than the present ones."""
        constant = self.refresh_schedule is RefreshSchedule.CONSTANT
        return self.background_refresh or self.retrieve_every is not None or not constant

    def _check_refreshing(self, refresh_every: int, n_docs: int) -> None:
        if self.retrieves_from_old and not refresh_every:
            raise OptionError(
                "--refresh_every 0 never re-embeds: leave out --retrieve_every, --refresh_schedule and "
                "--background_refresh, or give the number of steps"
            )
        if self.retrieve_every is not None and (
            self.retrieve_every < 1 or refresh_every % self.retrieve_every
        ):
            raise OptionError(
                f"--retrieve_every {self.retrieve_every}: expected a divisor of --refresh_every {refresh_every}"
            )
        if self.over_retrieve and self.over_retrieve <= n_docs:
            raise OptionError(
                f"--over_retrieve {self.over_retrieve}: expected more than --n_docs {n_docs}, which are kept of them"
            )
        if self.over_retrieve and not self.retrieves_from_old:
            raise OptionError(
                "--over_retrieve would change nothing: each retrieval meets a fresh index. It goes with "
                "--retrieve_every, --refresh_schedule doubling or --background_refresh."
            )
