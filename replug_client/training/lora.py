"""Low-rank updates instead of the weights themselves, by peft; checkpoints hold them alone.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685): a linear layer W x becomes
W x + (alpha / r) B A x, with A ``(r, in)`` and B ``(out, r)``, B = 0 at the start. Merged, W + (alpha / r) B A is
a layer like any other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import nn

from replug_client.errors import ArtefactError, OptionError
from replug_client.retriever.lexical_weights import PARAMETER

UPDATES_NAME = "lora.safetensors"


def add_lora(model: SentenceTransformer, rank: int, alpha: int | None = None) -> None:
    """Put low-rank updates beside every linear layer of the transformer; nothing else is trained.

    Args:
        model: Changed in place; its vectors are the same until the first step.
        rank: r, at least 1.
        alpha: Scales the updates by alpha / r; None is 2 r.

    Raises:
        OptionError: peft is not installed, the model is no transformer, or narrower than the rank.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise OptionError(
            f"--lora_rank {rank} needs peft ({error}). Install it: pip install 'replug[lora]'."
        ) from error
    transformer = model.transformers_model
    if transformer is None:
        raise OptionError(
            f"--lora_rank {rank}: the encoder has no transformer. Train its weights: leave it out."
        )
    width = getattr(getattr(transformer, "config", None), "hidden_size", None)
    if isinstance(width, int) and rank > width:
        raise OptionError(
            f"--lora_rank {rank}: this encoder's layers are {width} wide, and a rank beyond that gives nothing more; "
            "8 to 64 are usual"
        )
    # BERT's pooler takes no part in the vectors: nothing would ever train its update.
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        target_modules=_linear(transformer),
    )
    model.requires_grad_(False)
    inject_adapter_in_model(config, transformer)


def merge_lora(model: SentenceTransformer) -> None:
    """Fold the updates into the weights and take peft's layers out again; without any, nothing happens.

    Updates of :func:`add_lora`, and those of sentence-transformers' own ``model.add_adapter(LoraConfig(...))``.
    """
    for name, layer in list(model.named_modules()):
        if _is_updated(layer):
            layer.merge(safe_merge=True)
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, layer.get_base_layer())
    part: Any
    for part in model.modules():
        if getattr(part, "_hf_peft_config_loaded", False):
            # transformers would save the updates alone, as an adapter; and there are none any more.
            part._hf_peft_config_loaded = False
            del part.peft_config


def has_lora(model: nn.Module) -> bool:
    """Whether the model has updates that are not merged."""
    return any(map(_is_updated, model.modules()))


def save_updates(model: nn.Module, folder: Path) -> None:
    """Write the updates to ``folder``; the weights beneath them are the base's."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in _updates(model).items()}, folder / UPDATES_NAME)


def load_updates(model: nn.Module, folder: Path) -> None:
    """Read what :func:`save_updates` wrote, into a model with the same updates.

    Raises:
        ArtefactError: the file is missing, or of other updates.
    """
    path = folder / UPDATES_NAME
    if not path.exists():
        raise ArtefactError(f"{path}: no such file. Begin anew with --overwrite.")
    found, own = load_file(path), _updates(model)
    shapes = {name: value.shape for name, value in own.items()}
    if {name: value.shape for name, value in found.items()} != shapes:
        raise ArtefactError(
            f"{path}: {len(found)} updates of another model or rank; expected {len(own)}. Begin anew with --overwrite."
        )
    for name, value in found.items():
        own[name].copy_(value)


def _updates(model: nn.Module) -> dict[str, Any]:
    """What is trained: the updates, and weights of words beside them."""
    return {
        name: value.detach()
        for name, value in model.named_parameters()
        if "lora_" in name or name.endswith(PARAMETER)
    }


def _is_updated(module: nn.Module) -> Any:
    return hasattr(module, "lora_A") and hasattr(module, "get_base_layer")


def _linear(transformer: nn.Module) -> list[str]:
    return [
        name
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith("pooler")
    ]
