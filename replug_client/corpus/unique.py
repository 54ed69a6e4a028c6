"""Finding duplicate ids among any number of them, in bounded memory."""

from __future__ import annotations

import hashlib
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import IO, Self

import numpy as np
import numpy.typing as npt

from replug_client.corpus.rows import Place

_RUN = 1 << 18  # ids held in memory at a time: 2 MiB of hashes
_SUSPECTS = 64
_WORD = np.dtype("<u8")


def hash64(text: str) -> int:
    """64 bits of BLAKE2b over the text's UTF-8 bytes; equal hashes must still be confirmed."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


class HashIndex:
    """Rows by 64-bit hash, 16 bytes a row; what it gives must be confirmed."""

    def __init__(self, hashes: Iterable[int]) -> None:
        values = np.fromiter(hashes, dtype=_WORD)
        self._rows = np.argsort(values, kind="stable")
        self._sorted = values[self._rows]

    def rows(self, hash_: int) -> list[int]:
        """Every row with this hash, ascending."""
        word = np.array(hash_, dtype=_WORD)
        first, last = (int(np.searchsorted(self._sorted, word, side=side)) for side in ("left", "right"))
        return [int(row) for row in self._rows[first:last]]


class HashSpool:
    """Collects 64-bit hashes; what exceeds ``run_length`` goes to a temporary file as sorted runs.

    Memory: about three times ``run_length`` words of 8 bytes, however many are added.
    """

    def __init__(self, run_length: int = _RUN) -> None:
        self._run_length = run_length
        self._pending = array("Q")
        self._spool: IO[bytes] | None = None
        self._runs: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._spool is not None:
            self._spool.close()

    def append(self, hash_: int) -> None:
        """Take one hash."""
        self._pending.append(hash_)
        if len(self._pending) >= self._run_length:
            self._flush()

    def extend(self, hashes: npt.NDArray[np.uint64]) -> None:
        """Take some, ``(n,)``."""
        self._pending.frombytes(hashes.astype(np.uint64, copy=False).tobytes())
        if len(self._pending) >= self._run_length:
            self._flush()

    def _flush(self) -> None:
        if self._spool is None:
            self._spool = tempfile.TemporaryFile(prefix="replug-ids-")  # noqa: SIM115 (closed in __exit__)
        run = np.sort(np.frombuffer(self._pending, dtype=_WORD))
        self._spool.write(run.tobytes())
        self._runs.append(len(run))
        self._pending = array("Q")

    def sorted_slices(self) -> Iterator[npt.NDArray[np.uint64]]:
        """All hashes, sorted, in slices of the hash space; equal ones never fall into two slices."""
        pending = np.sort(np.frombuffer(self._pending, dtype=_WORD))
        if self._spool is None:
            yield pending
            return
        self._spool.flush()
        spooled = np.memmap(self._spool, dtype=_WORD, mode="r")
        ends = np.cumsum(self._runs)
        runs = [spooled[end - length : end] for end, length in zip(ends, self._runs, strict=True)] + [pending]
        # Hashes are uniform, so as many slices as runs makes each about one run long.
        starts = np.array([(part << 64) // len(runs) for part in range(len(runs))], dtype=_WORD)
        bounds = [np.append(np.searchsorted(run, starts), len(run)) for run in runs]
        for part in range(len(runs)):
            yield np.sort(
                np.concatenate([run[b[part] : b[part + 1]] for run, b in zip(runs, bounds, strict=True)])
            )


class IdSpool(HashSpool):
    """Collects hashes of ids, to find those that stand twice."""

    def add(self, id_: str) -> None:
        """Take one id."""
        self.append(hash64(id_))

    def suspects(self) -> set[int]:
        """Hashes that were added more than once; at most some dozens of them."""
        found: set[int] = set()
        for hashes in self.sorted_slices():
            found.update(np.unique(hashes[1:][hashes[1:] == hashes[:-1]])[:_SUSPECTS].tolist())
            if len(found) >= _SUSPECTS:
                break
        return found


def refuse_duplicate(suspects: set[int], second_look: Iterable[tuple[Place, str]], column: str) -> None:
    """Read the ids again and raise for the first one that truly stands twice.

    Args:
        suspects: Hashes from :meth:`IdSpool.suspects`; nothing is read when there are none.
        second_look: Every id with its place, in order.
        column: The name of the id column.

    Raises:
        CorpusError: two records have the same id; names both.
    """
    if not suspects:
        return
    first: dict[str, Place] = {}
    for place, id_ in second_look:
        if hash64(id_) not in suspects:
            continue
        if id_ in first:
            raise place.error(
                f"duplicate id {id_!r}, which stands first at {first[id_]}. "
                "Ids are unique in a corpus: rename one of them, or leave one row out.",
                column=column,
            )
        first[id_] = place
