"""Data sets by name: where the hub cannot be reached, and where it does not have what is asked for."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from replug_client.corpus.sources.hub import HubData
from replug_client.errors import CorpusError


def test_a_hub_that_does_not_answer_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CorpusError, match=r"owner/name: no such file or folder here, .* Put it there\."):
        HubData("owner/name", None, "train").pinned("Put it there.")


def test_a_split_that_is_not_there_and_a_file_that_is_damaged_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "train-00000-of-00001.parquet")
    with pytest.raises(CorpusError, match=r"default, test.*Check configuration and split"):
        list(HubData(str(tmp_path), None, "test").rows())
    (tmp_path / "train-00000-of-00001.parquet").write_bytes(b"PAR1 no parquet PAR1")
    with pytest.raises(CorpusError, match="default, train"):
        list(HubData(str(tmp_path), None, "train").rows())


def test_the_hashes_of_a_folders_files_are_its_description(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "train-00000-of-00001.parquet")
    data = HubData(str(tmp_path), None, "train")
    assert data.pinned("") is data
    (file,) = data.describe()["files"]
    assert file["file"] == "train-00000-of-00001.parquet" and len(file["sha256"]) == 64
    assert [(str(place), row) for place, row in data.rows(1)] == [
        (f"{tmp_path} (default, train), record 2", {"text": "b"})
    ]
