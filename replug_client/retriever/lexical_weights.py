"""The weights of a hybrid retriever: how much a match of words counts beside the nearness of vectors.

They are trained as a module of the encoder and stored beside it in ``lexical.json``, so that what is saved stays a
plain ``sentence_transformers`` model. What they weigh is in :mod:`replug_client.retriever.hybrid`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Module
from torch import Tensor, nn

from replug_client.artefacts import read_json, write_json
from replug_client.errors import ArtefactError

GROUPS = ("terms", "pairs")
"""What there is a weight for: single terms, and pairs of neighbouring ones."""
LEXICAL_NAME = "lexical.json"
PARAMETER = "lexical_weights"
"""The parameter's name, by which it gets a learning rate of its own; and the feature's in which it is handed on."""

_TOO_LARGE = 1e30
_MEND = "Take the folder as `replug train` wrote it, or take the file away to search by vectors alone."


class LexicalWeights(Module):
    """The weights of the word matches, ``(2,)``; vectors pass as they are.

    Hands the weights on beside the vectors, so that a loss gets them out of the encoder's own forward pass (which
    wrappers for several processes look at for what has a gradient).
    """

    def __init__(self, weights: Sequence[float] = (0.0,) * len(GROUPS)) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lexical_weights = nn.Parameter(torch.tensor(weights, dtype=torch.float32))

    def forward(self, features: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        """Adds ``lexical_weights``."""
        # A copy: a parameter that is itself an output is taken for unused by such wrappers.
        return features | {PARAMETER: self.lexical_weights.clone()}

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """sentence-transformers' form, for checkpoints."""
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)

    @classmethod
    def load(cls, model_name_or_path: str, **kwargs: Any) -> Self:  # type: ignore[override]
        """What :meth:`save` wrote."""
        names = ("subfolder", "token", "cache_folder", "revision", "local_files_only")
        where = {name: kwargs[name] for name in names if name in kwargs}
        module: Self = cls.load_torch_weights(model_name_or_path=model_name_or_path, model=cls(), **where)
        return module


def add_lexical(model: SentenceTransformer, weights: Sequence[float] = (0.0,) * len(GROUPS)) -> None:
    """Put weights behind the encoder's modules, in place."""
    model.append(LexicalWeights(weights).to(model.device))


def lexical_weights(model: nn.Module) -> tuple[float, ...] | None:
    """The weights of a hybrid retriever, in the order of ``GROUPS``; None of an encoder alone."""
    found = next((module for module in model.modules() if isinstance(module, LexicalWeights)), None)
    return None if found is None else tuple(found.lexical_weights.detach().tolist())


def without_lexical(model: SentenceTransformer) -> SentenceTransformer:
    """The encoder alone: the same modules, changed in place."""
    for name, module in list(model.named_children()):
        if isinstance(module, LexicalWeights):
            del model._modules[name]  # not `del model[...]`, which would number the others anew
    return model


def save_lexical(folder: Path, weights: Sequence[float]) -> None:
    """Write ``lexical.json`` beside an encoder."""
    write_json(folder / LEXICAL_NAME, {"weights": dict(zip(GROUPS, weights, strict=True))})


def read_lexical(folder: Path) -> tuple[float, ...] | None:
    """The weights beside an encoder; None where there are none.

    Raises:
        ArtefactError: they cannot be read.
    """
    path = folder / LEXICAL_NAME
    if not path.exists():
        return None
    value = read_json(path, mend=_MEND).get("weights")
    if isinstance(value, dict) and set(value) == set(GROUPS):
        weights = [value[name] for name in GROUPS]
        if all(type(weight) in (int, float) and abs(weight) < _TOO_LARGE for weight in weights):
            return tuple(map(float, weights))
    raise ArtefactError(f"{path}: expected weights, a number for each of {GROUPS}; found {value}. {_MEND}")
