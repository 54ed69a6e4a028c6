"""Unpacking an archive that someone else made: nothing outside its folder, nothing without end."""

from __future__ import annotations

import shutil
import stat
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from replug_client.errors import ArtefactError
from replug_client.progress import progress

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class UnzipLimits:
    """What an archive may be at most; beyond it, it is refused before a byte is written.

    Attributes:
        num_bytes: Of all its files, unpacked.
        ratio: Unpacked to packed. Text packs 3 to 10 times; bombs a thousand times and more.
        ratio_from: Archives that unpack to fewer bytes than this may have any ratio.
        files: Their number.
    """

    num_bytes: int = 64 << 30
    ratio: float = 200.0
    ratio_from: int = 64 << 20
    files: int = 100_000


def unzip(archive: Path, folder: Path, *, limits: UnzipLimits | None = None) -> Path:
    """Unpack a zip file as ``folder``, which then holds all of it, or is absent. A folder that is there stays as it is.

    Where everything lies in one top folder, that one is left out: its content becomes ``folder``'s.

    Raises:
        ArtefactError: not a zip file or a damaged one; a name that leads out of the folder, a link, an
            encrypted file, two files of one name; or more than ``limits``.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        with zipfile.ZipFile(archive) as packed:
            members = _members(archive, packed, limits or UnzipLimits(), shutil.disk_usage(temporary).free)
            total = sum(info.file_size for info in members.values())
            with progress(f"Unpacking {archive.name}", total, "B") as advance:
                for name, info in members.items():
                    advance(_extract(archive, packed, info, temporary / name))
        give_name(temporary, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ArtefactError(
            f"{archive}: cannot be unpacked ({error}). Remove it and fetch it again."
        ) from error
    except OSError as error:
        raise ArtefactError(f"{folder}: cannot be written ({error}). Free some space.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def give_name(temporary: Path, folder: Path) -> None:
    """Rename a finished folder to its name; where another process was faster, its folder stays.

    Raises:
        OSError: it cannot be renamed.
    """
    temporary.chmod(0o755)
    try:
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _members(
    archive: Path, packed: zipfile.ZipFile, limits: UnzipLimits, free: int
) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """The files to write and where, after every check that the archive's own list allows."""
    infos = [info for info in packed.infolist() if not info.is_dir() and not _is_clutter(info.filename)]
    total = sum(info.file_size for info in infos)
    size = max(1, archive.stat().st_size)
    if total > limits.num_bytes or len(infos) > limits.files:
        raise _refused(archive, f"{len(infos):,} files of {total:,} bytes, more than any data set has")
    if total > limits.ratio_from and total / size > limits.ratio:
        raise _refused(archive, f"{size:,} bytes would become {total:,}")
    if total > free:
        raise ArtefactError(f"{archive}: needs {total:,} bytes unpacked, {free:,} are free. Free some space.")
    found: dict[PurePosixPath, zipfile.ZipInfo] = {}
    for info in infos:
        name = _safe_name(archive, info)
        if name in found:
            raise _refused(archive, f"{info.filename!r} stands in it twice")
        found[name] = info
    tops = {name.parts[0] for name in found}
    if len(tops) == 1 and all(len(name.parts) > 1 for name in found):
        return {PurePosixPath(*name.parts[1:]): info for name, info in found.items()}
    return found


def _is_clutter(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return parts[:1] == ("__MACOSX",) or parts[-1:] == (".DS_Store",)


def _safe_name(archive: Path, info: zipfile.ZipInfo) -> PurePosixPath:
    name = PurePosixPath(info.filename.replace("\\", "/"))
    # The name before zipfile cut it at a NUL; ':' is a drive or a stream where Windows reads the folder.
    hostile = "\0" in info.orig_filename or ":" in info.filename
    if name.is_absolute() or not name.parts or ".." in name.parts or hostile:
        raise _refused(archive, f"the name {info.filename!r} leads out of its folder")
    if stat.S_ISLNK(info.external_attr >> 16):
        raise _refused(archive, f"{info.filename!r} is a link")
    if info.flag_bits & 1:
        raise _refused(archive, f"{info.filename!r} is encrypted")
    return name


def _extract(archive: Path, packed: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with packed.open(info) as source, path.open("xb") as target:
        while chunk := source.read(_CHUNK):
            written += len(chunk)
            if written > info.file_size:
                raise _refused(archive, f"{info.filename!r} is longer than the archive says")
            target.write(chunk)
    return written


def _refused(archive: Path, why: str) -> ArtefactError:
    return ArtefactError(
        f"{archive}: refused, {why}. Nothing was unpacked; check where the archive comes from."
    )
