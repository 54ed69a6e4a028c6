"""Rows of a data set through `datasets`: a name on the hub, or a local folder of the same form; streamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replug_client.corpus.rows import Place
from replug_client.errors import CorpusError
from replug_client.progress import progress

_TIMEOUT_SECONDS = 15
# What a hub name that cannot be reached, found or read comes out as; each library has its own.
_FAILURES = (OSError, ValueError, RuntimeError)


@dataclass(frozen=True, slots=True)
class HubData:
    """A data set by its name on the hub, or by its folder.

    Attributes:
        name: ``owner/name``, or a folder of Parquet, JSON or CSV files.
        config: Which of its configurations, for example ``20231101.en``; None for the only one.
        split: ``train``, ``validation``, ``test``.
        revision: The commit that is read; found by :meth:`pinned`.
    """

    name: str
    config: str | None
    split: str
    revision: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether it is a folder here."""
        return Path(self.name).is_dir()

    def pinned(self, put_there: str) -> HubData:
        """The same at the commit that its name stands for now, so that going on later reads the same rows.

        Raises:
            CorpusError: the hub cannot be reached, or does not know the name; ``put_there`` is the advice.
        """
        if self.is_local:
            return self
        if self.name.startswith((".", "/", "~")) or self.name.count("/") > 1:
            raise CorpusError(f"{self.name}: no such file or folder. Check the path.")
        from huggingface_hub import HfApi, constants

        try:
            if constants.HF_HUB_OFFLINE:
                raise OSError("HF_HUB_OFFLINE is set")
            found = HfApi().dataset_info(self.name, timeout=_TIMEOUT_SECONDS).sha
        except _FAILURES as error:
            raise self._error(error, put_there) from error
        except Exception as error:
            # Its HTTP library's own, which is another one in other versions: requests, httpx, httpx2.
            if not type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3")):
                raise
            raise self._error(error, put_there) from error
        return HubData(self.name, self.config, self.split, found)

    def describe(self) -> dict[str, Any]:
        """What the manifest says of it: for a folder, its files with their hashes."""
        described: dict[str, Any] = {"data_set": self.name, "config": self.config, "split": self.split}
        if not self.is_local:
            return {**described, "revision": self.revision}
        from replug_client.corpus.sources.inputs import hashed

        folder = Path(self.name)
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
        return {**described, "data_set": folder.name, "files": hashed(files)}

    def rows(self, skip: int = 0) -> Iterator[tuple[Place, dict[str, Any]]]:
        """The rows from the ``skip``-th on, as ``datasets`` gives them, each with its place.

        Raises:
            CorpusError: there is no such configuration or split, or the rows cannot be read.
        """
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        from datasets import load_dataset

        where = f"{self.name} ({self.config or 'default'}, {self.split})"
        record = skip
        try:
            data = load_dataset(
                self.name, self.config, split=self.split, revision=self.revision, streaming=True
            )
            with progress(f"Reading {self.name}", None, "rows") as advance:
                for row in data.skip(skip) if skip else data:
                    record += 1
                    yield Place(where, record), dict(row)
                    advance(1)
        except CorpusError:
            raise
        except (*_FAILURES, KeyError) as error:
            raise CorpusError(
                f"{where}, after row {record}: {type(error).__name__}: {_first_line(error)}. "
                "Check configuration and split; what was converted so far is kept, and the same command goes on."
            ) from error

    def _error(self, error: Exception, put_there: str) -> CorpusError:
        return CorpusError(
            f"{self.name}: no such file or folder here, and the hub does not give it "
            f"({type(error).__name__}: {_first_line(error)}). {put_there}"
        )


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0].rstrip(".")
