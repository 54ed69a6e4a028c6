"""Both indexes keep the contract; FAISS's can be saved, and is not trusted because its file exists."""

from __future__ import annotations

import json
import logging
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from replug_client.errors import ArtefactError
from replug_client.retriever.index import ArrayIndex, FaissIndex, PassageIndex
from replug_client.retriever.shards import Shard
from tests.retriever.index_contract import PassageIndexContract, unit_vectors
from tests.retriever.shard_files import write_shard


class TestArrayIndex(PassageIndexContract):
    def make(
        self, folder: Path, vectors: npt.NDArray[np.float32], rows: npt.NDArray[np.int64] | None = None
    ) -> PassageIndex:
        return ArrayIndex(vectors, rows)

    def test_equal_scores_are_ordered_by_row(self) -> None:
        vectors = np.repeat(unit_vectors(1), 4, axis=0)
        assert ArrayIndex(vectors).search(vectors[:1], 3).rows.tolist() == [[0, 1, 2]]

    @pytest.mark.parametrize("rows", [[0, 1], [0, 2, 1], [0, 0, 1]])
    def test_rows_that_do_not_fit_the_vectors_are_refused(self, rows: list[int]) -> None:
        with pytest.raises(ArtefactError, match="corpus rows, ascending"):
            ArrayIndex(unit_vectors(3), np.array(rows))


class TestFaissIndexOfVectors(PassageIndexContract):
    def make(
        self, folder: Path, vectors: npt.NDArray[np.float32], rows: npt.NDArray[np.int64] | None = None
    ) -> PassageIndex:
        return FaissIndex.from_vectors(vectors, rows)


class TestFaissIndexOfShards(PassageIndexContract):
    """Every run of rows is a shard of its own, so that searches and look-ups go across shards."""

    def make(
        self, folder: Path, vectors: npt.NDArray[np.float32], rows: npt.NDArray[np.int64] | None = None
    ) -> PassageIndex:
        held = np.arange(len(vectors)) if rows is None else rows
        cuts = [0, *(np.flatnonzero(np.diff(held) > 1) + 1).tolist(), len(held)]
        if rows is None and len(held) > 2:
            cuts.insert(1, len(held) // 2)
        shards = [
            write_shard(folder / f"passages_{number:02d}", vectors[start:end], int(held[start]))
            for number, (start, end) in enumerate(pairwise(cuts))
            if end > start
        ]
        return FaissIndex.from_shards(shards)


class TestSavedFaissIndex(TestFaissIndexOfShards):
    """The same, from the file that an earlier index left."""

    def make(
        self, folder: Path, vectors: npt.NDArray[np.float32], rows: npt.NDArray[np.int64] | None = None
    ) -> PassageIndex:
        super().make(folder, vectors, rows)
        shards = [Shard(path) for path in sorted(folder.glob("passages_*"))]
        FaissIndex.from_shards(shards, save_or_load=True)
        return FaissIndex.from_shards(shards, save_or_load=True)


def test_float16_shards_are_searched_and_given_back_as_float32(tmp_path: Path) -> None:
    vectors = unit_vectors(5)
    index = FaissIndex.from_shards([write_shard(tmp_path / "passages_00", vectors, dtype="float16")])
    rounded = vectors.astype(np.float16).astype(np.float32)
    assert np.abs(rounded - vectors).max() > 0
    np.testing.assert_array_equal(index.vectors(np.arange(5)), rounded)
    result = index.search(vectors, 1)
    np.testing.assert_allclose(result.scores[:, 0], (vectors * rounded).sum(axis=1), atol=1e-6)


def said(caplog: pytest.LogCaptureFixture) -> str:
    text = caplog.text
    caplog.clear()
    return text


def test_a_saved_index_is_loaded_only_while_it_is_that_of_the_shards(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    vectors = unit_vectors(6)
    first = write_shard(tmp_path / "passages_00", vectors[:3])
    FaissIndex.from_shards([first], save_or_load=True)
    assert "3 passages saved" in said(caplog)
    FaissIndex.from_shards([first], save_or_load=True)
    assert "3 passages loaded" in said(caplog)

    second = write_shard(tmp_path / "passages_01", vectors[3:], 3)
    index = FaissIndex.from_shards([first, second], save_or_load=True)
    assert len(index) == 6 and index.search(vectors, 1).rows[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert "made of other shards" in said(caplog)

    for file in (tmp_path / "passages_01").iterdir():
        file.unlink()
    (tmp_path / "passages_01").rmdir()
    second = write_shard(tmp_path / "passages_01", -vectors[3:], 3, weights="a" * 64)
    index = FaissIndex.from_shards([first, second], save_or_load=True)
    assert index.search(-vectors[3:], 1).rows[:, 0].tolist() == [3, 4, 5]
    assert "made of other shards" in said(caplog)


@pytest.mark.parametrize("harm", ["cut", "changed", "missing", "manifest"])
def test_a_damaged_index_file_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    vectors = unit_vectors(6)
    shards = [write_shard(tmp_path / "passages_00", vectors)]
    FaissIndex.from_shards(shards, save_or_load=True)
    path = tmp_path / "index.faiss"
    content = path.read_bytes()
    if harm == "cut":
        path.write_bytes(content[:-10])
    elif harm == "changed":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 64]))
    elif harm == "missing":
        path.unlink()
    else:
        (tmp_path / "index.json").write_text("{")
    index = FaissIndex.from_shards(shards, save_or_load=True)
    assert "Making the index again" in caplog.text
    np.testing.assert_allclose(index.search(vectors, 1).scores, 1, atol=1e-6)
    assert path.read_bytes() == content
    assert set(json.loads((tmp_path / "index.json").read_text())["shards"]) == {"passages_00"}


def test_without_the_flag_nothing_is_written(tmp_path: Path) -> None:
    FaissIndex.from_shards([write_shard(tmp_path / "passages_00", unit_vectors(3))])
    assert [path.name for path in tmp_path.iterdir()] == ["passages_00"]


def test_no_shards_make_no_index() -> None:
    with pytest.raises(ArtefactError, match="at least one shard"):
        FaissIndex.from_shards([])
