"""Scores on disk: SQLite, content-addressed, one row a prompt (design decision 3).

The table has row ids and an index on the key, so scores are appended in the order in which they come, and only
the small index is written at random places. A table without row ids writes twice as many bytes a score, each
into a random page of the whole file. Files that earlier versions made have one; they are read and written with
the same statements. Memory maps would make look-ups faster, but turn a disk error into the process's death.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import numpy as np

from replug_client.errors import ArtefactError
from replug_client.supervisor.canary import Identity, difference
from replug_client.supervisor.protocol import Prompt, Score

_log = logging.getLogger(__name__)

_FORMAT = 1
_DIGITS = 2  # of the distance of two canaries, in nats
_BUSY_MS = 60_000
_KEYS_PER_QUERY = 500  # SQLite's oldest limit on the parameters of a statement is 999
_PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=NORMAL",
    "cache_size=-65536",  # KiB: holds the upper levels of the index at tens of millions of scores
    "wal_autocheckpoint=4000",  # pages: an index page that changed many times is moved to the file once
)
_TABLES = (
    "CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, value BLOB)",
    "CREATE TABLE IF NOT EXISTS supervisors (fingerprint TEXT PRIMARY KEY, identity TEXT, canary BLOB)",
    "CREATE TABLE IF NOT EXISTS other_names (identity TEXT, fingerprint TEXT, PRIMARY KEY (identity, fingerprint))",
)
_FLOAT = np.dtype("<f4")
_T = TypeVar("_T")


class ScoreCacheError(ArtefactError):
    """The score cache cannot be written or opened; says what to do about it."""


class _DamagedError(Exception):
    """The file is no database, or a damaged one, or of another format."""


def cache_key(fingerprint: str, prompt: Prompt) -> bytes:
    """16 bytes that name a score: of the supervisor's fingerprint, the ids and the continuation's length."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(fingerprint.encode())
    digest.update(prompt.num_continuation.to_bytes(4, "little"))
    digest.update(np.asarray(prompt.ids, dtype="<i4").tobytes())
    return digest.digest()


