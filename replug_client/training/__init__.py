"""Examples, an index and a supervisor in; a tuned retriever out.

What a loop of one's own needs is imported from here, and nothing is loaded before it is asked for:

* From plain texts: :class:`DataCollatorForLSR` (retrieves and scores as it makes a batch) and
  :class:`TrainerForLSR` with :class:`LSRTrainingArguments` (scores ahead of the steps).
* The parts that these are made of: :class:`LSRLoss`, :class:`LSRDataCollator`, :class:`LSRTrainer`.
* What they work with: a :class:`Supervisor`, an index (:class:`ArrayIndex`, :class:`FaissIndex`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replug_client.retriever.index import ArrayIndex, FaissIndex, PassageIndex
    from replug_client.supervisor.local import LocalSupervisor
    from replug_client.supervisor.open import SupervisorOptions, open_supervisor
    from replug_client.supervisor.protocol import Prompt, Score, Supervisor
    from replug_client.training.arguments import LSRTrainingArguments
    from replug_client.training.choices import Aggregation, Denominator, Direction, Objective
    from replug_client.training.collator import LSRDataCollator
    from replug_client.training.loss import LSRLoss, ObjectiveOptions
    from replug_client.training.text_collator import DataCollatorForLSR, split_batch
    from replug_client.training.text_trainer import TrainerForLSR
    from replug_client.training.trainer import LSRTrainer

__all__ = [
    "Aggregation",
    "ArrayIndex",
    "DataCollatorForLSR",
    "Denominator",
    "Direction",
    "FaissIndex",
    "LSRDataCollator",
    "LSRLoss",
    "LSRTrainer",
    "LSRTrainingArguments",
    "LocalSupervisor",
    "Objective",
    "ObjectiveOptions",
    "PassageIndex",
    "Prompt",
    "Score",
    "Supervisor",
    "SupervisorOptions",
    "TrainerForLSR",
    "open_supervisor",
    "split_batch",
]

_MODULES = {
    "retriever.index": ("ArrayIndex", "FaissIndex", "PassageIndex"),
    "supervisor.local": ("LocalSupervisor",),
    "supervisor.open": ("SupervisorOptions", "open_supervisor"),
    "supervisor.protocol": ("Prompt", "Score", "Supervisor"),
    "training.arguments": ("LSRTrainingArguments",),
    "training.collator": ("LSRDataCollator",),
    "training.loss": ("LSRLoss", "ObjectiveOptions"),
    "training.choices": ("Aggregation", "Denominator", "Direction", "Objective"),
    "training.text_collator": ("DataCollatorForLSR", "split_batch"),
    "training.text_trainer": ("TrainerForLSR",),
    "training.trainer": ("LSRTrainer",),
}
_HOMES = {name: f"replug_client.{module}" for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
