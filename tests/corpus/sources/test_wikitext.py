"""WikiText: titles found, spaces undone, splits kept apart; from files, and through `datasets`."""

from __future__ import annotations

import bz2
import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from replug_client.corpus.readers import open_source, read_documents
from replug_client.corpus.sources.conversion import convert
from replug_client.corpus.sources.pieces import PieceOptions
from replug_client.corpus.sources.wikitext import WikitextOptions, conversion, detokenise
from replug_client.errors import CorpusError

TRAIN = """
 = Robert <unk> =

 Robert <unk> is an actor . He had a " guest star " role in 2 @,@ 000 .
 A formula :
 = x = y =
 ends here .

 = = Career = =

 He didn 't act .

 = Empty =

 = Second Hall =

 A 10 @-@ seat hall ( 1 @.@ 5 m ) .
"""
TEST = """
 = Only Test =

 one two three
"""


def write_files(folder: Path) -> Path:
    folder.mkdir()
    (folder / "wiki.train.raw").write_text(TRAIN)
    (folder / "wiki.test.raw").write_text(TEST)
    (folder / "wiki.valid.raw").write_text(TEST.replace("Only Test", "Only Valid"))
    return folder


def options(**changes: object) -> WikitextOptions:
    return WikitextOptions(**{"pieces": PieceOptions(length=8), "training_every": 2, **changes})  # type: ignore[arg-type]


def make(
    source: Path, output: Path, splits: tuple[str, ...] = ("train", "validation", "test"), **changes: object
):  # type: ignore[no-untyped-def]
    return convert(conversion(str(source), options(**changes), None, "wikitext-2-raw-v1", splits), output)


def test_a_folder_of_files_becomes_passages_and_documents(tmp_path: Path) -> None:
    report = make(write_files(tmp_path / "in"), tmp_path / "out")
    passages = list(open_source(report.files["passages"]))
    # Articles 0 and 2 of three; 1, every second, would be trained on, but is empty.
    assert [(p.id, p.title, p.text) for p in passages] == [
        ("train-0#0", "Robert <unk>", "Robert <unk> is an actor. He had a"),
        ("train-0#1", "Robert <unk>", '"guest star" role in 2,000.\nA formula:\n='),
        ("train-0#2", "Robert <unk>", "x = y =\nends here.\n== Career"),
        ("train-0#3", "Robert <unk>", "==\nHe didn't act."),
        ("train-2#0", "Second Hall", "A 10-seat hall (1.5 m)."),
    ]
    assert report.left_out == {"articles without text": 1}
    (test,) = read_documents(report.files["test"])
    assert (test.id, test.text, test.extra["title"]) == ("test-0", "one two three", "Only Test")
    (valid,) = read_documents(report.files["validation"])
    assert valid.extra["title"] == "Only Valid"


def test_all_articles_may_be_documents_with_their_spaces_left(tmp_path: Path) -> None:
    report = make(
        write_files(tmp_path / "in"), tmp_path / "out", ("train",), training_every=1, detokenise=False
    )
    first, second = read_documents(report.files["train"])
    assert first.text.startswith('Robert <unk> is an actor . He had a " guest star " role in 2 @,@ 000 .\n')
    assert "= = Career = =" in first.text
    assert second.text == "A 10 @-@ seat hall ( 1 @.@ 5 m ) ."
    assert report.rows == {"passages": 0, "train": 2}


def test_short_articles_and_short_ends_are_counted(tmp_path: Path) -> None:
    source = write_files(tmp_path / "in")
    report = make(source, tmp_path / "out", min_document_words=4)
    assert report.left_out == {"articles without text": 1, "articles below --min_document_words": 2}
    cut = convert(
        conversion(str(source), WikitextOptions(PieceOptions(8, 0, 6), 0), None, "", ("train",)),
        tmp_path / "cut",
    )
    # Article 0 has 28 words: 8 + 8 + 8 + 4; article 2 has 5.
    assert cut.left_out == {"articles without text": 1, "ends of articles below --min_passage_length": 2}
    assert cut.rows["passages"] == 3


@pytest.mark.parametrize("suffix", [".gz", ".bz2"])
def test_a_packed_file_gives_what_the_plain_one_gives(tmp_path: Path, suffix: str) -> None:
    plain = make(write_files(tmp_path / "in") / "wiki.train.raw", tmp_path / "plain")
    packed = tmp_path / f"wiki.train.tokens{suffix}"
    packed.write_bytes({".gz": gzip, ".bz2": bz2}[suffix].compress(TRAIN.encode()))  # type: ignore[attr-defined]
    report = make(packed, tmp_path / "packed")
    assert report.files["passages"].read_bytes() == plain.files["passages"].read_bytes()
    assert set(report.rows) == {"passages", "train"}  # its name says which split it is


def test_the_hubs_parquet_gives_what_the_files_give(tmp_path: Path) -> None:
    plain = make(write_files(tmp_path / "in"), tmp_path / "plain")
    hub = tmp_path / "hub"
    hub.mkdir()
    texts = {"train": TRAIN, "validation": TEST.replace("Only Test", "Only Valid"), "test": TEST}
    for split, text in texts.items():
        # The hub's form: a row a line, the line end in it, blank lines empty.
        rows = [line + "\n" if line.strip() else "" for line in text.split("\n")]
        pq.write_table(pa.table({"text": rows}), hub / f"{split}-00000-of-00001.parquet")
    report = make(hub, tmp_path / "out")
    for name in ("passages", "train", "validation", "test"):
        assert report.files[name].read_bytes() == plain.files[name].read_bytes()


def test_another_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "wiki.train.txt").write_text("\nJust text.\n")
    with pytest.raises(CorpusError, match=r"wiki\.train\.txt, line 2.*replug data folder"):
        make(tmp_path / "wiki.train.txt", tmp_path / "out")


def test_bad_bytes_name_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "wiki.train.raw").write_bytes(b"\n = A =\n\n one\n caf\xe9\n")
    with pytest.raises(CorpusError, match=r"wiki\.train\.raw, line 5.*byte 0xe9.*not UTF-8"):
        make(tmp_path / "wiki.train.raw", tmp_path / "out")


def test_a_cut_off_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "wiki.train.raw.gz").write_bytes(gzip.compress(TRAIN.encode() * 50)[:-20])
    with pytest.raises(CorpusError, match=r"wiki\.train\.raw\.gz: cut off"):
        make(tmp_path / "wiki.train.raw.gz", tmp_path / "out")


def test_offline_a_hub_name_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"Salesforce/wikitext: no such file.*--input.*hf download"):
        make(Path("Salesforce/wikitext"), tmp_path / "out")


@pytest.mark.parametrize(
    ("tokenised", "expected"),
    [
        ("a 10 @,@ 000 @-@ seat hall , 1 @.@ 5 m .", "a 10,000-seat hall, 1.5 m."),
        ("He said : \" no , thanks ! \" , and left .", 'He said: "no, thanks!", and left.'),
        ("Robert 's dog didn 't bark ; I 'm sure .", "Robert's dog didn't bark; I'm sure."),
        ("the players ' rights", "the players' rights"),
        ("he says ' hello ' to us", "he says ' hello ' to us"),
        ("a ( small ) [ thing ] , $ 5 or 20 %", "a (small) [thing], $5 or 20%"),
        ("= = = Early life = = =", "=== Early life ==="),
        ("12 ° C in <unk>", "12 °C in <unk>"),
    ],
)  # fmt: skip
def test_spaces_of_the_tokeniser_are_undone(tokenised: str, expected: str) -> None:
    assert detokenise(tokenised) == expected