class ScoreCache:
    """A file of scores, shared by threads and processes.

    A score is committed before ``put`` returns, and survives ``kill -9`` from then on. Each value
    carries a checksum; a damaged value counts as missing. A damaged file is moved aside with a warning,
    and a new one is begun: scores can be computed again, a run should not end for them.
    """

    def __init__(self, path: str | Path | None) -> None:
        """Open or create the file; None keeps the scores in memory, for as long as this object lives.

        Raises:
            ScoreCacheError: the place cannot be written.
        """
        self.path = None if path is None else Path(path)
        self._lock = threading.RLock()
        self._file: tuple[int, int] | None = None
        self._closed = False
        self._recognised: list[tuple[str, Identity]] = []
        self._connection = self._open()

    def recognise(self, identity: Identity) -> str:
        """The fingerprint under which this supervisor's scores are kept; of 64 characters.

        It is that of the known supervisor with equal parts (its own, or those of another replica that was there
        with it) whose canary is nearest, if no further than noise moves it; else a new one. Canaries are held
        against the first that was seen of a supervisor, so that small steps do not add up. In a file of before
        there was such a list, the fingerprint is the one that was used then.

        Raises:
            ScoreCacheError: the cache cannot be read or written.
        """
        fingerprint = self._attempt("write", lambda connection: _recognise(connection, identity))
        self._recognised.append((fingerprint, identity))
        return fingerprint

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Score]:
        """The scores that are there, by key."""
        rows = self._attempt("read", lambda connection: _select(connection, keys))
        found: dict[bytes, Score] = {}
        for key, value in rows:
            score = _unpack(key, value)
            if score is None:
                _log.warning("score cache %s: found a damaged score; it is computed anew", self.path)
            else:
                found[key] = score
        return found

    def put(self, scores: Iterable[tuple[bytes, Score]]) -> None:
        """Keep the scores, in one transaction.

        Raises:
            ScoreCacheError: the disk is full, or cannot be written.
        """
        rows = [(key, _pack(key, score)) for key, score in scores]
        self._attempt("write", lambda connection: _insert(connection, rows))

    def forget(self, keys: Sequence[bytes]) -> None:
        """Take scores out, in one transaction; those that are not there do not matter.

        Raises:
            ScoreCacheError: the file cannot be written.
        """
        self._attempt("write", lambda connection: _delete(connection, keys))

    def __len__(self) -> int:
        return self._attempt("read", _count)

    def close(self) -> None:
        """Close the file; whatever is asked afterwards raises ``ScoreCacheError``."""
        with self._lock:
            self._closed = True
            self._connection.close()

    def _open(self, damage: str | None = None) -> sqlite3.Connection:
        """Open the file; where it is known to be damaged, move it aside first."""
        if self.path is None:
            if damage is not None:
                raise ScoreCacheError(f"the score cache in memory is damaged ({damage})")
            return _connect(":memory:")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.path):
                if damage is not None:
                    self._set_aside(self.path, damage)
                self._file = _inode(self.path)
                try:
                    connection = _connect(str(self.path))
                except _DamagedError as error:
                    self._set_aside(self.path, str(error))
                    connection = _connect(str(self.path))
                self._file = _inode(self.path)
            with connection:  # a new file in place of a damaged one goes on with the same fingerprints
                for fingerprint, identity in self._recognised:
                    _insert_supervisor(connection, fingerprint, identity)
            return connection
        except (OSError, sqlite3.Error, _DamagedError) as error:
            raise ScoreCacheError(
                f"score cache {self.path}: cannot be opened ({error}). Choose another place with --cache_dir."
            ) from error

    def _attempt(self, what: str, operation: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run an operation, one thread at a time; where the file proves damaged, again on a new one."""
        with self._lock:
            if self._closed:
                raise ScoreCacheError(
                    f"the score cache {self.path or 'in memory'} is closed; open another one"
                )
            try:
                try:
                    return operation(self._connection)
                except (sqlite3.OperationalError, sqlite3.ProgrammingError):
                    raise
                except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                    self._connection.close()
                    self._connection = self._open(damage=str(error))
                    return operation(self._connection)
            except sqlite3.Error as error:
                raise ScoreCacheError(
                    f"score cache {self.path}: cannot {what} it ({error}). {_mend(error)}, or choose another"
                    " place with --cache_dir; what was written before is kept."
                ) from error

    def _set_aside(self, path: Path, reason: str) -> None:
        if self._file != _inode(path):
            return  # another process has moved it aside already, and begun a new one
        aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
        path.rename(aside)
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        _log.warning("score cache %s is damaged (%s): moved to %s; a new one is begun", path, reason, aside)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time opens the file, or moves a damaged one aside; others would take its new one for it."""
    with path.with_name(f"{path.name}.lock").open("a") as stream:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _connect(path: str) -> sqlite3.Connection:
    """Open, check and set up.

    WAL with synchronous=NORMAL: a committed score outlives the process; only a power cut may take the
    last ones, and never the file's consistency.
    """
    connection = sqlite3.connect(path, timeout=_BUSY_MS / 1000, check_same_thread=False)
    try:
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, _FORMAT):
            raise _DamagedError(f"format {version}, expected {_FORMAT}")
        with connection:
            for table in _TABLES:
                connection.execute(table)
            connection.execute(f"PRAGMA user_version={_FORMAT}")
        connection.execute("SELECT key, value FROM scores LIMIT 1").fetchone()
        connection.execute("SELECT fingerprint, identity, canary FROM supervisors LIMIT 1").fetchone()
        connection.execute("SELECT other_names.identity, other_names.fingerprint FROM other_names LIMIT 1")
    except (sqlite3.Error, UnicodeDecodeError, _DamagedError) as error:
        connection.close()
        if isinstance(error, sqlite3.OperationalError) and not _tells_of_damage(error, path):
            raise
        raise _DamagedError(str(error)) from error
    return connection


