"""What users of sentence-transformers' trainer expect of ``TrainerForLSR``, beside that it trains."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.base.evaluation import BaseEvaluator

from replug_client.errors import CorpusError, OptionError, SupervisorError
from replug_client.retriever.asymmetric import is_asymmetric, passage_encoder_of, query_encoder_of
from replug_client.supervisor.protocol import Prompt, Score
from replug_client.training import (
    ArrayIndex,
    DataCollatorForLSR,
    LSRLoss,
    LSRTrainingArguments,
    TrainerForLSR,
    split_batch,
)
from replug_client.training.candidates import CandidateOptions
from replug_client.training.toy import Toy, toy
from tests.training.test_api import PAIRS as ROWS
from tests.training.test_api import PASSAGES
from tests.training.test_api import arguments as training_arguments

QUERIES = [row["query"] for row in ROWS]


@pytest.fixture
def parts() -> Toy:
    return toy([*PASSAGES, *QUERIES])


def arguments(folder: Path, **options: Any) -> LSRTrainingArguments:
    return training_arguments(folder, **{"max_steps": 6, "logging_steps": 1} | options)


def trainer_of(
    parts: Toy, folder: Path, rows: Any = ROWS, keywords: dict[str, Any] | None = None, **options: Any
) -> TrainerForLSR:
    given: dict[str, Any] = {
        "model": parts.model,
        "args": arguments(folder, **options),
        "train_dataset": rows,
        "passages": PASSAGES,
        "supervisor": parts.supervisor,
        "tokenizer": parts.tokenizer,
    }
    return TrainerForLSR(**given | (keywords or {}))


def moved(model: SentenceTransformer, before: tuple[Any, Any]) -> tuple[bool, bool]:
    """Whether queries' and passages' vectors are other ones than before."""
    now = model.encode_query(QUERIES), model.encode_document(PASSAGES)
    first, second = (bool(abs(one - other).max() > 1e-4) for one, other in zip(now, before, strict=True))
    return first, second


def vectors(model: SentenceTransformer) -> tuple[Any, Any]:
    return model.encode_query(QUERIES), model.encode_document(PASSAGES)


@pytest.fixture
def tuned(parts: Toy, tmp_path: Path) -> SentenceTransformer:
    """A retriever with two encoders, as a first round of training leaves it."""
    trainer = trainer_of(parts, tmp_path / "first")
    trainer.train()
    trainer.save_retriever(tmp_path / "tuned")
    return SentenceTransformer(str(tmp_path / "tuned"), device="cpu")


@pytest.mark.parametrize(("mode", "moving"), [("query", (True, False)), ("both", (True, True))])
def test_of_two_encoders_the_right_one_is_trained(
    parts: Toy, tuned: SentenceTransformer, mode: str, moving: tuple[bool, bool], tmp_path: Path
) -> None:
    assert is_asymmetric(tuned)
    before = vectors(tuned)
    trainer = trainer_of(parts, tmp_path / "second", keywords={"model": tuned}, train=mode)
    trainer.train()
    assert moved(tuned, before) == moving
    if mode == "query":
        trainer.save_retriever(tmp_path / "again")
        assert moved(SentenceTransformer(str(tmp_path / "again"), device="cpu"), before) == moving


@pytest.mark.parametrize("train_passages", [False, True])
def test_a_batch_goes_through_both_routes(
    parts: Toy, tuned: SentenceTransformer, train_passages: bool
) -> None:
    collator = DataCollatorForLSR(
        tuned,
        PASSAGES,
        parts.supervisor,
        parts.tokenizer,
        candidates=CandidateOptions(8, 0, 0),
        train_passages=train_passages,
    )
    features, labels = split_batch(collator(ROWS), "cpu")
    LSRLoss(tuned, grad_cache_chunk=3 if train_passages else 0)(features, labels).backward()

    def has_gradient(encoder: SentenceTransformer) -> bool:
        return any(weight.grad is not None and bool(weight.grad.any()) for weight in encoder.parameters())

    assert has_gradient(query_encoder_of(tuned))
    assert has_gradient(passage_encoder_of(tuned)) == train_passages


class Counting(BaseEvaluator):
    def __init__(self) -> None:
        super().__init__()
        self.primary_metric = "count"
        self.count = 0

    def __call__(self, *_: Any, **__: Any) -> dict[str, float]:
        self.count += 1
        return {"count": float(self.count)}


@pytest.mark.parametrize("as_list", [False, True])
def test_an_evaluator_of_ones_own_runs_beside_validation(parts: Toy, as_list: bool, tmp_path: Path) -> None:
    mine = Counting()
    keywords = {"eval_dataset": ROWS, "evaluator": [mine] if as_list else mine}
    trainer = trainer_of(parts, tmp_path, keywords=keywords, eval_strategy="steps", eval_steps=3)
    trainer.train()
    assert mine.count == 2
    last = [entry for entry in trainer.state.log_history if "eval_count" in entry][-1]
    assert last["eval_count"] == 2.0 and 0 < last["eval_mrr"] <= 1
    assert last["eval_sequential_score"] == last["eval_bits_per_byte"]


def test_other_rows_are_evaluated_as_the_held_out_ones_are(parts: Toy, tmp_path: Path) -> None:
    trainer = trainer_of(
        parts, tmp_path, keywords={"eval_dataset": ROWS}, eval_strategy="steps", eval_steps=6
    )
    trainer.train()
    held_out = next(entry for entry in trainer.state.log_history if "eval_mrr" in entry)
    same = trainer.evaluate(ROWS)
    assert {name: same[name] for name in ("eval_mrr", "eval_bits_per_byte", "eval_kl")} == {
        name: held_out[name] for name in ("eval_mrr", "eval_bits_per_byte", "eval_kl")
    }
    several = trainer.evaluate({"first": ROWS[:2], "rest": ROWS[2:]}, metric_key_prefix="test")
    assert {"test_first_mrr", "test_rest_mrr"} <= several.keys()
    assert trainer.state.log_history[-1]["test_rest_mrr"] == several["test_rest_mrr"]


@pytest.mark.parametrize("mode", ["query", "both"])
def test_evaluated_later_the_base_is_still_the_base(parts: Toy, mode: str, tmp_path: Path) -> None:
    trainer = trainer_of(parts, tmp_path, train=mode)
    before = trainer.evaluate(ROWS)
    assert before["eval_changed"] == 0 and before["eval_base_minus_current"] == 0
    trainer.train()
    after = trainer.evaluate(ROWS)
    assert after["eval_changed"] > 0
    expected = before["eval_bits_per_byte"] - after["eval_bits_per_byte"]
    assert after["eval_base_minus_current"] == pytest.approx(expected)


@pytest.mark.parametrize("n_docs", [0, 1])
def test_the_held_out_divergence_needs_no_candidates_of_ones_own(
    n_docs: int, parts: Toy, tmp_path: Path
) -> None:
    """Over one passage it would be 0, whatever the retriever."""
    few = trainer_of(parts, tmp_path, n_docs=n_docs, bm25_docs=3).evaluate(ROWS)
    two = trainer_of(parts, tmp_path, n_docs=2, bm25_docs=3).evaluate(ROWS)
    assert few["eval_kl"] == two["eval_kl"] > 0


def test_evaluate_without_rows_says_what_to_give(parts: Toy, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="give rows, or eval_dataset when it is made"):
        trainer_of(parts, tmp_path).evaluate()


def test_predict_says_what_to_take(parts: Toy, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"evaluate\(rows\) gives figures"):
        trainer_of(parts, tmp_path).predict(ROWS)


def test_a_second_run_refreshes_as_the_first_and_leaves_the_index_of_the_last_weights(
    parts: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(parts, tmp_path, train="both", refresh_every=2)
    steps: list[int] = []
    refresh = trainer._hooks.refresh
    assert refresh is not None

    def seen() -> None:
        steps.append(trainer.state.global_step)
        refresh()

    object.__setattr__(trainer._hooks, "refresh", seen)
    for _ in range(2):
        steps.clear()
        trainer.train()
        assert steps == [2, 4]
        now = parts.model.encode_document(PASSAGES)
        assert np.allclose(trainer.index.vectors(np.arange(8)), now, atol=1e-6)


def test_what_else_lies_beside_the_candidates_is_left(parts: Toy, tmp_path: Path) -> None:
    (tmp_path / "candidates").mkdir()
    (tmp_path / "candidates" / "notes.txt").write_text("mine")
    (tmp_path / "candidates" / "generation_00099.npy").write_bytes(b"")
    trainer_of(parts, tmp_path).train()
    names = {path.name for path in (tmp_path / "candidates").iterdir()}
    assert "notes.txt" in names and "generation_00099.npy" not in names


def test_data_seed_0_is_a_seed(parts: Toy, tmp_path: Path) -> None:
    def order(**seeds: int) -> list[int]:
        schedule = trainer_of(parts, tmp_path, **seeds)._schedule
        return schedule.batches(0, 4).ravel().tolist()

    assert order(seed=5, data_seed=0) == order(seed=0) != order(seed=5)


def test_a_resumed_run_logs_what_the_uninterrupted_one_does(parts: Toy, tmp_path: Path) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}

    def run(**keywords: Any) -> list[dict[str, float]]:
        fresh = toy([*PASSAGES, *QUERIES])
        trainer = trainer_of(fresh, tmp_path, keywords={"eval_dataset": ROWS}, **options)
        trainer.train(**keywords)
        changing = ("runtime", "second", "train_loss", "total_flos")
        return [
            {name: value for name, value in entry.items() if not any(word in name for word in changing)}
            for entry in trainer.state.log_history
        ]

    whole = run()
    assert "eval_churn" in whole[-2]
    assert run(resume_from_checkpoint=str(tmp_path / "checkpoint-2")) == whole


class Odd:
    """The toy's supervisor, with other scores."""

    def __init__(self, wrapped: Any, change: Any) -> None:
        self._wrapped, self._change = wrapped, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    def score(self, prompts: Sequence[Prompt]) -> list[Score]:
        return self._change(prompts, self._wrapped.score(prompts))

    def submit(self, prompts: Sequence[Prompt], on_scores: Any = None) -> Any:
        from concurrent.futures import Future

        future: Future[list[Score]] = Future()
        scores = self.score(prompts)
        if on_scores is not None:
            on_scores(range(len(scores)), scores)
        future.set_result(scores)
        return future


