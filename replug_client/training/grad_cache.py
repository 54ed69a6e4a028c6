"""Gradient caching: a batch of any number of passages in the memory of one chunk.

Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (arXiv 2101.06983),
sections 3.2 and 3.3: encode every chunk without keeping its graph; take the loss' gradient with respect to the
vectors; then, a chunk at a time, encode once more with the graph and push that gradient through it. The gradient is
that of the whole batch, not an approximation: the loss sees all vectors at once, and the encoder treats each
text by itself. It costs one more forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

EMBEDDING = "sentence_embedding"


def encode_in_chunks(model: nn.Module, features: dict[str, Tensor], chunk: int) -> Tensor:
    """Vectors of tokenised texts, with gradient, keeping the activations of at most ``chunk`` of them.

    What a checkpoint does for a layer, this does for a chunk of the batch: torch drops its activations and makes them
    again, with the same random state (dropout) and precision, when the gradient arrives. Nothing about
    the loss has to be known, so any loss may follow, and gradients may pass on to other losses' terms.

    Args:
        model: The encoder; of a wrapper for several processes, which may not run within a backward pass, the
            inner module is called.
        features: What ``model.preprocess`` gives for n texts.
        chunk: Texts at once, at least 1.

    Returns:
        ``(n, D)``.

    Raises:
        ValueError: ``chunk`` below 1.
    """
    if chunk < 1:
        raise ValueError(f"chunks of {chunk} texts; expected at least 1")
    inner = getattr(model, "module", model)
    parts = [
        checkpoint(_vectors, inner, part, use_reentrant=False, preserve_rng_state=True)
        for part in _chunks(features, chunk)
    ]
    return torch.cat(parts)


def _vectors(model: nn.Module, features: dict[str, Tensor]) -> Any:
    # A copy: the modules leave their results in the dictionary, which would keep all of them alive.
    return model(dict(features))[EMBEDDING]


def _chunks(features: dict[str, Tensor], chunk: int) -> Iterator[dict[str, Tensor]]:
    count = len(features["input_ids"])
    # What has no row for each text (the length of the prompt) goes with every chunk.
    rows = {name for name, value in features.items() if isinstance(value, Tensor) and value.dim() > 1}
    for start in range(0, count, chunk):
        part = slice(start, start + chunk)
        yield {name: value[part] if name in rows else value for name, value in features.items()}
