"""Passage vectors on disk: one folder a shard, with a manifest that was written last.

A shard holds the vectors of one contiguous block of the corpus: ``vectors.npy`` (rows in corpus order, read
memory-mapped), ``ids.arrow`` (the passages' ids, in the same order) and ``manifest.json``.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from replug_client import __version__
from replug_client.artefacts import MANIFEST_NAME, atomic_write, read_json, write_json
from replug_client.errors import ArtefactError, StaleArtefactError
from replug_client.retriever.fingerprint import EncoderFingerprint

FORMAT = 1
VECTORS_NAME = "vectors.npy"
IDS_NAME = "ids.arrow"
JOURNAL_NAME = "progress.json"
DTYPES = ("float32", "float16")

_MEND = "Make it with `replug embed`."


@dataclass(frozen=True, slots=True)
class ShardManifest:
    """What made a shard.

    Attributes:
        shard_id: Number of the shard, from 0.
        num_shards: How many shards the corpus was cut into.
        start_row: Corpus row of its first vector.
        rows: How many vectors it holds.
        corpus_rows: How many passages the corpus had.
        corpus_sha256: Content of the corpus (``PassageStore.sha256``).
        passages: The corpus files, as they were given.
        encoder: Fingerprint of the passage side of the encoder.
        encoder_options: The options the encoder was loaded with; those not given are left out.
        dtype: Of the stored vectors: ``float32`` or ``float16``.
        compute_dtype: Precision the encoder ran in.
        format: Version of this layout.
        versions: Of replug and the libraries underneath.
    """

    shard_id: int
    num_shards: int
    start_row: int
    rows: int
    corpus_rows: int
    corpus_sha256: str
    passages: tuple[str, ...]
    encoder: EncoderFingerprint
    encoder_options: Mapping[str, Any]
    dtype: str
    compute_dtype: str
    format: int = FORMAT
    versions: Mapping[str, str] = field(default_factory=lambda: {"replug": __version__})

    @property
    def shape(self) -> tuple[int, int]:
        """``(rows, D)`` of the vectors."""
        return self.rows, self.encoder.dimension

    @property
    def plan(self) -> dict[str, Any]:
        """What decides the vectors: two shards with the same plan hold the same."""
        left_out = {"passages", "encoder_options", "versions"}
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    def write(self, directory: Path) -> None:
        """Write ``manifest.json``, which says that everything else is there."""
        write_json(directory / MANIFEST_NAME, asdict(self))

    @classmethod
    def read(cls, directory: Path) -> ShardManifest:
        """Read a shard's manifest.

        Raises:
            ArtefactError: there is none, or one of another layout.
        """
        value = read_json(directory / MANIFEST_NAME, mend=_MEND)
        names = {field.name for field in fields(cls)}
        if value.get("format") != FORMAT or set(value) != names:
            raise ArtefactError(
                f"{directory / MANIFEST_NAME}: a shard of layout {value.get('format')} with fields "
                f"{sorted(value)}; expected layout {FORMAT} with {sorted(names)}. {_MEND}"
            )
        encoder = EncoderFingerprint.from_json(value.pop("encoder"))
        return cls(encoder=encoder, passages=tuple(value.pop("passages")), **value)


class Shard:
    """A finished shard, open for reading.

    Attributes:
        directory: Its folder.
        manifest: What made it.
        vectors: ``(rows, D)`` float32 or float16, memory-mapped, read-only.
    """

    def __init__(self, directory: Path) -> None:
        """Open the shard in ``directory``.

        Raises:
            ArtefactError: it is missing, unfinished or damaged.
        """
        if not (directory / MANIFEST_NAME).exists() and (directory / JOURNAL_NAME).exists():
            done = read_json(directory / JOURNAL_NAME, mend=_MEND)
            raise ArtefactError(
                f"{directory}: this shard is unfinished ({done.get('done')} of {done.get('rows')} passages). "
                "Run the same `replug embed` again; it goes on where it stopped."
            )
        self.directory = directory
        self.manifest = ShardManifest.read(directory)
        self.vectors = _open_vectors(directory / VECTORS_NAME, self.manifest)

    def __len__(self) -> int:
        return self.manifest.rows

    def __repr__(self) -> str:
        return f"Shard({str(self.directory)!r}, {len(self)} passages)"

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """``(rows,)`` the corpus rows of its vectors."""
        start = self.manifest.start_row
        return np.arange(start, start + len(self), dtype=np.int64)

    @property
    def identity(self) -> str:
        """Hash of the manifest: another one means that the shard was made again."""
        return hashlib.sha256((self.directory / MANIFEST_NAME).read_bytes()).hexdigest()

    def ids(self) -> list[str]:
        """The passages' ids, in order.

        Raises:
            ArtefactError: the file is missing, damaged, or of another length.
        """
        path = self.directory / IDS_NAME
        try:
            with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
                ids: list[str] = reader.read_all().column("id").to_pylist()
        except (OSError, pa.ArrowInvalid, KeyError) as error:
            raise ArtefactError(f"{path}: cannot be read ({error}). {_MEND}") from error
        if len(ids) != len(self):
            raise ArtefactError(f"{path}: {len(ids)} ids for {len(self)} vectors. {_MEND}")
        return ids


def write_ids(directory: Path, ids: Iterator[Sequence[str]]) -> None:
    """Write ``ids.arrow`` from batches of ids."""
    schema = pa.schema([pa.field("id", pa.large_string(), nullable=False)])
    with atomic_write(directory / IDS_NAME) as stream, pa.ipc.new_file(stream, schema) as writer:
        for batch in ids:
            writer.write_batch(pa.record_batch([pa.array(batch, pa.large_string())], schema=schema))


def open_shards(patterns: Sequence[str | Path]) -> list[Shard]:
    """Open shards by folder, by several folders, by a glob, or by the folder that holds them all.

    Returns:
        The shards by corpus row, each once; all made by one encoder from one corpus.

    Raises:
        ArtefactError: a pattern that matches no shard, or a shard that is unfinished or damaged.
        StaleArtefactError: shards that do not belong together.
    """
    directories = {path.resolve(): path for pattern in patterns for path in _matches(str(pattern))}
    shards = sorted((Shard(path) for path in directories.values()), key=lambda shard: shard.rows[0])
    for before, after in pairwise(shards):
        _check_together(before, after)
    if not shards:
        raise ArtefactError(f"no shard of passage vectors was named. {_MEND}")
    return shards


def _matches(pattern: str) -> list[Path]:
    path = Path(pattern)
    if not path.is_dir():
        # Path.glob refuses absolute patterns.
        names = glob.glob(pattern, recursive=True)  # noqa: PTH207
        found = sorted(path for path in map(Path, names) if path.is_dir())
    elif any((path / name).exists() for name in (MANIFEST_NAME, JOURNAL_NAME, VECTORS_NAME)):
        found = [path]
    else:
        found = sorted(child for child in path.glob("passages_*") if child.is_dir())
    if not found:
        raise ArtefactError(
            f"{pattern}: no shard of passage vectors there. Expected a folder such as "
            "code_embeddings/passages_00, as `replug embed --output_dir code_embeddings` makes it."
        )
    return found


def _check_together(before: Shard, after: Shard) -> None:
    if before.manifest.corpus_sha256 != after.manifest.corpus_sha256:
        raise StaleArtefactError(
            f"{before.directory} and {after.directory} hold vectors of different passages: "
            f"{', '.join(before.manifest.passages)} and {', '.join(after.manifest.passages)}, or an older "
            "state of them. Name shards of one corpus, or embed the older one again."
        )
    different = before.manifest.encoder.differences(after.manifest.encoder)
    if different:
        raise StaleArtefactError(
            f"{before.directory} and {after.directory} were made by different encoders: "
            f"{'; '.join(different)}. Embed one of them again, with the other's encoder."
        )
    if before.rows[-1] >= after.rows[0]:
        raise StaleArtefactError(
            f"{before.directory} and {after.directory} hold the same passages (rows {after.rows[0]} to "
            f"{min(before.rows[-1], after.rows[-1])}). Name shards of one --num_shards."
        )


def _open_vectors(path: Path, manifest: ShardManifest) -> npt.NDArray[np.floating[Any]]:
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ArtefactError(f"{path}: cannot be read ({error}). {_MEND}") from error
    if vectors.shape != manifest.shape or vectors.dtype != manifest.dtype:
        raise ArtefactError(
            f"{path}: {vectors.dtype} of shape {vectors.shape}, its manifest says {manifest.dtype} of shape "
            f"{manifest.shape}. {_MEND}"
        )
    return vectors  # type: ignore[no-any-return]
