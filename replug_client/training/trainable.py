"""The encoder whose weights move, by the mode of training; and what is saved of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sentence_transformers import SentenceTransformer
from torch import nn

from replug_client.errors import OptionError
from replug_client.retriever.asymmetric import combine, query_encoder_of
from replug_client.retriever.encoder import load_encoder
from replug_client.retriever.index import PassageIndex
from replug_client.retriever.lexical_weights import add_lexical, without_lexical
from replug_client.retriever.projection import (
    attach,
    before_projection,
    first_weights,
    projection_of,
    with_projection,
    without_projection,
)
from replug_client.training.lora import add_lora, merge_lora
from replug_client.training.options import Train, TrainOptions
from replug_client.training.trainer import freeze_word_embeddings, set_dropout

_PASSAGES_LOOKED_AT = 100_000


def trainable_encoder(
    options: TrainOptions, base: SentenceTransformer, index: PassageIndex
) -> SentenceTransformer:
    """The model that the trainer is given.

    * ``query``: a second copy of the query encoder; ``both``: of the encoder.
    * ``head``: the base itself with a projection after it; where ``head_layers`` are trained too, a second copy
      of the query encoder with it.

    Args:
        options: The run's.
        base: The encoder as it was.
        index: The base's, over the passages.

    Raises:
        OptionError: options that this encoder cannot follow.
    """
    train, modes = options.steps.train, options.modes
    stays = train is Train.HEAD and not modes.head_layers
    encoder = base if stays else _second_copy(options, base.device.type)
    if train is Train.HEAD:
        dimension = modes.projection_dim or index.dimension
        rows = index.rows[:: max(1, len(index) // _PASSAGES_LOOKED_AT)]
        encoder.requires_grad_(False)
        for layer in last_layers(encoder, modes.head_layers):
            layer.requires_grad_(True)
        return with_projection(encoder, first_weights(index.vectors(rows), dimension))
    if modes.lora_rank:
        add_lora(encoder, modes.lora_rank, modes.lora_alpha)
    if modes.lexical:
        add_lexical(encoder)
    return encoder


def tuned_encoder(train: Train, model: SentenceTransformer, base: SentenceTransformer) -> SentenceTransformer:
    """What is saved: with the base's passage encoder wherever it did not move, no LoRA, no weights of words."""
    set_dropout(model, 0.0)
    merge_lora(model)
    if train is Train.QUERY:
        return combine(model, base)
    if train is Train.HEAD and before_projection(model)[0] is not next(iter(base.children())):
        return attach(combine(without_projection(model), base), projection_of(model))
    return without_lexical(model)


def last_layers(model: SentenceTransformer, count: int) -> list[nn.Module]:
    """The transformer's last ``count`` layers.

    Raises:
        OptionError: it has fewer, or none that can be told apart.
    """
    if count == 0:
        return []
    transformer = model.transformers_model
    total = getattr(getattr(transformer, "config", None), "num_hidden_layers", 0)
    modules = [] if transformer is None else list(transformer.modules())
    stacks = [module for module in modules if isinstance(module, nn.ModuleList) and len(module) == total]
    if not total or not stacks or count > total:
        raise OptionError(
            f"--head_layers {count}: this encoder has {total if stacks else 'no'} layers to train the last ones of; "
            "give fewer, or 0 for the projection alone"
        )
    return list(stacks[0])[total - count :]


def enable_checkpointing(transformer: Any) -> None:
    """Compute activations anew in the backward pass instead of keeping them.

    transformers 5.23 gave it this name, and warns of the older one.
    """
    for name in ("activation_checkpointing_enable", "gradient_checkpointing_enable"):
        if hasattr(transformer, name):
            getattr(transformer, name)({"use_reentrant": False})
            return


def _second_copy(options: TrainOptions, device: str) -> SentenceTransformer:
    encoder = options.encoder
    if device == "cpu" and options.steps.bf16 and encoder.attn_implementation is None:
        # On a CPU the backward pass of fused attention is twice as slow in bfloat16 as the plain one.
        encoder = replace(encoder, attn_implementation="eager")
    model = load_encoder(encoder)
    if options.steps.train is not Train.BOTH:
        model = query_encoder_of(model)
    set_dropout(model, options.steps.dropout)
    if options.steps.gradient_checkpointing:
        if (transformer := model.transformers_model) is None:
            raise OptionError("--gradient_checkpointing: this encoder has no transformer; leave it out")
        enable_checkpointing(transformer)
    if not options.steps.train_word_embeddings:
        freeze_word_embeddings(model)
    return model