def test_a_candidate_whose_score_is_not_finite_is_left_out_of_validation_too(
    parts: Toy, tmp_path: Path
) -> None:
    def failed(prompts: Sequence[Prompt], scores: list[Score]) -> list[Score]:
        # What stands behind passages 0 to 2 has no score.
        bad = {parts.tokenizer.encode(f"other{number}")[0] for number in range(3)}
        return [
            Score(np.full(score.num_tokens, -np.inf, np.float32)) if bad & set(prompt.ids) else score
            for prompt, score in zip(prompts, scores, strict=True)
        ]

    keywords = {"eval_dataset": ROWS, "supervisor": Odd(parts.supervisor, failed)}
    trainer = trainer_of(
        parts, tmp_path, keywords=keywords, eval_on_start=True, eval_strategy="steps", eval_steps=6
    )
    trainer.train()
    figures = [entry for entry in trainer.state.log_history if "eval_mrr" in entry]
    assert len(figures) == 2
    for entry in figures:
        assert all(np.isfinite(value) for name, value in entry.items() if name.startswith("eval_")), entry


def test_where_nothing_can_be_scored_validation_says_so(parts: Toy, tmp_path: Path) -> None:
    def nothing(_: Sequence[Prompt], scores: list[Score]) -> list[Score]:
        return [Score(np.full(score.num_tokens, np.nan, np.float32)) for score in scores]

    trainer = trainer_of(parts, tmp_path, keywords={"supervisor": Odd(parts.supervisor, nothing)})
    with pytest.raises(
        SupervisorError, match="none of the 6 validation examples has a finite log-likelihood"
    ):
        trainer.evaluate(ROWS)


