"""`run.json`: everything that made a tuned retriever, beside it. Written last, so its existence means it is whole."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from replug_client import __version__
from replug_client.artefacts import atomic_write, plain, read_json, sha256_file, write_json
from replug_client.corpus.records import Example
from replug_client.errors import ArtefactError, OptionError
from replug_client.supervisor.canary import Identity, difference
from replug_client.supervisor.protocol import Score
from replug_client.training.modes import ModeOptions
from replug_client.training.options import TrainOptions
from replug_client.training.output import (
    HELD_OUT_NAME,
    RUN_NAME,
    STATE_NAME,
    SUPERVISOR_NAME,
    check_output,
    clear,
    refuse_others,
)

COMPLETE_NAME = "complete"
_PACKAGES = (
    "torch",
    "transformers",
    "sentence-transformers",
    "faiss-cpu",
    "datasets",
    "numpy",
    "bm25s",
    "openai",
)
# Options that a resumed run may change: they say where and how, not what is computed.
_FREE = (
    "place",
    *(f"supervisor.{name}" for name in ("base_url", "client", "timeout", "cache_dir", "apart")),
)


def versions() -> dict[str, str]:
    """Versions of replug, Python and the packages that decide the numbers."""
    found = {"replug": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def what_decides(options: TrainOptions, hashes: dict[str, str]) -> dict[str, Any]:
    """Options and data hashes that a resumed run must share with the run that it goes on with."""
    return {"options": _without_free(plain(options)), "hashes": hashes}


def check_finished(options: TrainOptions, hashes: dict[str, str]) -> bool:
    """Whether ``output_dir`` holds the finished run that is asked for with ``--resume``.

    Raises:
        ArtefactError: a finished run is there, of other options or other data.
    """
    folder = options.place.output_dir
    if not options.place.resume or not (folder / RUN_NAME).exists():
        return False
    run = read_json(folder / RUN_NAME, mend="Begin anew with --overwrite.")
    earlier = {"options": _without_free(run.get("options", {})), "hashes": run.get("hashes", {})}
    _check_same(earlier, what_decides(options, hashes), folder)
    return True


def _without_free(decided: dict[str, Any]) -> dict[str, Any]:
    decided = json.loads(json.dumps(decided))
    for name in _FREE:
        *parents, last = name.split(".")
        inside = decided
        for parent in parents:
            inside = inside.get(parent, {})
        inside.pop(last, None)
    return decided


def data_hashes(options: TrainOptions, corpus_sha256: str) -> dict[str, str]:
    """SHA-256 of the corpus' content and of each document file."""
    files = (*options.data.data, *options.data.validation_data)
    return {"corpus": corpus_sha256, **{str(path): sha256_file(path) for path in files}}


def starting_point(options: TrainOptions, hashes: dict[str, str]) -> Path | None:
    """Look at ``output_dir`` and say where to go on from; nothing is changed there.

    Returns:
        The last checkpoint of the unfinished run, or None to begin anew.

    Raises:
        OptionError: there is a run already, and neither ``--resume`` nor ``--overwrite`` was given; or the
            base encoder itself lies there, or files of others.
        ArtefactError: ``--resume`` of a run that was asked for something else.
    """
    folder, state = options.place.output_dir, options.place.output_dir / STATE_NAME
    if folder.resolve() == Path(options.encoder.model_name_or_path).resolve():
        raise OptionError(f"--output_dir {folder} is the base encoder's own folder; give another one")
    check_output(folder, options.place.cache_dir)
    if options.place.resume and state.exists():
        earlier = read_json(state, mend="Begin anew with --overwrite.")
        _check_same(earlier, what_decides(options, hashes), folder)
        return last_checkpoint(folder)
    if options.place.overwrite:
        return None
    if state.exists() and last_checkpoint(folder) is not None:
        raise OptionError(
            f"{folder} holds an unfinished run: go on with --resume, or begin anew with --overwrite"
        )
    if (folder / RUN_NAME).exists():
        raise OptionError(
            f"{folder} holds a finished run: give another --output_dir, or throw it away with --overwrite"
        )
    return None


def begin(options: TrainOptions, hashes: dict[str, str]) -> None:
    """Ready ``output_dir`` once everything else is: what fails before this leaves an earlier run as it was."""
    folder, state = options.place.output_dir, options.place.output_dir / STATE_NAME
    resumed = options.place.resume and state.exists()
    # A run that ended before its first checkpoint goes too: nothing is lost, the scores are in their cache.
    anew = (options.place.overwrite or state.exists()) and not resumed and folder.exists()
    if anew:
        refuse_others(folder, options.place.cache_dir)
    # Before anything is taken away: a folder that is cut short in the midst of that is still a run's.
    write_json(state, what_decides(options, hashes))
    if anew:
        clear(folder)


def keep_supervisor(folder: Path, identity: Identity | None) -> None:
    """Write what the supervisor is and answers to the canary prompt, for a run that goes on later."""
    if identity is None:
        return
    parts, canary = dict(identity.parts), identity.canary.token_log_probs.tolist()
    write_json(folder / SUPERVISOR_NAME, {"parts": parts, "canary": canary})


def check_supervisor(folder: Path, identity: Identity | None) -> None:
    """A run that goes on must meet the model that it began with, under whatever name.

    Half of a run under one model and half under another would be a retriever tuned to neither.

    Raises:
        ArtefactError: its canary differs by more than noise.
    """
    path = folder / SUPERVISOR_NAME
    if identity is None or not path.exists():
        return
    kept = read_json(path, mend="Begin anew with --overwrite.")
    apart = difference(Score(np.array(kept["canary"], dtype=np.float32)), identity.canary)
    if not apart.is_noise:
        raise ArtefactError(
            f"--resume: the run in {folder} was begun with another supervisor than the one that answers now: their"
            f" scores of the canary prompt differ by {apart}. Serve the model of {kept['parts']} again, or begin"
            " anew with --overwrite."
        )


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; one that a kill cut short lacks its last file and is passed over."""
    found = (folder / "checkpoints").glob("checkpoint-*")
    whole = [
        path for path in found if (path / "trainer_state.json").exists() and (path / COMPLETE_NAME).exists()
    ]
    return max(whole, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


def finish(folder: Path, record: dict[str, Any], held_out: Sequence[Example]) -> None:
    """Write the held-out examples and then the record; the run is finished with that."""
    with atomic_write(folder / HELD_OUT_NAME, "w") as stream:
        for example in held_out:
            line = {
                "document_id": example.document_id,
                "query": example.query,
                "continuation": example.continuation,
            }
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
    write_json(folder / RUN_NAME, record)
    (folder / STATE_NAME).unlink(missing_ok=True)


def _check_same(earlier: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    # An earlier version had fewer options: what it did is what their defaults do.
    options = earlier.get("options", {})
    modes = plain(ModeOptions()) | options.get("modes", {})
    differences = list(_differences(earlier | {"options": options | {"modes": modes}}, now, ""))
    if differences:
        raise ArtefactError(
            f"--resume: the run in {folder} was asked for something else: {'; '.join(differences)}. "
            "Give the same options again, or begin anew with --overwrite."
        )


def _differences(earlier: Any, now: Any, name: str) -> list[str]:
    if isinstance(earlier, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*earlier, *now])
        return [
            line for key in keys for line in _differences(earlier.get(key), now.get(key), f"{name}.{key}")
        ]
    return [] if earlier == now else [f"{name.lstrip('.')} was {earlier!r}, now {now!r}"]
