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

from replug_client.errors import OptionError

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
        OptionError: features in which texts cannot be told apart.
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
    if "offsets" in features:
        yield from _bags(features, chunk)
        return
    ids = features["input_ids"]
    if ids.dim() < 2 or "cu_seq_lens_q" in features:
        raise OptionError(
            f"--grad_cache_chunk {chunk}: found input_ids of shape {tuple(ids.shape)}, all texts end to end; expected "
            "a row for each text, to be cut by. Leave it out, or set unpad_inputs=False on the encoder's transformer."
        )
    # What has no row for each text (the length of the prompt) goes with every chunk.
    rows = {name for name, value in features.items() if isinstance(value, Tensor) and value.dim() > 1}
    for start in range(0, len(ids), chunk):
        part = slice(start, start + chunk)
        yield {name: value[part] if name in rows else value for name, value in features.items()}


def _bags(features: dict[str, Tensor], chunk: int) -> Iterator[dict[str, Tensor]]:
    """Chunks of what a ``StaticEmbedding`` reads: the ids of all texts end to end, and where each text begins."""
    ids, begins = features["input_ids"], features["offsets"]
    for start in range(0, len(begins), chunk):
        own, after = begins[start : start + chunk], begins[start + chunk : start + chunk + 1]
        end = int(after[0]) if len(after) else len(ids)
        yield features | {"input_ids": ids[int(own[0]) : end], "offsets": own - own[0]}
