"""Fetching one published file: goes on where it stopped, checks its hash, and is whole or absent."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from replug_client import __version__
from replug_client.artefacts import read_json, write_json
from replug_client.errors import ArtefactError, DownloadError
from replug_client.progress import progress

_LOG = logging.getLogger(__name__)
_CHUNK = 1 << 20
_ALGORITHMS = ("md5", "sha256")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True, slots=True)
class DownloadOptions:
    """How hard a file is tried for.

    Attributes:
        attempts: Requests in a row that bring not one byte before it is given up; at least 1.
        wait: Seconds before the second of them; doubled before each further one.
        timeout: Seconds without a byte after which a request counts as failed.
    """

    attempts: int = 4
    wait: float = 1.0
    timeout: float = 30.0


@dataclass(frozen=True, slots=True)
class Checksum:
    """A published hash: ``md5`` or ``sha256``, in hexadecimal.

    MD5 is what older data sets publish. It shows that a file is damaged or another version, not that nobody
    meant it to pass; so the SHA-256 of what was fetched is recorded, too, and later files are held to it.
    """

    algorithm: str
    value: str

    def __post_init__(self) -> None:
        if self.algorithm not in _ALGORITHMS:
            raise ValueError(f"checksum {self.algorithm!r}: expected one of {', '.join(_ALGORITHMS)}")

    def __str__(self) -> str:
        return f"{self.algorithm} {self.value}"


class _StartOverError(Exception):
    """What is on the disk does not fit what the server has; the file is fetched from its beginning."""


def fetch(
    url: str,
    path: Path,
    *,
    checksum: Checksum | None = None,
    mend: str = "",
    options: DownloadOptions | None = None,
) -> Path:
    """Make ``path`` the file at ``url``; a file that is there already is checked, and not fetched again.

    An interrupted download goes on where it stopped (HTTP ranges, with ``If-Range``, so that halves of two
    versions are never joined). The file gets its name only when its length and hash are right. Beside it,
    ``<name>.json`` records where it came from and its hashes: where no hash is published, the first download
    is believed, and later ones are held to it. A file that was put there by hand is taken if it passes.

    Args:
        url: http or https.
        path: Where the file shall be.
        checksum: Its published hash.
        mend: Put behind every error: what to do without a network.
        options: Retries and time-outs.

    Raises:
        DownloadError: it cannot be fetched, or has another hash than it should.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(path):
            if not path.exists():
                _download(url, path, options or DownloadOptions())
            _check(url, path, checksum)
    except OSError as error:
        raise DownloadError(f"{path}: cannot be written ({error}). Free some space.") from error
    except DownloadError as error:
        raise DownloadError(f"{error} {mend}".rstrip()) from error
    return path


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """A second process waits until the first has the file; the lock goes with the process."""
    with path.with_name(f".{path.name}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _check(url: str, path: Path, checksum: Checksum | None) -> None:
    """Hold a whole file to its published hash and to the one recorded when it was first fetched."""
    record_path = path.with_name(f"{path.name}.json")
    record = _read(record_path)
    found = _hashes(path)
    wanted = [checksum] if checksum else []
    if record.get("url") == url:
        wanted += [Checksum(name, str(record[name])) for name in _ALGORITHMS if name in record]
    for one in wanted:
        if found[one.algorithm] != one.value.lower():
            kept = path.with_name(f"{path.name}.wrong")
            path.replace(kept)
            raise DownloadError(
                f"{url}: {one.algorithm} {found[one.algorithm]}, expected {one.value}: damaged, or not the file "
                f"that was published. It was kept as {kept}; run the command again to fetch it anew. If a new "
                f"version was published, remove {record_path}."
            )
    if record.get("url") != url:
        if not wanted:
            _LOG.warning(
                "%s: no hash is published; recorded sha256 %s, to check later ones", url, found["sha256"]
            )
        write_json(record_path, {"url": url, "bytes": path.stat().st_size, **found})


def _hashes(path: Path) -> dict[str, str]:
    digests = {name: hashlib.new(name, usedforsecurity=False) for name in _ALGORITHMS}
    with (
        path.open("rb") as stream,
        progress(f"Checking {path.name}", path.stat().st_size, "B") as advance,
    ):
        while chunk := stream.read(_CHUNK):
            for digest in digests.values():
                digest.update(chunk)
            advance(len(chunk))
    return {name: digest.hexdigest() for name, digest in digests.items()}


def _read(path: Path) -> dict[str, Any]:
    """A record, or nothing where there is none that can be read: it is then made again."""
    try:
        return read_json(path, mend="")
    except ArtefactError:
        return {}


def _download(url: str, path: Path, options: DownloadOptions) -> None:
    part = path.with_name(f".{path.name}.part")
    failures = 0
    headers = {"User-Agent": f"replug/{__version__}", "Accept-Encoding": "identity"}
    with httpx2.Client(timeout=options.timeout, follow_redirects=True, headers=headers) as client:
        while True:
            before = _size(part)
            try:
                _request(client, url, part)
                break
            except _StartOverError as error:
                _LOG.info("%s: %s; fetching it from the beginning", url, error)
                _forget(part)
                problem: Exception = error
            except (httpx2.TransportError, DownloadError) as error:
                problem = error
                if isinstance(error, DownloadError) and not isinstance(error, _TransientError):
                    raise
            failures = 0 if _size(part) > before else failures + 1
            if failures >= options.attempts:
                raise DownloadError(f"{url}: cannot be fetched ({_said(problem)}).") from problem
            wait = options.wait * 2 ** max(failures - 1, 0)
            _LOG.warning("%s: %s; going on in %.1f s", url, _said(problem), wait)
            time.sleep(wait)
    part.replace(path)
    _forget(part)


class _TransientError(DownloadError):
    """An answer that may be another one next time."""


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _state(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _state(part).unlink(missing_ok=True)


def _request(client: httpx2.Client, url: str, part: Path) -> None:
    """One request for what is missing; on return ``part`` is the whole file.

    Raises:
        _StartOverError: what is there cannot be gone on with.
        _TransientError, DownloadError, httpx2.TransportError: it failed.
    """
    state = _read(_state(part))
    have = _size(part)
    # Without a validator nobody can say whether the rest belongs to what is there.
    if have and (state.get("url") != url or not state.get("validator")):
        _forget(part)
        have = 0
    headers = {"Range": f"bytes={have}-", "If-Range": state["validator"]} if have else {}
    with client.stream("GET", url, headers=headers) as answer:
        total = _total(answer, url, have)
        start = have if answer.status_code == 206 else 0
        if start == 0:
            write_json(_state(part), {"url": url, "validator": _validator(answer)})
        with (
            part.open("r+b" if start else "wb") as stream,
            progress(_name(url), total, "B", start) as advance,
        ):
            stream.seek(start)
            for chunk in answer.iter_raw():
                stream.write(chunk)
                advance(len(chunk))
            stream.flush()
            os.fsync(stream.fileno())
    if total is not None and _size(part) < total:
        raise _TransientError(f"{url}: the connection ended after {_size(part):,} of {total:,} bytes.")
    if total is not None and _size(part) > total:
        raise _StartOverError(f"{_size(part):,} bytes, expected {total:,}")


def _total(answer: httpx2.Response, url: str, have: int) -> int | None:
    """Length of the whole file; None where the server does not say. Every status but 200 and 206 is an error."""
    status = answer.status_code
    if status == 200:
        length = answer.headers.get("Content-Length")
        return None if length is None else int(length)
    if status == 206:
        found = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if found is None or int(found[1]) != have:
            raise _StartOverError(f"asked for bytes from {have}, the server sent {found and found[0]!r}")
        return None if found[2] == "*" else int(found[2])
    if status == 416:
        raise _StartOverError(f"the server has no bytes from {have} on")
    kind = _TransientError if status in _TRANSIENT else DownloadError
    raise kind(f"{url}: the server answers {status} {answer.reason_phrase}.")


def _validator(answer: httpx2.Response) -> str | None:
    """What tells one version of the file from another: a strong ETag, else its date."""
    etag = answer.headers.get("ETag")
    if etag and not etag.startswith("W/"):
        return str(etag)
    date = answer.headers.get("Last-Modified")
    return None if date is None else str(date)


def _name(url: str) -> str:
    return f"Fetching {url.rsplit('/', 1)[-1]}"
