"""The Python interface: light to import, and trained from plain texts the planted preferences rise."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, TaskType
from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback

from replug_client import training
from replug_client.errors import CorpusError, OptionError
from replug_client.retriever.lexical_weights import add_lexical
from replug_client.training import (
    ArrayIndex,
    DataCollatorForLSR,
    Denominator,
    Direction,
    LSRLoss,
    LSRTrainingArguments,
    ObjectiveOptions,
    TrainerForLSR,
    split_batch,
    text_trainer,
)
from replug_client.training.candidates import CandidateOptions
from replug_client.training.lora import has_lora
from replug_client.training.toy import Toy, toy
from tests.retriever.tiny import saved_encoder

# The toy LM prefers the passage that holds the continuation; the queries share no word with any passage.
PASSAGES = [f"word{number} other{number} more" for number in range(8)]
PAIRS = [{"query": f"query{number}", "continuation": f"word{7 - number}"} for number in range(6)]
WANTED = [7 - number for number in range(6)]
SHARP = ObjectiveOptions(0.1, 0.5)
ALL = CandidateOptions(8, 0, 0)


def made() -> Toy:
    return toy([*PASSAGES, *(pair["query"] for pair in PAIRS)])


def arguments(folder: Path, **options: Any) -> LSRTrainingArguments:
    return LSRTrainingArguments(
        str(folder),
        **{
            "max_steps": 30,
            "learning_rate": 0.05,
            "per_device_train_batch_size": 3,
            "n_docs": 8,
            "bm25_docs": 0,
            "random_docs": 0,
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "save_strategy": "no",
        }
        | options,
    )


def trainer_for(parts: Toy, folder: Path, loss: ObjectiveOptions = SHARP, **options: Any) -> TrainerForLSR:
    model, supervisor, tokenizer = parts
    return TrainerForLSR(
        model,
        arguments(folder, **options),
        PAIRS,
        loss=LSRLoss(model, loss),
        passages=PASSAGES,
        supervisor=supervisor,
        tokenizer=tokenizer,
    )


def found(model: SentenceTransformer, index: Any) -> list[int]:
    vectors = model.encode_query([pair["query"] for pair in PAIRS])
    return index.search(vectors, 1).rows[:, 0].tolist()


def test_the_package_is_light_until_a_name_is_asked_for() -> None:
    heavy = "[name for name in ('torch', 'transformers', 'sentence_transformers') if name in sys.modules]"
    code = (
        f"import sys, replug_client, replug_client.training as t; assert 'LSRLoss' in dir(t); print({heavy})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there_and_no_other() -> None:
    assert all(getattr(training, name) is not None for name in training.__all__)
    assert sorted(training._HOMES) == sorted(training.__all__)
    with pytest.raises(AttributeError, match="no attribute 'LSRLos'"):
        _ = training.LSRLos


@pytest.mark.parametrize("mode", ["query", "both"])
def test_trained_from_texts_what_the_lm_prefers_comes_first(mode: str, tmp_path: Path) -> None:
    parts = made()
    trainer = trainer_for(parts, tmp_path, train=mode, refresh_every=10)
    before = trainer.index.array.copy()
    assert found(parts.model, trainer.index) != WANTED
    trainer.train()
    trainer._refresh()
    if mode == "query":  # the index that it was trained against is the one that was given
        assert found(parts.model, ArrayIndex(before)) == WANTED
    else:
        assert found(parts.model, trainer.index) == WANTED
    asked = {(prompt.ids, prompt.num_continuation) for prompt in parts.supervisor.asked}
    assert len(asked) == len(PAIRS) * len(PASSAGES)


def test_what_query_saves_keeps_the_passage_encoder_of_the_index(tmp_path: Path) -> None:
    parts = made()
    trainer = trainer_for(parts, tmp_path / "run")
    trainer.train()
    trainer.save_retriever(tmp_path / "tuned")
    loaded = SentenceTransformer(str(tmp_path / "tuned"), device="cpu")
    np.testing.assert_allclose(loaded.encode_document(PASSAGES), trainer.index.array, atol=1e-6)
    assert found(loaded, trainer.index) == WANTED
    queries = [pair["query"] for pair in PAIRS]
    assert not np.allclose(loaded.encode_query(queries), loaded.encode_document(queries), atol=1e-2)


@pytest.mark.parametrize("mode", ["query", "both"])
def test_what_an_adapter_has_learnt_is_saved_in_the_weights(mode: str, tmp_path: Path) -> None:
    """LoRA as sentence-transformers' users add it; the model that was trained keeps its adapter."""
    _, supervisor, tokenizer = made()
    folder = saved_encoder(tmp_path / "encoder")
    base, model = (SentenceTransformer(str(folder), device="cpu") for _ in range(2))
    model.add_adapter(LoraConfig(task_type=TaskType.FEATURE_EXTRACTION, r=4, lora_dropout=0.0))
    trainer = trainer_for(Toy(model, supervisor, tokenizer), tmp_path / "run", train=mode, max_steps=5)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    trainer.train()
    trainer.save_retriever(tmp_path / "tuned")
    assert has_lora(model)
    loaded = SentenceTransformer(str(tmp_path / "tuned"), device="cpu")
    assert not has_lora(loaded)
    queries = [pair["query"] for pair in PAIRS]
    np.testing.assert_allclose(loaded.encode_query(queries), model.encode_query(queries), atol=1e-5)
    assert np.abs(loaded.encode_query(queries) - base.encode_query(queries)).max() > 1e-2
    passages = (base if mode == "query" else model).encode_document(PASSAGES)
    np.testing.assert_allclose(loaded.encode_document(PASSAGES), passages, atol=1e-5)


