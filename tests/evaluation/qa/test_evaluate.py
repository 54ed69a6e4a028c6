"""Questions from retrieval to tables, with an LM that copies from what it is given."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from replug_client.corpus.store import PassageStore
from replug_client.errors import OptionError
from replug_client.evaluation.conditions import BASE, TUNED, Condition, parse_conditions
from replug_client.evaluation.qa.analysis import Outcome
from replug_client.evaluation.qa.evaluate import LanguageModel, evaluate_questions
from replug_client.evaluation.qa.findings import Findings, Part, QaOptions, Result
from replug_client.evaluation.qa.questions import Question
from replug_client.evaluation.qa.report import per_example, result_of
from replug_client.evaluation.results import EvaluationResult, ResultTable
from replug_client.supervisor.fake import FakeSupervisor
from replug_client.supervisor.prompts import PromptBuilder
from replug_client.supervisor.protocol import Prompt
from tests.evaluation.qa.tools import Characters, copying
from tests.retriever.tiny import store_of

TEXTS = [
    "the capital of Norway is Oslo",
    "the highest hill of Denmark, they say, is Mollehoj indeed",
    "Iceland has geysers, and its capital, Reykjavik, has none",
]
QUESTIONS = [
    Question("capital", "What is the capital of Norway", ("Oslo",), type="what"),
    Question("hill", "Which is the highest hill of Denmark", ("Mollehoj",), type="which"),
    Question("ice", "Where are geysers in Iceland", ("Reykjavik",), type="where"),
    Question("king", "Who is zzz", ("Harald",), type="who"),
    Question("open", "Who knows", (), type="who"),
    Question("pick", "capital of Norway", ("Oslo",), ("Bergen", "Oslo"), 1, "choice"),
]


def choosing(prompt: Prompt) -> list[float]:
    """-1 a character, but 0 for characters of a word that stands before the choice."""
    text = "".join(map(chr, prompt.ids[1:]))
    before, choice = text[: -prompt.num_continuation], text[-prompt.num_continuation :]
    return [0.0 if choice.strip() in before else -1.0] * prompt.num_continuation


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PassageStore:
    return store_of(tmp_path_factory.mktemp("store"), TEXTS)


@pytest.fixture
def lm() -> Iterator[LanguageModel]:
    fake = FakeSupervisor(choosing)
    builder = PromptBuilder(Characters(), retrieved_max_length=48, max_prompt_tokens=1000)
    yield LanguageModel(fake, Characters(), builder, copying)
    fake.close()


def options(*conditions: str, combinations: tuple[str, ...] = ("first",), **more: object) -> QaOptions:
    return QaOptions(tuple(parse_conditions(conditions, combinations)), hit_at=(1, 2), **more)  # type: ignore[arg-type]


def test_answers_choices_ranks_and_outcomes(store: PassageStore, lm: LanguageModel) -> None:
    found = evaluate_questions(QUESTIONS, store, {}, lm, options("none", "bm25"))
    assert found.left_out == {"without a known answer": 1}
    assert [question.id for question in found.questions] == ["capital", "hill", "ice", "king", "pick"]
    free, choices = found.parts
    assert (free.numbers, choices.numbers) == ((0, 1, 2, 3), (4,))
    bm25 = free.results["bm25"]
    assert [result.given for result in bm25[:3]] == ["Oslo", "indeed", "none"]
    # Of the 48 characters that are read of a passage, "... they say, is Molleho" ends before the answer does.
    assert [result.outcome for result in bm25] == [
        Outcome.CORRECT,
        Outcome.CUT_OFF,
        Outcome.READ_MISS,
        Outcome.RETRIEVAL_MISS,
    ]
    assert [result.outcome for result in free.results["none"]] == [Outcome.FORMAT] * 4  # an empty answer
    assert list(found.ranks) == ["bm25"]
    assert found.ranks["bm25"][:3] == [1, 1, 1]
    assert found.ranks["bm25"][3] is None
    # Without a passage: -7 for " Bergen", -5 for " Oslo"; with it 0 for Oslo. Per byte -7/6 and -5/4.
    without, with_passage = choices.results["none"][0], choices.results["bm25"][0]
    assert without.scores["log_likelihood"] == (-7.0, -5.0)
    assert without.values == {
        "accuracy_sum": 1.0,
        "accuracy_mean": 0.0,  # equal, so the first
        "accuracy_byte": 0.0,
        "accuracy_no_context": 0.0,
    }
    assert with_passage.scores["log_likelihood"] == (-7.0, 0.0)
    assert set(with_passage.values.values()) == {1.0}


def test_choices_can_be_answered_freely(store: PassageStore, lm: LanguageModel) -> None:
    found = evaluate_questions(QUESTIONS[-1:], store, {}, lm, options("bm25", free_answers=True))
    (part,) = found.parts
    assert part.free
    assert part.results["bm25"][0].given == "Oslo"


def test_ensembles_carry_their_weights(store: PassageStore, lm: LanguageModel) -> None:
    asked = options("random", combinations=("ensemble-2", "concat-2"))
    found = evaluate_questions([QUESTIONS[0], QUESTIONS[-1]], store, {}, lm, asked)
    for part in found.parts:
        mixed, after = part.results["random.ensemble-2"][0], part.results["random.concat-2"][0]
        assert mixed.weights == pytest.approx((0.5, 0.5))
        assert mixed.passages == after.passages  # best first, however they stand in the prompt


def test_nothing_left_is_said(store: PassageStore, lm: LanguageModel) -> None:
    with pytest.raises(
        OptionError, match="none of 1 questions is left to evaluate: 1 without a known answer"
    ):
        evaluate_questions([QUESTIONS[4]], store, {}, lm, options("none"))


def test_options_that_cannot_work_are_refused() -> None:
    with pytest.raises(OptionError, match="--k"):
        options("ceiling", k=0)
    with pytest.raises(OptionError, match="--hit_at"):
        QaOptions((Condition("none"),), hit_at=(0,))
    with pytest.raises(OptionError, match="--questions_at_once"):
        options("none", at_once=0)
    with pytest.raises(OptionError, match="--choice_scoring"):
        options("none", choice_scoring="pmi")


def made_up() -> Findings:
    """Ten questions; base gets the first four right, tuned the first seven; of the others each kind of miss."""
    questions = tuple(
        Question(
            f"q{n}",
            f"{'Who' if n < 6 else 'When'} {n} \x1b[31m|?",
            (f"right {n}", "x"),
            type="w" * (1 + n // 6),
        )
        for n in range(10)
    )
    misses = [Outcome.RETRIEVAL_MISS, Outcome.READ_MISS, Outcome.FORMAT, Outcome.CUT_OFF]

    def result(number: int, right: int) -> Result:
        correct = number < right
        return Result(
            given=f"right {number}" if correct else "right",
            values={
                "exact_match": float(correct),
                "f1": 1.0 if correct else 2 / 3,
                "rouge_l": 1.0 if correct else 2 / 3,
                "bleu": 100.0 if correct else 36.8,
            },
            outcome=Outcome.CORRECT if correct else misses[number % 4],
            passages=(0,),
        )

    results = {
        name: [result(n, right) for n in range(10)] for name, right in (("none", 0), (BASE, 4), (TUNED, 7))
    }
    ranks: dict[str, list[int | None]] = {
        BASE: [1, 2, None, 5] + [None] * 6,
        TUNED: [1] * 5 + [4] + [None] * 4,
    }
    return Findings(
        questions=questions,
        parts=(Part(True, tuple(range(10)), results),),
        ranks=ranks,
        passages=4,
        left_out={"without a known answer": 2},
        options=QaOptions(tuple(parse_conditions(["none", BASE, TUNED])), hit_at=(1, 4)),
    )


def table(result: EvaluationResult, name: str) -> ResultTable:
    return next(item for item in result.tables if item.name == name)


def test_the_main_table_has_means_differences_and_n() -> None:
    result = result_of(made_up())
    rows = {row.name: row for row in table(result, "answers.first").rows}
    assert {row.n for row in rows.values()} == {10}
    assert [rows[name].values["exact_match"] for name in ("none", BASE, TUNED)] == [0.0, 0.4, 0.7]
    assert rows[TUNED].values["f1"] == pytest.approx((7 + 3 * 2 / 3) / 10)
    gain = rows[TUNED].differences["exact_match"]
    assert gain.mean == pytest.approx(0.3)
    assert gain.units == "questions"
    assert gain.low is not None
    assert gain.high is not None
    assert gain.low < 0.3 < gain.high
    assert rows[BASE].differences == {}
    assert rows[TUNED].emphasis
    assert rows["none"].differences["exact_match"].mean == pytest.approx(-0.4)
    assert result.left_out == {"without a known answer": 2}


def test_what_truncation_leaves_out_of_a_mixture_is_said() -> None:
    findings = made_up()
    (part,) = findings.parts
    first = replace(part.results[TUNED][0], dropped_mass=(0.125, 0.0625, 0.0), uncertain=1)
    results = {**part.results, TUNED: [first, *part.results[TUNED][1:]]}
    found = table(result_of(replace(findings, parts=(replace(part, results=results),))), "answers.first")
    (note,) = [note for note in found.notes if "log-probs" in note]
    assert "leave out 6.25% of the mixture's mass (at most 12.50%); 1 of 3 tokens" in note
    assert not any("log-probs" in note for note in table(result_of(findings), "answers.first").notes)


def test_retrieval_says_hits_and_mrr_of_the_answer() -> None:
    rows = {row.name: row for row in table(result_of(made_up()), "retrieval").rows}
    assert rows[BASE].values == pytest.approx({"hit@1": 0.1, "hit@4": 0.2, "mrr@4": (1 + 1 / 2) / 10})
    assert rows[TUNED].values == pytest.approx({"hit@1": 0.5, "hit@4": 0.6, "mrr@4": (5 + 1 / 4) / 10})
    assert rows[TUNED].differences["hit@4"].mean == pytest.approx(0.4)


def test_outcomes_are_counted_by_condition_and_by_type() -> None:
    result = result_of(made_up())
    rows = {row.name: row for row in table(result, "answers.outcomes").rows}
    assert rows[TUNED].values == {
        "correct": 7,
        "retrieval_miss": 1,
        "cut_off": 1,
        "read_miss": 1,
        "format": 0,
    }
    assert sum(rows["none"].values.values()) == 10
    types = {row.name: row for row in table(result, "answers.types").rows}
    assert [(row.name, row.n) for row in types.values()] == [("w", 6), ("ww", 4)]
    assert types["ww"].values[TUNED] == 0.25
    assert types["w"].values[BASE] == pytest.approx(4 / 6)
    by_type = result.details["answers"]["by_type"]["ww"]
    assert by_type["conditions"][TUNED]["outcomes"] == {
        "correct": 1,
        "retrieval_miss": 1,
        "read_miss": 1,
        "cut_off": 1,
    }


def test_the_worst_are_shown_shortened_and_clean() -> None:
    findings = made_up()
    result = result_of(findings, worst=2)
    worst = result.details["answers"]["worst"]
    assert [item["id"] for item in worst] == ["q7", "q8"]
    assert worst[0]["question"] == findings.questions[7].text  # whole in the file
    markdown = result.to_markdown()
    assert "\x1b" not in markdown
    assert "right: right 7" in markdown
    assert "\\|" in markdown


def test_the_verdict_says_whether_it_helped_and_the_result_survives_its_file(tmp_path: Path) -> None:
    result = result_of(made_up())
    assert "+0.3000" in result.verdict
    assert "n = 10" in result.verdict
    result.write(tmp_path / "qa.json")
    assert EvaluationResult.read(tmp_path / "qa.json").to_json() == json.loads(json.dumps(result.to_json()))


def test_every_question_and_condition_has_a_line(store: PassageStore, lm: LanguageModel) -> None:
    found = evaluate_questions(QUESTIONS, store, {}, lm, options("none", "bm25"))
    lines = list(per_example(found, store))
    assert len(lines) == 5 * 2
    line = next(line for line in lines if (line["id"], line["condition"]) == ("capital", "bm25"))
    assert line["given"] == "Oslo"
    assert line["exact_match"] == 1.0
    assert line["passages"] == ["p0"]
    assert line["answer_rank"] == 1
    pick = next(line for line in lines if line["id"] == "pick")
    assert pick["log_likelihood"] == [-7.0, -5.0]
    json.dumps(lines, allow_nan=False)
    means = np.mean(
        [line["exact_match"] for line in lines if line["condition"] == "bm25" and "choices" not in line]
    )
    (row,) = [row for row in table(result_of(found), "answers.first").rows if row.name == "bm25"]
    assert row.values["exact_match"] == pytest.approx(float(means))
