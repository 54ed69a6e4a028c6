"""Conversion: the same bytes whether it is interrupted or not, and nothing taken for what it is not."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from replug_client.corpus.readers import open_source
from replug_client.corpus.sources import conversion as module
from replug_client.corpus.sources.conversion import Conversion, Converted, convert
from replug_client.corpus.sources.rows_out import FORMATS
from replug_client.errors import OptionError

HOSTILE = 'a "quote",\r\nand\rmore\ttabs \x00 \x1b[31m é 数 \U0001f600'


class StopError(Exception):
    pass


def convert_number(number: int) -> Converted:
    converted = Converted()
    if number % 7 == 3:
        converted.left_out["threes"] += 1
        return converted
    converted.add("passages", id=str(number), title=f"t{number}", text=f"{HOSTILE} {number}")
    if number % 5 == 0:
        converted.add("queries", id=f"q{number}", text=f"query {number}")
    return converted


def numbers(
    count: int, *, fail_at: int | None = None, limit: int | None = None, option: int = 0, workers: int = 0
) -> Conversion[int]:
    def items(skip: int) -> Iterator[int]:
        for number in range(skip, count):
            if number == fail_at:
                raise StopError
            yield number

    return Conversion(
        "numbers",
        {"option": option},
        [{"file": "numbers", "sha256": "0"}],
        {"passages": ("id", "title", "text"), "queries": ("id", "text")},
        items,
        convert_number,
        limits={} if limit is None else {"passages": limit},
        workers=workers,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("format_", FORMATS)
def test_every_format_gives_the_rows_back(tmp_path: Path, format_: str) -> None:
    report = convert(numbers(20), tmp_path, format_)
    assert report.rows == {"passages": 17, "queries": 3}
    assert report.left_out == {"threes": 3}
    found = list(open_source(report.files["passages"]))
    assert [passage.id for passage in found] == [str(n) for n in range(20) if n % 7 != 3]
    assert found[2].text == f"{HOSTILE} 2"
    assert found[2].title == "t2"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["manifest.json", f"passages.{format_}", f"queries.{format_}"]
    )


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("stops", [[0], [1], [11], [5, 6, 19]])
def test_an_interrupted_conversion_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_: str, stops: list[int]
) -> None:
    convert(numbers(20), tmp_path / "whole", format_)
    for every in (0.0, 1000.0):  # a checkpoint after each item, and none but the first
        monkeypatch.setattr(module, "_CHECKPOINT_SECONDS", every)
        folder = tmp_path / f"parts{every}"
        for stop in stops:
            with pytest.raises(StopError):
                convert(numbers(20, fail_at=stop), folder, format_)
            assert not (folder / "manifest.json").exists()
        convert(numbers(20), folder, format_)
        assert contents(folder) == contents(tmp_path / "whole")


def test_what_was_written_behind_the_last_checkpoint_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(numbers(20), tmp_path / "whole")
    monkeypatch.setattr(module, "_CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(StopError):
        convert(numbers(20, fail_at=10), tmp_path / "cut")
    with (tmp_path / "cut" / ".passages.csv.partial").open("ab") as stream:
        stream.write(b'10,t10,"half a ro')
    (tmp_path / "cut" / ".manifest.json.x1y2.tmp").write_text("of a process that was killed")
    begun: list[int] = []
    conversion = numbers(20)
    watched = Conversion(
        conversion.name,
        conversion.options,
        conversion.inputs,
        conversion.outputs,
        lambda skip: (begun.append(skip), conversion.items(skip))[1],
        conversion.convert,
    )
    convert(watched, tmp_path / "cut")
    assert begun == [10]  # what was converted is not converted again
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_stop_between_the_last_row_and_the_manifest_is_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_manifest(*_: object) -> None:
        raise StopError

    for format_ in FORMATS:
        convert(numbers(20), tmp_path / "whole" / format_, format_)
        with monkeypatch.context() as patch:
            patch.setattr(module, "_write_manifest", no_manifest)
            with pytest.raises(StopError):
                convert(numbers(20), tmp_path / "cut" / format_, format_)
        convert(numbers(20), tmp_path / "cut" / format_, format_)
        assert contents(tmp_path / "cut" / format_) == contents(tmp_path / "whole" / format_)


def test_a_finished_folder_is_left_as_it_is(tmp_path: Path) -> None:
    convert(numbers(20), tmp_path)
    before = (tmp_path / "passages.csv").stat().st_mtime_ns
    report = convert(numbers(20, fail_at=0), tmp_path)
    assert report.unchanged and report.rows == {"passages": 17, "queries": 3}
    assert (tmp_path / "passages.csv").stat().st_mtime_ns == before


def test_the_output_of_other_options_is_replaced_only_when_asked(tmp_path: Path) -> None:
    convert(numbers(20), tmp_path)
    with pytest.raises(OptionError, match=r"passages\.csv and .*manifest\.json.*--overwrite"):
        convert(numbers(20, option=1), tmp_path)
    assert convert(numbers(10, option=1), tmp_path, overwrite=True).rows["passages"] == 9
    (tmp_path / "passages.csv").write_text("id,text\n1,edited by hand\n")
    with pytest.raises(OptionError, match="--overwrite"):
        convert(numbers(10, option=1), tmp_path)
    assert "edited by hand" in (tmp_path / "passages.csv").read_text()


def test_the_beginning_of_another_conversion_is_not_gone_on_from(tmp_path: Path) -> None:
    with pytest.raises(StopError):
        convert(numbers(20, fail_at=5), tmp_path)
    with pytest.raises(OptionError, match="the beginning of a conversion with other options"):
        convert(numbers(20, option=1), tmp_path)


def test_somebodys_own_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "queries.csv").write_text("mine")
    with pytest.raises(OptionError, match=r"queries\.csv"):
        convert(numbers(20), tmp_path)
    assert (tmp_path / "queries.csv").read_text() == "mine"


def test_a_limit_ends_the_reading_and_says_so(tmp_path: Path) -> None:
    report = convert(numbers(10**9, limit=6), tmp_path)
    assert report.rows == {"passages": 6, "queries": 2}
    assert report.items == 7 and report.stopped_at == "passages"
    assert "the rest of the input was not read" in str(report)
    assert json.loads((tmp_path / "manifest.json").read_text())["stopped_at"] == "passages"


def test_workers_give_the_same_bytes(tmp_path: Path) -> None:
    convert(numbers(60), tmp_path / "one")
    convert(numbers(60, workers=2), tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_two_processes_do_not_write_to_one_folder(tmp_path: Path) -> None:
    with module._alone(tmp_path), pytest.raises(OptionError, match="another process"):
        convert(numbers(5), tmp_path)


def test_the_manifest_says_what_was_made_of_what(tmp_path: Path) -> None:
    convert(numbers(20), tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["made_by"] == "replug data numbers"
    assert manifest["inputs"] == [{"file": "numbers", "sha256": "0"}]
    assert manifest["options"] == {"option": 0} and manifest["items"] == 20
    assert manifest["left_out"] == {"threes": 3}
    from hashlib import sha256

    passages = (tmp_path / "passages.csv").read_bytes()
    assert manifest["outputs"]["passages.csv"] == {
        "rows": 17,
        "bytes": len(passages),
        "sha256": sha256(passages).hexdigest(),
    }


def test_a_field_beyond_pythons_csv_limit_comes_back(tmp_path: Path) -> None:
    huge = "x" * 300_000
    conversion = Conversion(
        "huge", {}, [], {"passages": ("id", "text")}, lambda _: iter([1]),
        lambda _: Converted([("passages", {"id": "1", "text": huge})]),
    )  # fmt: skip
    convert(conversion, tmp_path)
    csv.field_size_limit(131072)
    assert [passage.text for passage in open_source(tmp_path / "passages.csv")] == [huge]


def test_a_column_that_is_not_declared_is_a_mistake(tmp_path: Path) -> None:
    conversion = Conversion(
        "wrong", {}, [], {"passages": ("id", "text")}, lambda _: iter([1]),
        lambda _: Converted([("passages", {"id": "1", "texte": "x"})]),
    )  # fmt: skip
    with pytest.raises(ValueError, match="texte"):
        convert(conversion, tmp_path)


def test_parquet_of_many_rows_has_several_row_groups(tmp_path: Path) -> None:
    convert(numbers(10_000), tmp_path, "parquet")
    assert pq.ParquetFile(tmp_path / "passages.parquet").num_row_groups == 3