def test_held_out_rows_are_validated_over_the_whole_index(tmp_path: Path) -> None:
    model, supervisor, tokenizer = made()
    trainer = TrainerForLSR(
        model,
        arguments(tmp_path, eval_strategy="steps", eval_steps=15, eval_on_start=True),
        Dataset.from_list(PAIRS),
        Dataset.from_list(PAIRS),
        LSRLoss(model, SHARP),
        passages=PASSAGES,
        supervisor=supervisor,
        tokenizer=tokenizer,
    )
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "eval_bits_per_byte" in entry]
    assert [entry["step"] for entry in history] == [0, 15, 30]
    # 0.1 nats for five bytes, once every first passage is the one that the LM prefers.
    assert history[-1]["eval_bits_per_byte"] == pytest.approx(0.1 / np.log(2) / 5)
    assert history[0]["eval_bits_per_byte"] > 2 * history[-1]["eval_bits_per_byte"]
    assert history[-1]["eval_base_minus_current"] > 0


def test_validation_looks_for_the_lms_best_among_candidates_of_every_source_and_down_the_list(
    tmp_path: Path,
) -> None:
    model, supervisor, tokenizer = made()
    queries = [pair["query"] for pair in PAIRS]
    ranking = np.argsort(-(model.encode_query(queries) @ model.encode_document(PASSAGES).T), axis=1)
    rank_of_best = (ranking == np.array(WANTED)[:, None]).argmax(1) + 1
    assert (rank_of_best > 3).any(), "nothing to find outside the base's own candidates"
    trainer = TrainerForLSR(
        model,
        arguments(tmp_path, n_docs=3, random_docs=5),
        PAIRS,
        PAIRS,
        LSRLoss(model, SHARP),
        passages=PASSAGES,
        supervisor=supervisor,
        tokenizer=tokenizer,
    )
    before = trainer.evaluate()
    assert trainer.evaluator.data.base_rows.shape == (6, 3)
    assert before["eval_mrr"] == pytest.approx((1 / rank_of_best).mean())
    assert before["eval_recall_at_10"] == 1.0, "eight passages, so all of them are among the first ten"
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_mrr"] == 1.0 and after["eval_mrr_minus_base"] > 0


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    def run(folder: Path, stop: int | None, resume: bool = False) -> TrainerForLSR:
        trainer = trainer_for(
            made(), folder, max_steps=6, save_strategy="steps", save_steps=3, refresh_every=2
        )
        if stop:
            trainer.add_callback(_StopAt(stop))
        trainer.train(resume_from_checkpoint=resume or None)
        return trainer

    whole = run(tmp_path / "whole", None)
    assert run(tmp_path / "cut", 3).state.global_step == 3
    resumed = run(tmp_path / "cut", None, resume=True)
    assert resumed.state.global_step == 6
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_run_begun_anew_retrieves_anew(tmp_path: Path) -> None:
    trainer_for(made(), tmp_path, max_steps=2).train()
    path = tmp_path / "candidates" / "generation_00000.npy"
    np.save(path, np.zeros_like(np.load(path)))
    trainer_for(made(), tmp_path, max_steps=2).train()
    assert np.load(path).any()


