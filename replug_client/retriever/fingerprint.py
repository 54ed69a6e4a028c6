"""What an encoder is: everything that would change a vector, as a small record that can be compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Module, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn

from replug_client.errors import ArtefactError
from replug_client.retriever.asymmetric import Route, modules_of
from replug_client.retriever.lexical_weights import lexical_weights

# Case, accents, code, digits, other scripts: a tokenizer that treats any of them otherwise gives other ids.
_CANARY = "Straße ÉCOLE naïve 007 snake_case camelCase x=[1,2] \t\n def f(): ... 東京 Москва é 🙂"


@dataclass(frozen=True, slots=True)
class EncoderFingerprint:
    """Identifies one side (queries or passages) of an encoder.

    Attributes:
        weights_sha256: Over the weights on that route as float32, and the modules they stand in.
        tokenizer_sha256: Over the vocabulary, and the ids that a test sentence gets.
        prompt: What is put before each text.
        pooling: How token vectors become one vector.
        dimension: Length of the vectors.
        max_seq_length: Longest text in the encoder's tokens; the rest is cut off. None: no limit is known.
        normalized: Whether vectors have length 1.
    """

    weights_sha256: str
    tokenizer_sha256: str
    prompt: str
    pooling: str
    dimension: int
    max_seq_length: int | None
    normalized: bool

    def to_json(self) -> dict[str, Any]:
        """The record as JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> EncoderFingerprint:
        """Read what :meth:`to_json` gave.

        Raises:
            ArtefactError: a field is missing or unknown.
        """
        names = {field.name for field in fields(cls)}
        if set(value) != names:
            raise ArtefactError(
                f"an encoder's fingerprint has the fields {sorted(names)}, found {sorted(value)}."
            )
        return cls(**value)

    @property
    def key(self) -> str:
        """Short name for folders: equal for equal fingerprints."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def differences(self, other: EncoderFingerprint) -> list[str]:
        """What differs, in words: ``this`` against ``other``."""
        words = []
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if mine != theirs:
                name = field.name.removesuffix("_sha256").replace("_", " ")
                if field.name.endswith("_sha256"):
                    mine, theirs = mine[:12], theirs[:12]
                words.append(f"{name} ({mine!r} against {theirs!r})")
        return words


def fingerprint(model: SentenceTransformer, route: Route) -> EncoderFingerprint:
    """The fingerprint of what encodes queries (``"query"``) or passages (``"document"``).

    Only the modules on that route count, so a model whose query encoder was tuned has the same ``"document"``
    fingerprint as its base, and its base's passage vectors are its own.
    """
    modules = modules_of(model, route)
    dimension = model.get_embedding_dimension()
    if dimension is None:
        raise ArtefactError("the encoder does not say how long its vectors are; its last module must.")
    limit = getattr(modules[0], "max_seq_length", None)
    pooling = next((module for module in modules if isinstance(module, Pooling)), None)
    return EncoderFingerprint(
        weights_sha256=_weights_sha256(modules),
        tokenizer_sha256=_tokenizer_sha256(modules[0]),
        prompt=model.prompts.get(route) or "",
        pooling="none" if pooling is None else _pooling(pooling),
        dimension=dimension,
        max_seq_length=None if limit is None else int(limit),
        normalized=isinstance(modules[-1], Normalize) and model.truncate_dim is None,
    )


def identity(model: SentenceTransformer, route: Route) -> str:
    """What decides what one side of a retriever finds, in short: the fingerprint's key, and the weights of words."""
    key, weights = fingerprint(model, route).key, lexical_weights(model)
    if route == "document" or weights is None:
        return key
    return " ".join([key, "words", *(f"{weight:.6g}" for weight in weights)])


def _pooling(pooling: Pooling) -> str:
    modes = (pooling.pooling_mode,) if isinstance(pooling.pooling_mode, str) else pooling.pooling_mode
    return "+".join(modes) + ("" if pooling.include_prompt else " without the prompt")


def _weights_sha256(modules: list[nn.Module]) -> str:
    digest = hashlib.sha256()
    for position, module in enumerate(modules):
        digest.update(f"{position} {type(module).__name__} {_settings(module)}\n".encode())
        for name, tensor in sorted(module.state_dict().items()):
            # BERT's own pooler takes no part in the vectors; a checkpoint without it gets a random one.
            if isinstance(module, Transformer) and name.startswith("model.pooler."):
                continue
            digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
            values = tensor.detach().to("cpu", torch.float32).contiguous()
            digest.update(memoryview(values.numpy()).cast("B") if values.numel() else b"")
    return digest.hexdigest()


def _settings(module: nn.Module) -> str:
    # Pooling and the length limit have fields of their own; a Transformer shows in its weights.
    if isinstance(module, (Transformer, Pooling)) or not isinstance(module, Module):
        return ""
    return json.dumps(module.get_config_dict(), sort_keys=True, default=str)


def _tokenizer_sha256(module: nn.Module) -> str:
    tokenizer = getattr(module, "tokenizer", None)
    digest = hashlib.sha256()
    if tokenizer is not None:
        vocabulary = tokenizer.get_vocab()
        digest.update(json.dumps(sorted(vocabulary.items())).encode())
        # The files of one tokenizer change with the library that saves them; what it does to a text does not.
        digest.update(json.dumps(_canary_ids(tokenizer)).encode())
    return digest.hexdigest()


def _canary_ids(tokenizer: Any) -> list[int]:
    encoded = tokenizer.encode(_CANARY)
    return list(getattr(encoded, "ids", encoded))
