"""`replug train` in each mode: what moves, what is saved, and that a run goes on as if it had not stopped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from replug_client.cli.app import main
from replug_client.retriever.encoder import EncoderOptions, encode_passages, load_encoder
from replug_client.retriever.lexical_weights import read_lexical, save_lexical
from replug_client.retriever.projection import project
from replug_client.training import refresh
from replug_client.training.callbacks import CompleteCheckpoints
from tests.cli.test_train import (
    QUERIES,
    assert_same_weights,
    basic,
    place,  # noqa: F401  (a fixture)
    read_run,
    replug,
    tuned,
)


def short(place: Path, output: str, *options: str) -> list[str]:  # noqa: F811
    command = [*basic(place, output), "--max_steps", "6", "--max_validation", "2", "--max_examples", "8"]
    no_layers = "head" in options and "--head_layers" not in options  # which have the learning rate
    for flag in ("--projection_size", *(["--learning_rate"] if no_layers else [])):
        drop = command.index(flag)
        del command[drop : drop + 2]
    return [*command, *options]


def interrupted(monkeypatch: pytest.MonkeyPatch, command: list[str], step: int) -> None:
    """Run the command until the checkpoint of this step is whole."""
    mark = CompleteCheckpoints.on_save

    def stop(self, args, state, control, **keywords):  # type: ignore[no-untyped-def]
        mark(self, args, state, control, **keywords)
        if state.global_step == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CompleteCheckpoints, "on_save", stop)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            main(command)


def test_a_head_is_trained_over_an_encoder_that_stays(
    place: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ["--train", "head", "--projection_dim", "8", "--head_learning_rate", "0.02"]

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a passage was encoded")

    with monkeypatch.context() as patch:
        patch.setattr(refresh, "encode_passages", never)
        assert replug(*short(place, "head", *options)) == 0
    base, model = tuned(place / "encoder"), tuned(place / "head")
    assert model.get_embedding_dimension() == 8
    kept = dict(base.named_parameters())
    assert all(
        np.array_equal(kept[name].detach(), value.detach())
        for name, value in model.named_parameters()
        if name in kept
    )
    vectors = base.encode_document(QUERIES)
    np.testing.assert_allclose(model.encode_document(QUERIES), project(model, [vectors]), atol=1e-6)
    weights = model.get_parameter("projection.linear.weight").detach().numpy()
    assert np.abs(weights @ weights.T - np.eye(8)).max() > 0.01, (
        "it began with orthonormal rows, and has not moved"
    )
    record = read_run(place / "head")
    assert record["options"]["modes"]["projection_dim"] == 8
    assert record["figures"]["log"][-1]["index_age_steps"] == 3.0
    # The same again, stopped and gone on with.
    command = short(place, "head-cut", *options)
    interrupted(monkeypatch, command, 4)
    assert replug(*command, "--resume") == 0
    assert_same_weights(place / "head", place / "head-cut")


def test_last_layers_are_trained_for_queries_only(place: Path) -> None:  # noqa: F811
    options = ["--train", "head", "--head_layers", "1", "--isotropy_weight", "0.1", "--index_negatives", "5"]
    options += ["--kl", "q-p", "--denominator", "batch"]
    assert replug(*short(place, "layers", *options)) == 0
    base, model = load_encoder(EncoderOptions(str(place / "encoder"), device="cpu")), tuned(place / "layers")
    expected = project(model, [encode_passages(base, QUERIES)])
    np.testing.assert_allclose(model.encode_document(QUERIES), expected, atol=1e-6)
    projected = project(model, [base.encode_query(QUERIES)])
    assert np.abs(model.encode_query(QUERIES) - projected).max() > 1e-3, "the layer has not moved"


def test_lora_is_saved_merged_and_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    options = ["--lora_rank", "2", "--learning_rate", "0.01"]
    assert replug(*short(place, "lora", *options)) == 0
    base, model = tuned(place / "encoder"), tuned(place / "lora")
    assert np.abs(model.encode_query(QUERIES) - base.encode_query(QUERIES)).max() > 1e-3
    np.testing.assert_array_equal(model.encode_document(QUERIES), base.encode_document(QUERIES))
    assert not any("lora" in name for name, _ in model.named_parameters())
    checkpoint = place / "lora" / "checkpoints" / "checkpoint-6"
    assert (checkpoint / "lora.safetensors").exists() and not list(checkpoint.rglob("model.safetensors"))
    command = short(place, "lora-cut", *options)
    interrupted(monkeypatch, command, 4)
    assert replug(*command, "--resume") == 0
    assert_same_weights(place / "lora", place / "lora-cut")


@pytest.mark.parametrize("train", ["query", "both"])
def test_words_are_weighed_beside_an_encoder_that_stays_plain(
    train: str,
    place: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = f"lexical-{train}"
    options = ["--train", train, "--lexical", "--lexical_learning_rate", "0.1", "--no_bf16", "--keep", "last"]
    assert replug(*short(place, output, *options)) == 0
    said = capsys.readouterr().err
    assert "weights of matching words" in said and "weight of terms" in said
    assert "Weights of words" in (place / output / "report.html").read_text()
    folder, record = place / output, read_run(place / output)
    weights = read_lexical(folder)
    assert weights is not None and any(abs(weight) > 0.01 for weight in weights)
    assert tuple(record["figures"]["lexical_weights"].values()) == weights
    assert record["figures"]["log"][-1]["lexical_terms"] != record["figures"]["log"][0]["lexical_terms"]
    assert record["options"]["modes"]["lexical"] is True
    plain, model = tuned(folder), load_encoder(EncoderOptions(str(folder), device="cpu"))
    np.testing.assert_allclose(plain.encode_query(QUERIES), model.encode_query(QUERIES), atol=1e-6)
    assert not any("lexical" in name for name, _ in plain.named_parameters())
    # What the commands find is by vectors and words; a pair of words in one passage decides where weights are huge.
    save_lexical(folder, (1000.0, 1000.0))
    text = json.loads((place / "corpus.jsonl").read_text().splitlines()[17])
    assert replug("compare", "--run", str(folder), "--query", text["text"], "--json", "--device", "cpu") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["tuned"].endswith(", by vectors and words")
    assert shown["queries"][0]["tuned"][0]["id"] == text["id"]
    assert shown["queries"][0]["tuned"][0]["similarity"] > 100
    # A second round begins from the encoder it was made of.
    again = short(place, "second", *options)
    again[again.index("--re_model_name_or_path") + 1] = str(folder)
    assert replug(*again) == 2
    assert "found lexical.json" in capsys.readouterr().err


def test_weights_that_stay_find_what_the_base_finds_whatever_the_precision_of_the_steps(place: Path) -> None:  # noqa: F811
    """The index was embedded in float32; validation embeds passages so, too, beside steps in bfloat16."""
    assert replug(*short(place, "still", "--train", "both", "--bf16", "--learning_rate", "0")) == 0
    validations = read_run(place / "still")["figures"]["validation"]
    assert len(validations) > 1
    assert {entry["changed"] for entry in validations} == {0.0}
    assert np.ptp([entry["kl"] for entry in validations]) < 1e-5  # in bfloat16: 1e-3


def test_a_seldom_refreshed_index_is_found_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Retrieval at each step, re-embedding after 1, 2 and 4 of them; what has aged is re-ranked."""
    options = ["--train", "both", "--no_bf16", "--refresh_every", "1", "--refresh_schedule", "doubling"]
    options += ["--over_retrieve", "6", "--lora_rank", "2", "--learning_rate", "0.01", "--keep", "last"]
    assert replug(*short(place, "both", *options)) == 0
    ages = [entry["index_age_steps"] for entry in read_run(place / "both")["figures"]["log"]]
    assert ages == [0.0, 0.0, 1.0, 0.0, 1.0, 2.0]
    assert [path.name for path in (place / "both" / "refreshed").iterdir()]
    command = short(place, "both-cut", *options, "--eval_every", "3")
    interrupted(monkeypatch, command, 3)
    assert (
        sorted(path.name for path in (place / "both-cut" / "refreshed").iterdir())[-1]
        == "passages_00000002.npy"
    )
    assert replug(*command, "--resume") == 0
    assert_same_weights(place / "both", place / "both-cut")
    model = tuned(place / "both")
    np.testing.assert_allclose(model.encode_document(QUERIES), model.encode_query(QUERIES), atol=1e-6)


