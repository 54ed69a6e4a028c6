"""Whether vectors on disk are of this encoder and these passages; if not, what differs and what mends it."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from typing import Any

from sentence_transformers import SentenceTransformer

from replug_client.corpus.store import PassageStore
from replug_client.errors import StaleArtefactError
from replug_client.retriever.encoder import EncoderFingerprint, fingerprint
from replug_client.retriever.shards import Shard

_LOG = logging.getLogger(__name__)


def differences(shards: Sequence[Shard], model: SentenceTransformer, store: PassageStore) -> list[str]:
    """What sets the shards apart from this encoder's passage side and these passages; empty if fresh."""
    manifest = shards[0].manifest  # open_shards sees to it that all are of one encoder and one corpus
    different = manifest.encoder.differences(fingerprint(model, "document"))
    if manifest.corpus_sha256 != store.sha256:
        different.append(
            f"passages ({manifest.corpus_rows} with hash {manifest.corpus_sha256[:12]} against "
            f"{len(store)} with hash {store.sha256[:12]})"
        )
    return different


def check_fresh(
    shards: Sequence[Shard],
    model: SentenceTransformer,
    store: PassageStore,
    *,
    model_name: str | None = None,
) -> None:
    """Refuse vectors that another encoder made, or that are of other passages.

    Shards that hold a part of the corpus only are fine, and reported in the log.

    Args:
        shards: As ``open_shards`` gives them.
        model: The encoder that will be used with them.
        store: The passages that they will be taken for.
        model_name: Name or path of ``model``, for the command that mends; None takes the shards' own.

    Raises:
        StaleArtefactError: says what differs, and gives the command.
    """
    different = differences(shards, model, store)
    if different:
        names = ", ".join(str(shard.directory) for shard in shards)
        wanted = fingerprint(model, "document")
        commands = "\n".join(f"  {mending_command(shard, wanted, store, model_name)}" for shard in shards)
        raise StaleArtefactError(
            f"{names}: stale. On disk against wanted, these differ: {'; '.join(different)}.\n"
            f"Embed the passages again:\n{commands}"
        )
    held = sum(len(shard) for shard in shards)
    if held < len(store):
        _LOG.warning(
            "the shards hold %d of %d passages; the others cannot be found. Embed all %d shards for that.",
            held,
            len(store),
            shards[0].manifest.num_shards,
        )


def mending_command(
    shard: Shard, wanted: EncoderFingerprint, store: PassageStore, model_name: str | None = None
) -> str:
    """The ``replug embed`` command that makes this shard again, as ``wanted`` and of these passages."""
    manifest = shard.manifest
    options = dict(manifest.encoder_options)
    recorded = options.pop("model_name_or_path", "")
    flags: dict[str, Any] = {
        "model_name_or_path": model_name or recorded,
        "passages": [str(path) for path in store.paths] or list(manifest.passages),
        "output_dir": str(shard.directory.parent),
        "shard_id": manifest.shard_id,
        "num_shards": manifest.num_shards,
    }
    if manifest.dtype != "float32":
        flags["vector_dtype"] = manifest.dtype
    if manifest.compute_dtype != "float32":
        flags["compute_dtype"] = manifest.compute_dtype
    return "replug embed " + " ".join(_spell(flags | _encoder_flags(options, manifest.encoder, wanted)))


def _encoder_flags(
    options: dict[str, Any], found: EncoderFingerprint, wanted: EncoderFingerprint
) -> dict[str, Any]:
    """What the shard was asked for, and on top of it what the wanted encoder has otherwise."""
    flags = {name: value for name, value in options.items() if name != "trust_remote_code" or value}
    if "max_seq_length" in flags:
        flags["max_length"] = flags.pop("max_seq_length")
    for flag, name in (
        ("passage_prompt", "prompt"),
        ("pooling", "pooling"),
        ("max_length", "max_seq_length"),
        ("normalize", "normalized"),
    ):
        value = getattr(wanted, name)
        if value != getattr(found, name):
            flags[flag] = value
    return flags


def _spell(flags: dict[str, Any]) -> list[str]:
    words = []
    for name, value in flags.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no_{name}")
            continue
        values = value if isinstance(value, list) else [value]
        words.extend(f"--{name} {shlex.quote(str(one))}" for one in values)
    return words
