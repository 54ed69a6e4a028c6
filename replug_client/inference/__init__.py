"""Question in, answer out: a language model over retrieved passages. Nothing is loaded before it is asked for.

* From files: :class:`Replug` retrieves, asks and answers.
* Over passages that you bring: :class:`Answerer`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replug_client.inference.answerer import Answerer
    from replug_client.inference.answers import Answer, AnswererOptions, Combination
    from replug_client.inference.generation import GenerationOptions
    from replug_client.inference.replug import Grounded, Replug, ReplugOptions

__all__ = [
    "Answer",
    "Answerer",
    "AnswererOptions",
    "Combination",
    "GenerationOptions",
    "Grounded",
    "Replug",
    "ReplugOptions",
]

_MODULES = {
    "answerer": ("Answerer",),
    "answers": ("Answer", "AnswererOptions", "Combination"),
    "generation": ("GenerationOptions",),
    "replug": ("Grounded", "Replug", "ReplugOptions"),
}
_HOMES = {name: f"replug_client.inference.{module}" for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