def test_candidates_that_are_never_refreshed_are_as_old_as_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_trainer, "_STATIC_GENERATION", 2)
    trainer = trainer_for(made(), tmp_path, max_steps=6, refresh_every=0, logging_steps=1)
    trainer.train()
    ages = [entry["staleness_steps"] for entry in trainer.state.log_history if "loss" in entry]
    assert ages == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("n_docs", [0, 1])
def test_a_retriever_that_does_not_move_has_not_collapsed(
    n_docs: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 30 epochs a generation; without candidates of its own its first passages are not known."""
    options = {
        "learning_rate": 0.0,
        "refresh_every": 30,
        "per_device_train_batch_size": 6,
        "logging_steps": 8,
    }
    trainer = trainer_for(
        made(), tmp_path, n_docs=n_docs, bm25_docs=1, random_docs=2, max_steps=32, **options
    )
    firsts = len(set(found(trainer.model, trainer.index)))
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logged and all(
        entry.get("unique_first_passages") == (firsts / 6 if n_docs else None) for entry in logged
    )
    assert "collapsing" not in caplog.text


def test_index_negatives_join_the_denominator(tmp_path: Path) -> None:
    batch = ObjectiveOptions(0.1, 0.5, kl=Direction.Q_P, denominator=Denominator.BATCH)
    trainer = trainer_for(made(), tmp_path, batch, n_docs=2, index_negatives=8, max_steps=2)
    sizes = []
    trainer.add_callback(_Watch(lambda: sizes.append(trainer.loss.last["log_p"].shape)))
    collate, widths = trainer.data_collator, []
    trainer.data_collator = lambda rows: widths.append(collate(rows)) or widths[-1]
    trainer.train()
    assert [batch["passage_sentence_embedding"].shape[0] for batch in widths] == [8, 8]
    assert set(sizes) == {(3, 2)}


def test_a_loop_of_ones_own_refreshes_the_index_when_it_says_so() -> None:
    model, supervisor, tokenizer = made()
    collator = DataCollatorForLSR(model, PASSAGES, supervisor, tokenizer, candidates=ALL, train_passages=True)
    loss, optimizer = LSRLoss(model, SHARP), torch.optim.Adam(model.parameters(), lr=0.05)
    first = collator.index
    for _ in range(25):
        loss(*split_batch(collator(PAIRS), "cpu")).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert collator.index is first
    collator.refresh()
    assert found(model, collator.index) == WANTED


def test_candidates_of_a_query_do_not_depend_on_its_batch() -> None:
    model, supervisor, tokenizer = made()
    collator = DataCollatorForLSR(
        model, PASSAGES, supervisor, tokenizer, candidates=CandidateOptions(1, 0, 3), seed=5
    )
    together, alone = collator(PAIRS), collator(PAIRS[3:4])
    kept = _passages_of(together, 3)
    assert kept.shape == (4, 32)
    torch.testing.assert_close(_passages_of(alone, 0), kept)


def _passages_of(batch: dict[str, torch.Tensor], example: int) -> torch.Tensor:
    return batch["passage_sentence_embedding"][batch["label"][example, :, 3].long()]


@pytest.mark.parametrize(
    ("rows", "passages", "message"),
    [
        ([{"query": "a"}], PASSAGES, "'continuation' is None; expected a text"),
        ([{"query": "a", "continuation": ""}], PASSAGES, "has no token to score"),
        ([{"query": 3, "continuation": "b"}], PASSAGES, "'query' is 3; expected a text"),
        (PAIRS, "one text", "expected at least one text"),
        (PAIRS, ["a", ""], "passage 1 is ''"),
    ],
)
def test_bad_texts_are_named(rows: Sequence[dict[str, Any]], passages: Any, message: str) -> None:
    model, supervisor, tokenizer = made()
    with pytest.raises(CorpusError, match=message):
        DataCollatorForLSR(model, passages, supervisor, tokenizer, candidates=ALL)(list(rows))


def test_an_index_of_other_passages_is_refused() -> None:
    model, supervisor, tokenizer = made()
    index = ArrayIndex(model.encode_document(PASSAGES[:-1]))
    with pytest.raises(ValueError, match="the index holds 7 rows, 0 to 6; expected 0 to 7"):
        DataCollatorForLSR(model, PASSAGES, supervisor, tokenizer, index)


def test_weights_of_words_are_refused(tmp_path: Path) -> None:
    parts = made()
    add_lexical(parts.model)
    with pytest.raises(OptionError, match=r"found one with lexical\.json.*replug train --lexical"):
        trainer_for(parts, tmp_path)


def test_a_loss_over_another_model_is_refused(tmp_path: Path) -> None:
    model, supervisor, tokenizer = made()
    with pytest.raises(OptionError, match="another model"):
        TrainerForLSR(
            model,
            arguments(tmp_path),
            PAIRS,
            loss=LSRLoss(made().model, SHARP),
            passages=PASSAGES,
            supervisor=supervisor,
            tokenizer=tokenizer,
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": "all"}, "train is 'all'; expected one of query, both"),
        ({"train": "both", "index_negatives": 5}, "index_negatives needs train='query'"),
        ({"refresh_every": -1}, "expected 0 or more"),
        ({"n_docs": 1}, "at least two candidates"),
    ],
)
def test_arguments_that_cannot_work_are_refused(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=message):
        arguments(tmp_path, **options)


@pytest.mark.parametrize(
    ("objective", "options", "message"),
    [
        (SHARP, {"index_negatives": 3}, "index_negatives=3 would join nothing"),
        (
            ObjectiveOptions(0.1, 0.5, contrastive_weight=0.5),
            {"per_device_train_batch_size": 1},
            "contrastive_weight=0.5 with per_device_train_batch_size=1",
        ),
    ],
)
def test_negatives_that_the_loss_has_no_use_for_or_not_enough_of_are_refused(
    objective: ObjectiveOptions, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=message):
        trainer_for(made(), tmp_path, objective, **options)


@pytest.mark.parametrize("options", [{"index_negatives": 3}, {"per_device_train_batch_size": 2}])
def test_negatives_join_the_contrastive_term_too(options: dict[str, Any], tmp_path: Path) -> None:
    objective = ObjectiveOptions(0.1, 0.5, contrastive_weight=0.5)
    trainer = trainer_for(
        made(),
        tmp_path,
        objective,
        **{"per_device_train_batch_size": 1, "n_docs": 2, "max_steps": 2, "logging_steps": 1} | options,
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "contrastive_loss" in entry]
    assert logged and all(entry["contrastive_loss"] > 0 for entry in logged)


class _StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args, state, control, **_):  # type: ignore[no-untyped-def]
        control.should_training_stop = state.global_step == self.step


class _Watch(TrainerCallback):
    def __init__(self, look: Any) -> None:
        self.look = look

    def on_step_end(self, args, state, control, **_):  # type: ignore[no-untyped-def]
        self.look()
