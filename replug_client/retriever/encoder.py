"""The encoder: a ``SentenceTransformer`` set up as its family wants it; texts in, vectors out."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.util import load_file_path

from replug_client.errors import ArtefactError, OptionError
from replug_client.hub import spare_attempts
from replug_client.progress import progress
from replug_client.retriever.asymmetric import Route, is_asymmetric, modules_of
from replug_client.retriever.families import Family, family_of
from replug_client.retriever.fingerprint import EncoderFingerprint, fingerprint
from replug_client.retriever.lexical_weights import LEXICAL_NAME, add_lexical, read_lexical
from replug_client.retriever.options import ComputeDtype, EncoderOptions

__all__ = [
    "ComputeDtype",
    "EncoderFingerprint",
    "EncoderOptions",
    "check_projection_size",
    "encode_passages",
    "encode_queries",
    "fingerprint",
    "load_encoder",
]

Vectors = npt.NDArray[np.float32]

_LOG = logging.getLogger(__name__)
_BATCHES_A_CHUNK = 16
_NOT_FOUND = (
    "Expected a folder with a sentence-transformers or transformers model, or a name on the model hub."
)


def load_encoder(options: EncoderOptions) -> SentenceTransformer:
    """Load an encoder with the prompts, the pooling and the normalisation it was trained with.

    What the options say goes first, then what the model folder says, then the rule of its family
    (:mod:`replug_client.retriever.families`). All of it becomes part of the model: once saved, plain
    ``SentenceTransformer(folder)`` with ``encode_query`` / ``encode_document`` gives the same vectors.
    Weights are float32. Of a hybrid retriever, the weights beside the encoder
    (:mod:`replug_client.retriever.lexical_weights`) are loaded with it.

    Raises:
        OptionError: no such model, or options that it cannot follow.
        ArtefactError: its weights are pickled, which replug never reads, or ``lexical.json`` is damaged.
    """
    folder = Path(options.model_name_or_path)
    if folder.is_dir():
        _refuse_pickle(folder)
    else:
        spare_attempts()
    model = _load(options)
    name = str(folder.absolute()) if folder.is_dir() else options.model_name_or_path
    family = family_of(name)
    if family is not None:
        _LOG.debug("%s: an encoder of the family %s", options.model_name_or_path, family.name)
    # A folder without modules.json is a bare transformer: sentence-transformers put a mean over its tokens.
    bare = model.module_kwargs == {}
    _set_prompts(model, options, family)
    _set_modules(model, options, family, bare)
    if options.max_seq_length is not None:
        _set_max_seq_length(model, options.max_seq_length)
    beside = _lexical_file(options.model_name_or_path)
    if beside is not None and (weights := read_lexical(beside.parent)) is not None:
        add_lexical(model, weights)
    return model.eval()


def _lexical_file(model_name_or_path: str) -> Path | None:
    """The weights of words in a folder, or beside a model of the hub; None where it has none."""
    try:
        found = load_file_path(model_name_or_path, LEXICAL_NAME)
    except (OSError, ValueError) as error:
        raise OptionError(
            f"{model_name_or_path}: the hub does not say whether there is a {LEXICAL_NAME} beside the encoder "
            f"({type(error).__name__}: {error}). Try again, or name a folder."
        ) from error
    return None if found is None else Path(found)


def check_projection_size(model: SentenceTransformer, projection_size: int | None) -> None:
    """Check ``--projection_size`` against the length of the encoder's vectors; None is always right.

    Raises:
        OptionError: they differ.
    """
    dimension = model.get_embedding_dimension()
    if projection_size is not None and projection_size != dimension:
        raise OptionError(
            f"--projection_size {projection_size}: this encoder gives vectors of {dimension} numbers. "
            f"Pass --projection_size {dimension}, or leave it out."
        )


def encode_queries(
    model: SentenceTransformer,
    texts: Sequence[str],
    *,
    batch_size: int = 32,
    dtype: ComputeDtype = "float32",
    description: str | None = None,
) -> Vectors:
    """Vectors of queries, ``(n, D)`` float32, in order, with the query prompt and on the query route.

    Args:
        model: The encoder, as :func:`load_encoder` gives it.
        texts: n queries.
        batch_size: Texts a forward pass.
        dtype: Precision of the matrix products (autocast); vectors are float32 all the same.
        description: Shown beside the progress bar; None shows no bar.

    Raises:
        ArtefactError: the encoder gives a vector that is not finite.
    """
    return _encode(model, texts, "query", batch_size, dtype, description)


def encode_passages(
    model: SentenceTransformer,
    texts: Sequence[str],
    *,
    batch_size: int = 32,
    dtype: ComputeDtype = "float32",
    description: str | None = None,
) -> Vectors:
    """Vectors of passages, ``(n, D)`` float32: as :func:`encode_queries`, on the passages' side."""
    return _encode(model, texts, "document", batch_size, dtype, description)