def _code(error: sqlite3.Error) -> int | None:
    """SQLite's primary result code; what else it means is in the upper bytes."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _tells_of_damage(error: sqlite3.OperationalError, path: str) -> bool:
    """Whether a file that cannot be opened is at fault itself: a bad header, or tables that are not ours."""
    code = _code(error)
    if code == sqlite3.SQLITE_READONLY:  # what the header says, too, can make it so
        return os.access(path, os.W_OK) and os.access(Path(path).parent, os.W_OK)
    return code == sqlite3.SQLITE_ERROR


def _mend(error: sqlite3.Error) -> str:
    code = _code(error)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"End another process that has held it for {_BUSY_MS // 1000} s or longer"
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return "See whether its file and folder may be written"
    return "Free some space"


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _recognise(connection: sqlite3.Connection, identity: Identity) -> str:
    connection.execute("BEGIN IMMEDIATE")  # of two processes that meet a supervisor, one names it
    with connection:
        keys = [identity.key, *identity.other_keys]
        marks = ",".join("?" * len(keys))
        known = connection.execute(
            f"SELECT fingerprint, CAST(identity AS BLOB), canary FROM supervisors WHERE identity IN ({marks}) OR"
            f" fingerprint IN (SELECT n.fingerprint FROM other_names AS n WHERE n.identity IN ({marks}))"
            " ORDER BY supervisors.rowid",
            [*keys, *keys],
        ).fetchall()
        near = []
        for position, (fingerprint, name, value) in enumerate(known):
            canary = _unpack(name, value) if isinstance(name, bytes) else None
            if canary is None or canary.num_tokens != identity.canary.num_tokens:
                continue
            apart = difference(canary, identity.canary)
            if apart.is_noise:
                # Replicas that were met one by one have several: which is taken must not depend on noise.
                near.append((round(apart.mean, _DIGITS), position, str(fingerprint)))
        if near:
            found = min(near)[-1]
            _insert_names(connection, found, keys)
            return found
        _insert_supervisor(connection, identity.fingerprint, identity)
        return identity.fingerprint


def _insert_supervisor(connection: sqlite3.Connection, fingerprint: str, identity: Identity) -> None:
    canary = _pack(identity.key.encode(), identity.canary)
    connection.execute(
        "INSERT OR IGNORE INTO supervisors VALUES (?, ?, ?)", (fingerprint, identity.key, canary)
    )
    _insert_names(connection, fingerprint, [identity.key, *identity.other_keys])


def _insert_names(connection: sqlite3.Connection, fingerprint: str, keys: Sequence[str]) -> None:
    connection.executemany(
        "INSERT OR IGNORE INTO other_names VALUES (?, ?)", [(key, fingerprint) for key in keys]
    )


def _select(connection: sqlite3.Connection, keys: Sequence[bytes]) -> list[tuple[bytes, object]]:
    rows: list[tuple[bytes, object]] = []
    for start in range(0, len(keys), _KEYS_PER_QUERY):
        part = keys[start : start + _KEYS_PER_QUERY]
        marks = ",".join("?" * len(part))
        rows += connection.execute(f"SELECT key, value FROM scores WHERE key IN ({marks})", part)
    return rows


def _insert(connection: sqlite3.Connection, rows: Sequence[tuple[bytes, bytes]]) -> None:
    with connection:
        connection.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?)", rows)


def _delete(connection: sqlite3.Connection, keys: Sequence[bytes]) -> None:
    with connection:
        connection.executemany("DELETE FROM scores WHERE key = ?", [(key,) for key in keys])


def _count(connection: sqlite3.Connection) -> int:
    (count,) = connection.execute("SELECT count(*) FROM scores").fetchone()
    return int(count)


def _pack(key: bytes, score: Score) -> bytes:
    values = score.token_log_probs.astype(_FLOAT).tobytes()
    return values + zlib.crc32(key + values).to_bytes(4, "little")


def _unpack(key: bytes, value: object) -> Score | None:
    if not isinstance(value, bytes) or len(value) < 8 or len(value) % 4:
        return None
    values, checksum = value[:-4], value[-4:]
    if zlib.crc32(key + values).to_bytes(4, "little") != checksum:
        return None
    return Score(np.frombuffer(values, dtype=_FLOAT).astype(np.float32))
