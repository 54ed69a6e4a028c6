"""A trainable projection over an encoder that stays as it is: vectors of the base are all that it ever needs.

The model is a plain ``sentence_transformers`` one: the base's modules, then a ``Dense`` without bias under the
name ``projection``, then ``Normalize`` where the base normalises. ``SentenceTransformer(folder)`` loads it. New
passage vectors are one matrix product with the base's, whatever the encoder costs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Router
from torch import Tensor, nn

from replug_client.errors import OptionError

Vectors = npt.NDArray[np.float32]
Encoder = TypeVar("Encoder", bound=SentenceTransformer)

PROJECTION = "projection"
EMBEDDING = "sentence_embedding"
_ROWS_AT_ONCE = 1 << 14
_ROWS_LOOKED_AT = 100_000


class ProjectedEncoder(SentenceTransformer):
    """An encoder with a projection, as it is trained: it takes texts, or the base's vectors of them.

    The projection runs in float32, whatever the encoder runs in: it costs next to nothing, and vectors that
    are compared in training are then as exact as those in the index. Saved, it is a plain
    ``SentenceTransformer``.
    """

    def forward(self, input: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        """Tokenised texts, or ``sentence_embedding`` ``(n, D)`` of the base, to projected vectors ``(n, D')``."""
        if "input_ids" in input:
            for module in before_projection(self):
                input = module(input, **(kwargs if isinstance(module, Router) else {}))
        with torch.autocast(input[EMBEDDING].device.type, enabled=False):
            vectors = run_projection(self, input[EMBEDDING].float())
        return input | {EMBEDDING: vectors}


def has_projection(model: SentenceTransformer) -> bool:
    """Whether the model ends with a projection that :func:`with_projection` put there."""
    return PROJECTION in dict(model.named_children())


def projection_of(model: SentenceTransformer) -> list[nn.Module]:
    """The projection and what follows it; empty for a model without one."""
    names = list(dict(model.named_children()))
    start = names.index(PROJECTION) if PROJECTION in names else len(names)
    return list(model.children())[start:]


def before_projection(model: SentenceTransformer) -> list[nn.Module]:
    """The modules of the base."""
    head = len(projection_of(model))
    modules = list(model.children())
    return modules[: len(modules) - head]


def run_projection(model: SentenceTransformer, vectors: Tensor) -> Tensor:
    """``(n, D)`` vectors of the base to ``(n, D')``, with gradient."""
    features = {EMBEDDING: vectors}
    for module in projection_of(model):
        features = module(features)
    return features[EMBEDDING]


def project(model: SentenceTransformer, blocks: Iterable[npt.NDArray[np.floating[Any]]]) -> Vectors:
    """The base's vectors, in blocks that may be memory-mapped, to ``(n, D')`` float32 of the whole.

    No text is read and no encoder is run.
    """
    with torch.no_grad():
        parts = [
            run_projection(model, torch.from_numpy(part).to(model.device)).cpu().numpy()
            for block in blocks
            for part in _parts(block)
        ]
    return np.concatenate(parts)


def _parts(block: npt.NDArray[np.floating[Any]]) -> Iterator[Vectors]:
    for start in range(0, len(block), _ROWS_AT_ONCE):
        # A copy: torch warns of arrays that it may not write to.
        yield np.array(block[start : start + _ROWS_AT_ONCE], dtype=np.float32)


def first_weights(vectors: npt.NDArray[np.floating[Any]], dimension: int) -> Vectors:
    """Where a projection begins: ``(D', D)``, as near to the base as D' numbers can be.

    For D' = D it is the identity, so that training begins at the base exactly. For D' < D it is the first D'
    right singular vectors of the passages' vectors (not centred): of all projections to D' numbers the one that
    keeps these vectors best, in the sum of squares (Eckart and Young 1936).

    Args:
        vectors: ``(n, D)`` of the base.
        dimension: D'.

    Raises:
        OptionError: D' is not between 1 and D.
    """
    width = vectors.shape[1]
    if not 1 <= dimension <= width:
        raise OptionError(
            f"--projection_dim {dimension}: the encoder gives vectors of {width} numbers, and further ones would "
            f"stay 0 for ever. Expected 1 to {width}."
        )
    if dimension == width:
        return np.eye(width, dtype=np.float32)
    step = max(1, len(vectors) // _ROWS_LOOKED_AT)
    seen = np.asarray(vectors[::step], dtype=np.float64)
    _, directions = np.linalg.eigh(seen.T @ seen)
    chosen = directions[:, ::-1][:, :dimension].T
    # The sign of a singular vector is arbitrary: fixed, so that machines agree.
    largest = np.take_along_axis(chosen, np.abs(chosen).argmax(axis=1)[:, None], axis=1)
    weights: Vectors = (chosen * np.sign(largest)).astype(np.float32)
    return weights


def with_projection(base: SentenceTransformer, weights: npt.ArrayLike) -> ProjectedEncoder:
    """``base`` followed by a projection that begins with ``weights``, ``(D', D)``.

    The base's modules are shared, not copied.

    Raises:
        OptionError: the base has a projection already, cuts its vectors off, or gives others than of D numbers.
    """
    given = torch.as_tensor(np.array(weights, dtype=np.float32))
    width = base.get_embedding_dimension()
    if has_projection(base) or base.truncate_dim is not None or width != given.shape[1]:
        raise OptionError(
            f"--train head: expected a base without a projection that gives whole vectors of {given.shape[1]} "
            f"numbers; found one of {width} (truncate_dim {base.truncate_dim}, projection "
            f"{has_projection(base)}). Take the base that it was made from."
        )
    dense = Dense(
        given.shape[1], given.shape[0], bias=False, activation_function=nn.Identity(), init_weight=given
    )
    return attach(base, [dense, Normalize()] if _normalizes(base) else [dense])


def attach(base: SentenceTransformer, projection: list[nn.Module]) -> ProjectedEncoder:
    """``base`` followed by another model's projection (:func:`projection_of`), shared with it."""
    modules: OrderedDict[str, nn.Module] = OrderedDict(
        (str(number), module) for number, module in enumerate(base.children())
    )
    modules[PROJECTION] = projection[0]
    modules |= {f"{PROJECTION}_{number}": module for number, module in enumerate(projection[1:], 1)}
    return _assembled(ProjectedEncoder, modules, base)


def without_projection(model: SentenceTransformer) -> SentenceTransformer:
    """The base of a model with a projection: the same modules. Another model is returned as it is."""
    if not has_projection(model):
        return model
    modules = OrderedDict((str(number), module) for number, module in enumerate(before_projection(model)))
    return _assembled(SentenceTransformer, modules, model)


def _assembled(
    kind: type[Encoder], modules: OrderedDict[str, nn.Module], like: SentenceTransformer
) -> Encoder:
    return kind(
        modules=cast(Any, modules),  # sentence-transformers' own annotation leaves the names out
        device=str(like.device),
        prompts={name: prompt or "" for name, prompt in like.prompts.items()},
        similarity_fn_name=like.similarity_fn_name,
        local_files_only=True,
    )


def _normalizes(base: SentenceTransformer) -> bool:
    last = list(base.children())[-1]
    if isinstance(last, Router):
        return all(isinstance(route[-1], Normalize) for route in last.sub_modules.values())  # type: ignore[index]
    return isinstance(last, Normalize)