def _encode(
    model: SentenceTransformer,
    texts: Sequence[str],
    route: Route,
    batch_size: int,
    dtype: ComputeDtype,
    description: str | None,
) -> Vectors:
    vectors = np.empty((len(texts), model.get_embedding_dimension() or 0), dtype=np.float32)
    encode = model.encode_query if route == "query" else model.encode_document
    # One length a batch: no time goes into padding. Longest first: what does not fit fails at once.
    order = np.argsort([-len(text) for text in texts], kind="stable")
    shown = progress(description, len(texts), "texts") if description else contextlib.nullcontext(_ignore)
    training = model.training
    step = batch_size * _BATCHES_A_CHUNK
    try:
        with _autocast(model, dtype), shown as advance:
            for start in range(0, len(texts), step):
                chunk = order[start : start + step]
                # With the device said, sentence-transformers leaves all texts to this process, which knows the
                # precision.
                vectors[chunk] = encode(
                    [texts[position] for position in chunk],
                    batch_size=batch_size,
                    show_progress_bar=False,
                    device=str(model.device),
                )
                advance(len(chunk))
    finally:
        model.train(training)
    _check_finite(vectors, texts)
    return vectors


def _ignore(_: int) -> None:
    pass


def _autocast(model: SentenceTransformer, dtype: ComputeDtype) -> torch.autocast:
    lower = dtype != "float32"
    return torch.autocast(model.device.type, getattr(torch, dtype) if lower else None, enabled=lower)


def _check_finite(vectors: Vectors, texts: Sequence[str]) -> None:
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        position = int(np.argmin(finite))
        raise ArtefactError(
            f"the encoder gives NaN or infinity for {int((~finite).sum())} of {len(texts)} texts, first for "
            f"text {position}: {texts[position][:60]!r}. Its weights are damaged, or this "
            "precision is too narrow for them: encode in float32."
        )


