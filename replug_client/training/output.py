"""The folder that a run writes to: what in it is the run's own, and that no second run is at work there."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from sentence_transformers import SentenceTransformer

from replug_client.artefacts import read_json
from replug_client.errors import ArtefactError, OptionError, TrainingDivergedError

logger = logging.getLogger(__name__)

RUN_NAME = "run.json"
STATE_NAME = "unfinished.json"
SUPERVISOR_NAME = "supervisor.json"
HELD_OUT_NAME = "held_out.jsonl"
FILES_KEY = "files"
"""Of ``run.json``: the names of what the retriever was saved as."""
_LOCK_NAME = ".lock"
_SAVING_NAME = ".saving"
_WORKING = (
    "checkpoints",
    "candidates",
    "refreshed",
    "tensorboard",
    "report.html",
    _SAVING_NAME,
    SUPERVISOR_NAME,
    HELD_OUT_NAME,
)
_BESIDE_MODULES = ("modules.json", "config_sentence_transformers.json", "router_config.json", "lexical.json")
# What a shell, or a scheduler, is told to write beside a run.
_LOGS = (".log", ".out", ".err")
_SHOWN = 5
_ATTEMPTS = 3
_BETWEEN_SECONDS = 0.1


def check_output(folder: Path, cache: Path) -> None:
    """Refuse a folder in which a run cannot write, or would write among the files of others. Changes nothing.

    Args:
        folder: The run's.
        cache: The cache's, which may lie in it.

    Raises:
        OptionError: says what stands there.
        ArtefactError: another run is at work there.
    """
    standing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not standing.is_dir():
        raise OptionError(f"--output_dir {folder}: {standing} is a file; expected a folder, or a new name")
    if not os.access(standing, os.W_OK | os.X_OK):
        raise OptionError(f"--output_dir {folder}: {standing} cannot be written to; give another folder")
    if not folder.exists():
        return
    if (folder / _LOCK_NAME).exists():
        with (folder / _LOCK_NAME).open() as stream:
            _lock(stream, folder, fcntl.LOCK_SH)  # several processes of one run look at once
    refuse_others(folder, cache)


def refuse_others(folder: Path, cache: Path) -> None:
    """Refuse a folder that holds files, and no run.

    Args:
        folder: The run's.
        cache: The cache's, which may lie in it.

    Raises:
        OptionError: names some of them.
    """
    inside = cache.resolve()
    there = [path for path in folder.iterdir() if not inside.is_relative_to(path.resolve())]
    others = [path.name for path in there if not path.name.startswith(".")]
    others = sorted(name for name in others if not name.endswith(_LOGS))
    if others and not any((folder / name).exists() for name in (RUN_NAME, STATE_NAME)):
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        raise OptionError(
            f"--output_dir {folder} holds files that are not of a run ({', '.join(others[:_SHOWN])}{more}), and the "
            "retriever's would come among them. Give a new folder, or an empty one."
        )


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other runs out of the folder; the lock goes with the process, however that ends.

    Raises:
        ArtefactError: one is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK_NAME).open("w") as stream:
        _lock(stream, folder, fcntl.LOCK_EX)
        yield


def clear(folder: Path) -> None:
    """Take a run away but for its state, which says whose the folder is; and leave all else that lies there."""
    own = list(_WORKING)
    if (folder / RUN_NAME).exists():
        made = read_json(folder / RUN_NAME, mend="Give another --output_dir.").get(FILES_KEY)
        made = _saved_before(folder) if made is None else made
        own += [name for name in made if isinstance(name, str) and _is_name(name)]
        own.append(RUN_NAME)  # last: without it the rest would be files of others
    for name in own:
        _remove(folder / name)
    if left := sorted(path.name for path in folder.iterdir() if path.name not in (_LOCK_NAME, STATE_NAME)):
        logger.info("%s: left as they are: %s", folder, ", ".join(left))


def _is_name(name: str) -> bool:
    return Path(name).name == name and name not in ("", ".", "..")


def _saved_before(folder: Path) -> list[str]:
    """What a version that kept no list had saved: the model's modules and what sentence-transformers puts beside."""
    try:
        modules = json.loads((folder / "modules.json").read_text("utf-8"))
        paths = [module["path"] for module in modules]
    except (OSError, ValueError, TypeError, KeyError):
        return []
    return [path for path in paths if path] + list(_BESIDE_MODULES)


def save(model: SentenceTransformer, folder: Path) -> Sequence[str]:
    """Save the model into the folder: beside it first, so that a full disk leaves no half of one.

    Returns:
        The names of its files and folders there.

    Raises:
        TrainingDivergedError: a weight is not finite.
    """
    broken = sum(not bool(weight.isfinite().all()) for weight in model.parameters())
    if broken:
        raise TrainingDivergedError(
            f"{broken} of the encoder's tensors hold NaN or infinity after the last step, so nothing is saved. Lower "
            "the learning rate"
        )
    beside = folder / _SAVING_NAME
    _remove(beside)
    model.save_pretrained(str(beside))
    names = sorted(path.name for path in beside.iterdir())
    for name in names:
        _remove(folder / name)
        (beside / name).rename(folder / name)
    beside.rmdir()
    return names


def _lock(stream: IO[str], folder: Path, kind: int) -> None:
    try:
        for _ in range(_ATTEMPTS - 1):  # another start, which only looks, holds it for a moment
            with suppress(BlockingIOError):
                return fcntl.flock(stream, kind | fcntl.LOCK_NB)
            time.sleep(_BETWEEN_SECONDS)
        fcntl.flock(stream, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ArtefactError(
            f"{folder}: another run is at work there. Wait for it, or give another --output_dir."
        ) from None
    except OSError as error:
        logger.warning(
            "%s: this file system has no locks (%s); see to it that no second run begins there", folder, error
        )


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