@pytest.mark.parametrize("extra", [1, -1])
def test_log_probs_of_another_number_are_refused(parts: Toy, extra: int, tmp_path: Path) -> None:
    def other(_: Sequence[Prompt], scores: list[Score]) -> list[Score]:
        return [Score(np.zeros(score.num_tokens + extra, np.float32)) for score in scores]

    supervisor = Odd(parts.supervisor, other)
    with pytest.raises(SupervisorError, match=f"gave {1 + extra} log-probs for a continuation of 1 tokens"):
        trainer_of(parts, tmp_path, keywords={"supervisor": supervisor}).train()
    collator = DataCollatorForLSR(
        parts.model, PASSAGES, supervisor, parts.tokenizer, candidates=CandidateOptions(8, 0, 0)
    )
    with pytest.raises(SupervisorError, match=f"gave {1 + extra} log-probs for a continuation of 1 tokens"):
        collator(ROWS)


class Tokenizer:
    def encode(self, text: str) -> list[int]:
        return [1]


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"model": "all-MiniLM-L6-v2"}, OptionError, "model is str; expected a SentenceTransformer"),
    (
        {"supervisor": "http://localhost:8000/v1"},
        OptionError,
        "supervisor is str; expected a Supervisor: open_super",
    ),
    ({"tokenizer": Tokenizer()}, OptionError, "tokenizer is Tokenizer; expected the supervisor's"),
    ({"index": np.eye(8)}, OptionError, r"index is ndarray; expected an index: ArrayIndex\(vectors\)"),
    ({"train_dataset": [("query", "continuation")]}, CorpusError, "example 0 is tuple"),
    ({"train_dataset": DatasetDict({"train": ROWS})}, CorpusError, "found DatasetDict of 'train'"),
    ({"eval_dataset": {"held_out": ROWS}}, CorpusError, "found dict of 'held_out'; expected rows"),
    ({"train_dataset": []}, CorpusError, "train_dataset is empty; expected rows"),
    ({"eval_dataset": []}, CorpusError, "eval_dataset is empty; expected rows"),
    (
        {"args": SentenceTransformerTrainingArguments("out", use_cpu=True, report_to="none")},
        OptionError,
        "args is SentenceTransformerTrainingArguments; expected LSRTrainingArguments",
    ),
]