def _load(options: EncoderOptions) -> SentenceTransformer:
    if options.device is not None:
        _check_device(options.device)
    model_kwargs: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True}
    if options.attn_implementation is not None:
        model_kwargs["attn_implementation"] = options.attn_implementation
    try:
        return SentenceTransformer(
            options.model_name_or_path,
            device=options.device,
            trust_remote_code=options.trust_remote_code,
            model_kwargs=model_kwargs,
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        raise OptionError(
            f"{options.model_name_or_path}: the encoder cannot be loaded ({type(error).__name__}: {reason}). "
            f"{_NOT_FOUND}"
        ) from error


def _check_device(name: str) -> None:
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise OptionError(
            f"--device {name} is not to be had here: {reason}. Give another, or none."
        ) from error


def _refuse_pickle(folder: Path) -> None:
    for pickled in sorted(folder.rglob("pytorch_model*.bin")):
        if not any(pickled.parent.glob("*.safetensors")):
            raise ArtefactError(
                f"{pickled}: pickled weights, which replug does not read. Convert them once: load the "
                "model in a place you trust and call save_pretrained, which writes model.safetensors."
            )


def _set_prompts(model: SentenceTransformer, options: EncoderOptions, family: Family | None) -> None:
    # sentence-transformers saves empty "query" and "document" prompts for every model, so these say nothing.
    # Beside a "passage" prompt, which replug adds to what it saves, an empty one was meant.
    saved = model.prompts
    meant = "passage" in saved

    def chosen(option: str | None, names: Sequence[str], rule: str) -> str:
        if option is not None:
            return option
        kept = next((prompt for name in names if (prompt := saved.get(name))), "")
        return kept if kept or meant else rule

    query = chosen(options.query_prompt, ("query",), family.query_prompt if family else "")
    passage = chosen(
        options.passage_prompt, ("document", "passage", "corpus"), family.passage_prompt if family else ""
    )
    model.prompts = {**saved, "query": query, "document": passage, "passage": passage}


def _set_modules(
    model: SentenceTransformer, options: EncoderOptions, family: Family | None, bare: bool
) -> None:
    if is_asymmetric(model):
        _check_asymmetric(model, options)
        return
    _set_pooling(model, options, family, bare)
    normalize = _wanted_normalize(model, options, family, bare)
    has = isinstance(model[-1], Normalize)
    if normalize and not has:
        model.append(Normalize())
    elif has and not normalize:
        del model[-1]
    # So that whatever scores with the saved model scores as the index does.
    model.similarity_fn_name = "cosine" if normalize else "dot"


def _set_pooling(
    model: SentenceTransformer, options: EncoderOptions, family: Family | None, bare: bool
) -> None:
    wanted = options.pooling
    if wanted is None and bare and family is not None:
        wanted = family.pooling
    if wanted is None:
        if bare:
            _LOG.warning(
                "%s: a bare transformer of an unknown family. Its vectors are the mean over its tokens, "
                "normalised; --pooling and --normalize change that.",
                options.model_name_or_path,
            )
        return
    poolings = [number for number, module in enumerate(model) if isinstance(module, Pooling)]
    if not poolings:
        raise OptionError(
            f"--pooling {wanted}: {options.model_name_or_path} has no pooling that could be changed."
        )
    old = model[poolings[0]]
    assert isinstance(old, Pooling)
    model[poolings[0]] = Pooling(old.embedding_dimension, wanted, old.include_prompt)


def _wanted_normalize(
    model: SentenceTransformer, options: EncoderOptions, family: Family | None, bare: bool
) -> bool:
    if options.normalize is not None:
        return options.normalize
    if isinstance(model[-1], Normalize):
        return True
    if family is not None:
        return family.normalize
    return bare or _saved_similarity(options.model_name_or_path) == "cosine"


def _saved_similarity(model_name_or_path: str) -> str | None:
    """How a saved model compares vectors; asking the model itself would make "cosine" of nothing said."""
    path = Path(model_name_or_path) / "config_sentence_transformers.json"
    if not path.is_file():
        return None
    value = json.loads(path.read_text(encoding="utf-8")).get("similarity_fn_name")
    return value if isinstance(value, str) else None


def _check_asymmetric(model: SentenceTransformer, options: EncoderOptions) -> None:
    for route in ("query", "document"):
        found = fingerprint(model, route)
        if options.pooling not in (None, found.pooling) or options.normalize not in (None, found.normalized):
            raise OptionError(
                f"{options.model_name_or_path}: an asymmetric model keeps the pooling ({found.pooling}) and "
                f"normalisation ({found.normalized}) it was saved with. Leave out --pooling and --normalize."
            )


def _set_max_seq_length(model: SentenceTransformer, max_seq_length: int) -> None:
    for route in ("query", "document"):
        config = getattr(modules_of(model, route)[0], "config", None)
        most = getattr(config, "max_position_embeddings", None)
        if isinstance(most, int) and 0 < most < max_seq_length:
            raise OptionError(
                f"--max_length {max_seq_length}: this encoder has positions for {most} tokens at most."
            )
    special = getattr(model.tokenizer, "num_special_tokens_to_add", lambda _: 0)(False)
    if max_seq_length <= special:
        raise OptionError(
            f"--max_length {max_seq_length}: this encoder adds {special} tokens of its own to each text, and nothing "
            f"of the text would be left; give at least {special + 1}, or leave it out."
        )
    try:
        model.max_seq_length = max_seq_length
    except AttributeError as error:
        raise OptionError(
            f"--max_length {max_seq_length}: this encoder reads texts of any length ({error}); leave it out"
        ) from error
