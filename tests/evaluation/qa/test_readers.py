"""Every published form of a question set, and what is said of those that are damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from replug_client.errors import CorpusError
from replug_client.evaluation.qa.questions import Question, question_word
from replug_client.evaluation.qa.readers import read_questions


def written(folder: Path, name: str, content: str | bytes | list[Any] | dict[str, Any]) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list | dict):
        lines = path.suffix == ".jsonl"
        content = "".join(json.dumps(row) + "\n" for row in content) if lines else json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def one(folder: Path, record: dict[str, Any]) -> Question:
    (question,) = read_questions([written(folder, "one.json", [record])])
    return question


@pytest.mark.parametrize("name", ["q.json", "q.jsonl", "q.csv", "q.tsv"])
def test_every_format_gives_the_same_questions(tmp_path: Path, name: str) -> None:
    records = [
        {"id": "007", "question": "Who, when?", "answers": ["Bond, James", "007"], "type": "spy"},
        {"id": "8", "question": "Where is it?", "answers": ["here"], "type": ""},
    ]
    content: Any = records
    if name.endswith("sv"):
        comma = "," if name.endswith(".csv") else "\t"
        rows = [["id", "question", "answers", "type"]]
        rows += [[r["id"], r["question"], json.dumps(r["answers"]), r["type"]] for r in records]  # type: ignore[list-item]
        quoted = [comma.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
        content = "\ufeff" + "\r\n".join(quoted) + "\r\n"
    assert read_questions([written(tmp_path, name, content)]) == [
        Question("007", "Who, when?", ("Bond, James", "007"), type="spy"),
        Question("8", "Where is it?", ("here",), type="where"),
    ]


def test_without_an_id_the_file_and_the_record_name_a_question(tmp_path: Path) -> None:
    path = written(tmp_path, "q.jsonl", '\n{"question": "Why?", "answer": 42}\n')
    assert read_questions([path]) == [Question(f"{path}#1", "Why?", ("42",), type="why")]


def test_mmlus_folder_gives_the_subject_of_each_file(tmp_path: Path) -> None:
    written(tmp_path, "test/high_school_physics_test.csv", '"A, or ""B""?",one,two,3,A,D\nNext,A,B,C,D,A\n')
    written(tmp_path, "test/anatomy_test.csv", "Bone?,a,b,c,d,B\n")
    first, second, third = read_questions([tmp_path / "test"])
    assert (first.text, first.type, first.gold, first.answers) == ("Bone?", "anatomy", 1, ("b",))
    assert second.text == 'A, or "B"?'
    assert second.choices == ("one", "two", "3", "A")
    assert (second.gold, second.type) == (3, "high school physics")
    assert third.gold == 0  # the letter, though choice B is called as some letter, too


def test_mmlu_as_the_hub_has_it(tmp_path: Path) -> None:
    table = pa.table(
        {
            "question": ["2 - 2?"],
            "subject": ["elementary_mathematics"],
            "choices": [["1", "0", "3", "2"]],
            "answer": pa.array([1], pa.int64()),
        }
    )
    pq.write_table(table, tmp_path / "test.parquet")
    (question,) = read_questions([tmp_path / "test.parquet"])
    assert (question.gold, question.answers, question.type) == (1, ("0",), "elementary_mathematics")


def test_nq_open_and_dprs_pairs(tmp_path: Path) -> None:
    nq = written(tmp_path, "nq.jsonl", [{"question": "who sings it", "answer": ["Ann", "Ann", "Bo"]}])
    dpr = written(tmp_path, "nq-test.qa.csv", 'who did, and how\t[\'Röntgen\', "O\'Neil"]\nwhen\t["1901"]\n')
    assert [question.answers for question in read_questions([nq, dpr])] == [
        ("Ann", "Bo"),
        ("Röntgen", "O'Neil"),
        ("1901",),
    ]


def test_triviaqa_as_published_and_as_on_the_hub(tmp_path: Path) -> None:
    answer = {"Value": "Sunset Boulevard", "Aliases": ["West Sunset"], "NormalizedAliases": ["west sunset"]}
    own = {"Data": [{"Question": "Which musical?", "QuestionId": "tc_33", "Answer": answer}], "Version": 1}
    hub = {
        "question": "Which musical?",
        "question_id": "tc_34",
        "answer": {
            "value": "Sunset Boulevard",
            "aliases": ["West Sunset"],
            "normalized_aliases": ["west sunset"],
            "type": "WikipediaEntity",
        },
    }
    files = [written(tmp_path, "web-dev.json", own), written(tmp_path, "hub.jsonl", [hub])]
    expected = ("Sunset Boulevard", "West Sunset", "west sunset")
    assert read_questions(files) == [
        Question("tc_33", "Which musical?", expected, type="which"),
        Question("tc_34", "Which musical?", expected, type="which"),
    ]


def test_arcs_labels_count_before_anything_else(tmp_path: Path) -> None:
    record = {
        "question": "?",
        "choices": {"text": ["3", "2", "1"], "label": ["1", "2", "3"]},
        "answerKey": "3",
    }
    assert one(tmp_path, record).gold == 2


@pytest.mark.parametrize(
    ("answer", "gold"), [("B", 1), ("x y", 0), (2, 2), ("2", 2), (["x y"], 0), (None, None), ("", None)]
)
def test_a_choice_is_named_by_letter_text_or_position(tmp_path: Path, answer: Any, gold: int | None) -> None:
    question = one(tmp_path, {"question": "?", "choices": ["x y", "yes", "z"], "answer": answer})
    assert question.gold == gold
    assert question.answers == (() if gold is None else (question.choices[gold],))


def test_columns_a_to_d_are_choices(tmp_path: Path) -> None:
    path = written(tmp_path, "q.csv", "question,A,B,C,D,answer\nWhy?,p,q,,,B\n")
    (question,) = read_questions([path])
    assert (question.choices, question.gold) == (("p", "q"), 1)


def test_a_question_without_an_answer_is_read_and_has_none(tmp_path: Path) -> None:
    assert one(tmp_path, {"question": "?", "answers": []}).answers == ()
    assert one(tmp_path, {"question": "?", "answers": {"text": [], "answer_start": []}}).answers == ()


def test_an_answer_that_only_looks_like_a_list_is_a_text(tmp_path: Path) -> None:
    path = written(tmp_path, "q.csv", 'question,answer\nsorted?,"[1, 2]"\nopen?,[sic\n')
    assert [question.answers for question in read_questions([path])] == [("[1, 2]",), ("[sic",)]


BAD: dict[str, tuple[str, Any, str]] = {
    "no question": ("q.jsonl", [{"query": "?", "answer": "x"}], "line 1 .*no column 'question'"),
    "no answer": ("q.jsonl", [{"question": "?"}], "line 1 .*no column 'answer'"),
    "empty question": ("q.csv", "question,answer\n ,x\n", "line 2 .*'question': an empty question"),
    "no text": ("q.json", [{"question": ["?"], "answer": "x"}], "record 1, column 'question': found list"),
    "surrogate": ("q.jsonl", b'{"question": "\\ud800", "answer": "x"}\n', "half a surrogate pair"),
    "latin": ("q.csv", "question,answer\nwo,K\xf6ln\n".encode("latin-1"), "line 2 .*'answer': byte 0xf6"),
    "one choice": (
        "q.json",
        [{"question": "?", "choices": ["x"], "answer": 0}],
        "'choices': found 1 of them",
    ),
    "choices": ("q.json", [{"question": "?", "choices": "a;b", "answer": 0}], "'choices': found 'a;b'"),
    "empty choice": ("q.json", [{"question": "?", "choices": ["x", " "], "answer": 0}], "a choice is empty"),
    "position": (
        "q.json",
        [{"question": "?", "choices": ["x", "y"], "answer": 2}],
        "'answer': found 2, expected a position from 0 to 1",
    ),
    "unknown": ("q.json", [{"question": "?", "choices": ["x", "y"], "answer": "C"}], "'C' is none of"),
    "ambiguous": (
        "q.json",
        [{"question": "?", "choices": ["B", "A"], "answer": "A"}],
        "'A' names more than one of",
    ),
    "object": ("q.json", [{"question": "?", "answer": {"x": 1}}], "an object with 'x', expected 'Value'"),
    "header": ("q.csv", "who,what\na,b\n", "column 'question': no column of this name, but 'who', 'what'"),
    "mmlu row": (
        "x_test.csv",
        "Q,a,b,c,d,A\nQ,a,b,c,d,E\n",
        "line 2 .*'answer': found 6 columns, the last 'E'",
    ),
    "dpr row": ("x.csv", "who\t['a']\nwho\n", "line 2 .*'answers': found 1 columns"),
    "ragged": ("q.csv", "question,answer\nx\n", "line 2 .*a ragged row"),
    "json": ("q.json", "[{]", "not JSON"),
    "not a list": ("q.json", {"question": "?"}, "found dict, expected a list"),
    "empty": ("q.jsonl", "\n", "no question in it"),
    "suffix": ("q.txt", "x", "suffix '.txt'"),
    "twice": (
        "q.jsonl",
        [{"id": "1", "question": "?", "answer": "x"}] * 2,
        "line 2 .*the id '1' also stands in .*line 1",
    ),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_named(tmp_path: Path, name: str, content: Any, message: str) -> None:
    path = written(tmp_path, name, content)
    with pytest.raises(CorpusError, match=message) as caught:
        read_questions([path])
    assert str(path) in str(caught.value)


def test_a_missing_file_and_a_folder_without_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no such file"):
        read_questions([tmp_path / "none.jsonl"])
    with pytest.raises(CorpusError, match=r"without \.csv files"):
        read_questions([tmp_path])


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("In which city?", "which"),
        ("How many are there", "how many"),
        ("Name the showman who came", "who"),
        ("Somehow it works", "other"),
    ],
)
def test_the_question_word_stands_for_a_missing_type(text: str, word: str) -> None:
    assert question_word(text) == word