@pytest.mark.parametrize(("given", "error", "message"), WRONG, ids=[message[:30] for _, _, message in WRONG])
def test_what_is_no_part_of_a_training_is_named(
    parts: Toy, given: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        trainer_of(parts, tmp_path, keywords=given)


def test_prompts_are_the_models_own(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r'prompts is .*Set model.prompts\["query"\]'):
        arguments(tmp_path, prompts="query: ")


def test_a_collator_in_a_worker_is_refused_and_does_not_hang(parts: Toy) -> None:
    collator = DataCollatorForLSR(
        parts.model, PASSAGES, parts.supervisor, parts.tokenizer, candidates=CandidateOptions(8, 0, 0)
    )
    loader = torch.utils.data.DataLoader(ROWS, batch_size=2, num_workers=1, collate_fn=collator, timeout=60)
    with pytest.raises(OptionError, match="expected num_workers=0"):
        next(iter(loader))


def test_vectors_are_cut_as_encode_cuts_them(parts: Toy, tmp_path: Path) -> None:
    parts.model.truncate_dim = 8
    short = parts.model.encode_document(PASSAGES)
    assert short.shape == (8, 8)
    for train_passages in (False, True):
        collator = DataCollatorForLSR(
            parts.model,
            PASSAGES,
            parts.supervisor,
            parts.tokenizer,
            candidates=CandidateOptions(8, 0, 0),
            train_passages=train_passages,
        )
        loss = LSRLoss(parts.model)
        loss(*split_batch(collator(ROWS)))
        expected = parts.model.encode_query(QUERIES) @ short.T
        assert np.allclose(loss.last["similarity"].sort().values, np.sort(expected), atol=1e-5)
    for mode in ("query", "both"):
        trainer_of(parts, tmp_path / mode, train=mode).train()
    assert ArrayIndex(short).dimension == 8


def test_a_loss_comes_back_from_its_own_description(parts: Toy) -> None:
    from replug_client.training import ObjectiveOptions

    options = ObjectiveOptions(0.1, 0.5, score="sum", kl="q-p", denominator="batch", objective="loop")  # type: ignore[arg-type]
    described = json.loads(json.dumps(LSRLoss(parts.model, options).get_config_dict()))
    assert ObjectiveOptions(**described) == options
    labels = torch.tensor([[[-20.0, 10, 40, 0], [-30.0, 10, 40, 1], [-25.0, 10, 40, 2]]], dtype=torch.float64)
    similarity = torch.tensor([[0.2, 0.5, 0.1]])
    values = [
        LSRLoss(parts.model, each).from_similarity(similarity, labels).item()
        for each in (options, ObjectiveOptions(**described))
    ]
    assert values[0] == values[1]