def test_a_refresh_beside_the_training(place: Path) -> None:  # noqa: F811
    options = ["--train", "both", "--no_bf16", "--refresh_every", "2", "--background_refresh"]
    assert replug(*short(place, "beside", *options)) == 0
    log = read_run(place / "beside")["figures"]["log"]
    assert log[-1]["index_age_steps"] > 0, "what began at step 4 can be in use at step 6 at the earliest"


def test_beside_the_training_only_a_run_that_goes_on_waits_for_a_refresh(
    place: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It retrieves before the first re-embedding is due, and is stopped at a step where the second one is."""
    waited: list[int] = []
    reindex = refresh.Refresher._reindex
    monkeypatch.setattr(
        refresh.Refresher, "_reindex", lambda self, step: (waited.append(step), reindex(self, step))
    )
    options = ["--train", "both", "--no_bf16", "--refresh_every", "2", "--retrieve_every", "1"]
    command = short(place, "beside-cut", *options, "--background_refresh", "--eval_every", "4")
    interrupted(monkeypatch, command, 4)
    assert waited == []
    assert replug(*command, "--resume") == 0
    assert waited == [4]
    log = read_run(place / "beside-cut")["figures"]["log"]
    assert [entry["index_age_steps"] for entry in log[4:]] == [1.0, 2.0]


@pytest.mark.parametrize("train", ["query", "head"])
def test_a_run_that_never_refreshes_is_warned_where_its_passages_move(train: str, place: Path) -> None:  # noqa: F811
    options = ["--train", train, "--refresh_every", "0", "--stale_after", "4"]
    assert replug(*short(place, f"static-{train}", *options)) == 0
    figures, steps = read_run(place / f"static-{train}")["figures"], [1, 2, 3, 4, 5, 6]
    assert [entry["staleness_steps"] for entry in figures["log"]] == steps
    assert [entry.get("index_age_steps") for entry in figures["log"]] == (
        steps if train == "head" else [None] * 6
    )
    stale = [alarm for alarm in figures["alarms"] if alarm["name"] == "stale"]
    assert len(stale) == (train == "head")
    assert all("--refresh_every 0 keeps the base's: give a number" in alarm["message"] for alarm in stale)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--projection_dim", "8"], "--projection_dim goes with --train head"),
        (["--train", "head", "--projection_dim", "17"], "--projection_dim 17"),
        (["--train", "head", "--head_layers", "3"], "--head_layers 3"),
        (["--train", "head", "--lora_rank", "2"], "--lora_rank goes with --train query or both"),
        (["--head_learning_rate", "5"], "--head_learning_rate goes with --train head; found --train query"),
        (["--train", "head", "--learning_rate", "9"], "--learning_rate is for layers that are trained"),
        (["--train", "head", "--dropout", "0.5"], "--dropout is for layers that are trained"),
        (["--train", "head", "--gradient_checkpointing"], "Give --head_layers, or leave it out"),
        (["--train", "head", "--train_word_embeddings"], "found --train head, which leaves them"),
        (["--train", "head", "--head_layers", "1", "--train_word_embeddings"], "found --train head"),
        (["--lora_rank", "2", "--train_word_embeddings"], "found --lora_rank 2, which leaves them"),
        (["--train", "both", "--over_retrieve", "9"], "--over_retrieve would change nothing"),
        (
            ["--train", "both", "--over_retrieve", "9", "--lexical"],
            "found --lexical, which retrieves by words",
        ),
        (["--train", "head", "--lexical"], "--lexical goes with --train query or both"),
        (["--lexical_learning_rate", "0.1"], "for the weights that --lexical adds"),
        (["--lexical", "--lexical_learning_rate", "0"], "--lexical_learning_rate 0.0"),
    ],
)
def test_what_does_not_go_together_is_refused(
    options: list[str],
    expected: str,
    place: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert replug(*short(place, "refused", *options)) == 2
    message = capsys.readouterr().err
    assert expected in message and "Traceback" not in message
    assert not (place / "refused").exists()
