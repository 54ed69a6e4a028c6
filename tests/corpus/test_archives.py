from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest

from replug_client.corpus.archives import UnzipLimits, unzip
from replug_client.errors import ArtefactError


def pack(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return path


def test_the_single_top_folder_becomes_the_folder(tmp_path: Path) -> None:
    archive = pack(
        tmp_path / "a.zip",
        {
            "scifact/corpus.jsonl": b"{}",
            "scifact/qrels/test.tsv": b"x",
            "__MACOSX/scifact/._corpus.jsonl": b"",
        },
    )
    folder = unzip(archive, tmp_path / "out")
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "corpus.jsonl",
        "qrels/test.tsv",
    ]


def test_files_beside_each_other_stay_where_they_are(tmp_path: Path) -> None:
    folder = unzip(pack(tmp_path / "a.zip", {"one": b"1", "sub/two": b"2"}), tmp_path / "out")
    assert (folder / "one").read_bytes() == b"1" and (folder / "sub/two").read_bytes() == b"2"


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/evil", "..\\evil", "C:evil", "a/../evil"])
def test_a_name_that_leads_out_is_refused_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    archive = pack(tmp_path / "a.zip", {"fine": b"x", name: b"evil"})
    with pytest.raises(ArtefactError, match="leads out of its folder"):
        unzip(archive, inside / "out")
    assert list(inside.iterdir()) == []
    assert not (tmp_path / "evil").exists()


def test_a_link_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr(link, "/etc/passwd")
    with pytest.raises(ArtefactError, match="is a link"):
        unzip(tmp_path / "a.zip", tmp_path / "out")


def test_a_bomb_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", {"zeros": bytes(5_000_000)})
    with pytest.raises(ArtefactError, match="would become 5,000,000"):
        unzip(archive, tmp_path / "out", limits=UnzipLimits(ratio_from=1_000_000))
    with pytest.raises(ArtefactError, match="more than any data set has"):
        unzip(archive, tmp_path / "out", limits=UnzipLimits(num_bytes=1_000_000))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip"]


def test_an_archive_that_lies_about_a_length_is_refused(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", {"zeros": bytes(1000)})
    raw = bytearray(archive.read_bytes())
    central = raw.index(b"PK\x01\x02")
    raw[central + 24 : central + 28] = (10).to_bytes(4, "little")
    archive.write_bytes(raw)
    with pytest.raises(ArtefactError):
        unzip(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("one", "1")
        packed.writestr("one", "2")
    with pytest.raises(ArtefactError, match="stands in it twice"):
        unzip(tmp_path / "a.zip", tmp_path / "out")


def test_a_damaged_archive_leaves_nothing(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", {"text": bytes(range(256)) * 100})
    raw = bytearray(archive.read_bytes())
    raw[60:70] = b"\xff" * 10
    archive.write_bytes(raw)
    with pytest.raises(ArtefactError, match="cannot be unpacked"):
        unzip(archive, tmp_path / "out")
    (tmp_path / "b.zip").write_bytes(b"<html>not found</html>")
    with pytest.raises(ArtefactError, match="cannot be unpacked"):
        unzip(tmp_path / "b.zip", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "b.zip"]


def test_where_another_process_was_faster_its_folder_stays(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", {"one": b"1"})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "theirs").write_text("x")
    assert unzip(archive, tmp_path / "out") == tmp_path / "out"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["theirs"]
