"""Shards are found by folder or glob; unfinished, damaged or mismatched ones are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from replug_client.errors import ArtefactError, StaleArtefactError
from replug_client.retriever.shards import Shard, ShardManifest, open_shards
from tests.retriever.index_contract import unit_vectors
from tests.retriever.shard_files import write_shard


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three shards of three vectors, and an index file beside them."""
    vectors = unit_vectors(9)
    for number in range(3):
        write_shard(tmp_path / f"passages_{number:02d}", vectors[3 * number : 3 * number + 3], 3 * number)
    (tmp_path / "index.faiss").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    ("patterns", "numbers"),
    [
        (["passages_01"], [1]),
        (["passages_02", "passages_00"], [0, 2]),
        (["passages_*"], [0, 1, 2]),
        (["*"], [0, 1, 2]),
        (["passages_0[01]", "passages_01"], [0, 1]),
        (["."], [0, 1, 2]),
    ],
)
@pytest.mark.parametrize("absolute", [True, False])
def test_shards_are_named_by_folder_by_glob_or_by_what_holds_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch, patterns: list[str], numbers: list[int], absolute: bool
) -> None:
    monkeypatch.chdir(folder)
    shards = open_shards([str(folder / pattern) if absolute else pattern for pattern in patterns])
    assert [shard.manifest.start_row for shard in shards] == [3 * number for number in numbers]


def test_a_shard_gives_what_was_written(folder: Path) -> None:
    shard = Shard(folder / "passages_01")
    np.testing.assert_array_equal(shard.vectors, unit_vectors(9)[3:6])
    assert shard.ids() == ["p3", "p4", "p5"] and shard.rows.tolist() == [3, 4, 5] and len(shard) == 3
    assert isinstance(shard.vectors, np.memmap) and not shard.vectors.flags.writeable
    assert ShardManifest.read(shard.directory) == shard.manifest


@pytest.mark.parametrize("pattern", ["nothing_here", "nothing_*", "index.faiss"])
def test_a_pattern_that_matches_no_shard_is_an_error(folder: Path, pattern: str) -> None:
    with pytest.raises(ArtefactError, match="no shard of passage vectors there"):
        open_shards([folder / "passages_00", folder / pattern])


def test_no_pattern_at_all_is_an_error() -> None:
    with pytest.raises(ArtefactError, match="no shard of passage vectors was named"):
        open_shards([])


def test_an_unfinished_shard_is_an_error_that_says_how_far_it_got(folder: Path) -> None:
    (folder / "passages_01" / "manifest.json").rename(folder / "passages_01" / "progress.json")
    (folder / "passages_01" / "progress.json").write_text('{"done": 2, "rows": 3}')
    with pytest.raises(
        ArtefactError, match=r"passages_01: this shard is unfinished \(2 of 3 passages\).*goes on"
    ):
        open_shards([folder])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("cut", r"vectors\.npy: cannot be read"),
        ("missing", r"vectors\.npy: cannot be read"),
        ("shape", r"float32 of shape \(2, 8\), its manifest says float32 of shape \(3, 8\)"),
        ("dtype", r"float64 of shape"),
        ("pickle", r"vectors\.npy: cannot be read"),
        ("manifest", "cannot be read as JSON"),
        ("field", "a shard of layout 1 with fields"),
        ("layout", "a shard of layout 99"),
    ],
)
def test_a_damaged_shard_is_an_error(folder: Path, harm: str, message: str) -> None:
    directory = folder / "passages_00"
    vectors, manifest = directory / "vectors.npy", directory / "manifest.json"
    if harm == "cut":
        vectors.write_bytes(vectors.read_bytes()[:-4])
    elif harm == "missing":
        vectors.unlink()
    elif harm == "shape":
        np.save(vectors, unit_vectors(2))
    elif harm == "dtype":
        np.save(vectors, unit_vectors(3).astype(np.float64))
    elif harm == "pickle":
        np.save(vectors, np.array([{"a": 1}, None, None], dtype=object), allow_pickle=True)
    elif harm == "manifest":
        manifest.write_text("{")
    else:
        change = {"field": {"more": 1}, "layout": {"format": 99}}[harm]
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    with pytest.raises(ArtefactError, match=message):
        open_shards([directory])


def test_ids_of_another_number_are_an_error(folder: Path) -> None:
    ids = folder / "passages_00" / "ids.arrow"
    shard = Shard(folder / "passages_00")
    ids.write_bytes(ids.read_bytes()[:-20])
    with pytest.raises(ArtefactError, match=r"ids\.arrow: cannot be read"):
        shard.ids()


@pytest.mark.parametrize(
    ("start", "options", "message"),
    [
        (9, {"weights": "f" * 64}, "different encoders: weights"),
        (9, {"corpus": "f" * 64}, "vectors of different passages"),
        (7, {}, r"hold the same passages \(rows 7 to 8\)"),
    ],
)
def test_shards_that_do_not_belong_together_are_refused(
    folder: Path, start: int, options: dict[str, str], message: str
) -> None:
    write_shard(folder / "passages_03", unit_vectors(3), start, **options)  # type: ignore[arg-type]
    with pytest.raises(StaleArtefactError, match=message):
        open_shards([folder])
