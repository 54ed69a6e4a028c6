"""What the flags of an evaluation on the LM's side say; what they leave open comes from a run's record."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from replug_client.corpus.windows import WindowOptions
from replug_client.errors import OptionError
from replug_client.evaluation.conditions import BASE, CEILING, TUNED, parse_conditions
from replug_client.evaluation.held_out import ExampleOptions
from replug_client.evaluation.lm import LMOptions
from replug_client.evaluation.run_settings import RunSettings
from replug_client.retriever.encoder import EncoderOptions
from replug_client.supervisor.open import SupervisorOptions

_T = TypeVar("_T")
_CHOSEN = (
    "These examples chose the weights that the run kept (--keep best), which favours the tuned retriever a little: "
    "give documents that took no part with --data."
)


@dataclass(frozen=True, slots=True)
class LMAsked:
    """Flags as they were given; None and ``()`` leave it to the run.

    The fields are those of :class:`~replug_client.evaluation.lm.LMOptions` and of what it holds.
    """

    supervisor: SupervisorOptions
    cache_dir: Path
    passages: tuple[Path, ...] = ()
    data: tuple[Path, ...] = ()
    shards: tuple[str, ...] = ()
    base: str | None = None
    tuned: str | None = None
    device: str | None = None
    conditions: tuple[str, ...] = ()
    combinations: tuple[str, ...] = ("first",)
    k: int = 10
    temperature: float | None = None
    seed: int = 0
    context_len: int | None = None
    pred_len: int | None = None
    min_pred_len: int | None = None
    sliding: bool = False
    skip_context: bool = False
    max_examples: int | None = None
    ngram_guard: int | None = None
    retrieved_max_length: int | None = None
    separator: str | None = None


def resolve(asked: LMAsked, settings: RunSettings | None) -> LMOptions:
    """Take each thing from its flag, and what no flag gives from the run's record.

    Raises:
        OptionError: without a run, no corpus or no documents; or options that cannot work.
    """
    passages = asked.passages or (settings.run.passages if settings else ())
    if not passages:
        raise OptionError("no corpus: name its files with --passages, or a run with --run")
    base, tuned = encoders(asked.base, asked.tuned, asked.device, settings)
    known = (BASE,) * (base is not None) + (TUNED,) * (tuned is not None)
    default = ("none", "random", "bm25", *known, *((CEILING,) if base else ()))
    return LMOptions(
        passages=passages,
        supervisor=asked.supervisor,
        cache_dir=asked.cache_dir,
        examples=_examples(asked, settings),
        conditions=tuple(parse_conditions(asked.conditions or default, asked.combinations)),
        base=base,
        tuned=tuned,
        shards=asked.shards or (settings.run.shards if settings else ()),
        k=asked.k,
        temperature=_first(asked.temperature, settings.temperature if settings else 1.0),
        retrieved_max_length=_first(
            asked.retrieved_max_length, settings.retrieved_max_length if settings else 128
        ),
        separator=_first(asked.separator, settings.separator if settings else "\n"),
        seed=asked.seed,
        notes=(_CHOSEN,) if settings and settings.kept_best and not asked.data else (),
    )


def encoders(
    base: str | None, tuned: str | None, device: str | None, settings: RunSettings | None
) -> tuple[EncoderOptions | None, EncoderOptions | None]:
    """Base and tuned encoder: those named, else the run's; None where there is neither."""
    first = EncoderOptions(base) if base else (settings.run.base if settings else None)
    second = (
        EncoderOptions(tuned) if tuned else (EncoderOptions(str(settings.run.folder)) if settings else None)
    )
    return (
        None if first is None else replace(first, device=device),
        None if second is None else replace(second, device=device),
    )


def _examples(asked: LMAsked, settings: RunSettings | None) -> ExampleOptions:
    return ExampleOptions(
        data=asked.data,
        held_out=None if settings is None else settings.run.held_out,
        windows=_windows(asked, settings.windows if settings else WindowOptions()),
        ngram_guard=_first(asked.ngram_guard, settings.ngram_guard if settings else 0),
        max_examples=asked.max_examples,
        trained_on=settings.trained_on if settings else (),
    )


def _windows(asked: LMAsked, default: WindowOptions) -> WindowOptions:
    pred_len = _first(asked.pred_len, default.pred_len)
    least = default.min_pred_len
    if asked.min_pred_len is not None or least is None:
        least = asked.min_pred_len
    elif asked.pred_len is not None:  # the run's minimum was for its own length
        least = min(least, pred_len)
    return WindowOptions(
        context_len=_first(asked.context_len, default.context_len),
        pred_len=pred_len,
        min_pred_len=least,
        sliding=asked.sliding,
        skip_context=asked.skip_context,
    )


def _first(given: _T | None, otherwise: _T) -> _T:
    return otherwise if given is None else given
