"""From documents to examples: the split, the counts, and what is left out."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from replug_client.corpus.store import PassageStore
from replug_client.errors import CorpusError
from replug_client.training.data import ExampleSets, is_held_out, load_examples, sample
from replug_client.training.options import DataOptions
from tests.retriever.tiny import store_of


class Words:
    """A tokenizer of one token a word, with the space before it."""

    bos_id = None

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        ids, offsets, start = [], [], 0
        while start < len(text):
            end = text.find(" ", start + 1)
            end = len(text) if end < 0 else end
            ids.append(self._ids.setdefault(text[start:end], len(self._ids)))
            offsets.append((start, end))
            start = end
        return ids, offsets

    def encode(self, text: str) -> list[int]:
        return self.encode_with_offsets(text)[0]

    def decode(self, ids: Any) -> str:
        names = {number: word for word, number in self._ids.items()}
        return "".join(names[number] for number in ids)


def text_of(number: int, words: int = 20) -> str:
    generator = random.Random(number)
    return " ".join(f"w{generator.randrange(10**6)}" for _ in range(words))


def written(path: Path, texts: dict[str, str]) -> Path:
    path.write_text("\n".join(json.dumps({"id": name, "text": text}) for name, text in texts.items()))
    return path


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., ExampleSets]:
    def load_them(
        texts: dict[str, str], passages: list[str], validation: dict[str, str] | None = None, **options: Any
    ) -> ExampleSets:
        store: PassageStore = store_of(tmp_path / "store", passages)
        chosen = {"context_len": 4, "pred_len": 4, "min_pred_len": 2} | options
        extra = () if validation is None else (written(tmp_path / "validation.jsonl", validation),)
        data = DataOptions(
            passages=(),
            passages_embeddings=(),
            data=(written(tmp_path / "documents.jsonl", texts),),
            validation_data=extra,
            **chosen,
        )
        return load_examples(data, store, Words(), seed=1)

    return load_them


DOCUMENTS = {f"d{number}": text_of(number) for number in range(60)}


def test_no_document_is_in_both_sets_and_none_is_lost(load: Callable[..., ExampleSets]) -> None:
    sets = load(DOCUMENTS, ["something else"], validation_fraction=0.3)
    train, validation = ({example.document_id for example in side} for side in (sets.train, sets.validation))
    assert not train & validation
    assert train | validation == set(DOCUMENTS)
    assert validation == {name for name in DOCUMENTS if is_held_out(name, 0.3)}
    assert 8 <= len(validation) <= 28
    # 20 words: windows of 8 + 8, then 4 words that leave no continuation.
    for name, side in (("train", sets.train), ("validation", sets.validation)):
        counts = sets.counts[name]
        assert counts["documents"] == len({example.document_id for example in side})
        assert counts["used"] == len(side) == 2 * counts["documents"]
        assert counts["documents_in_corpus"] == counts["examples_sharing_a_run"] == 0
        assert counts["dropped_short"] == counts["documents"]
    for example in sets.train:
        assert example.query + example.continuation in DOCUMENTS[example.document_id]
        assert example.num_bytes == len(example.continuation.encode())


def test_who_is_held_out_depends_on_the_document_alone() -> None:
    held = {
        fraction: {n for n in range(3000) if is_held_out(f"x{n}", fraction)}
        for fraction in (0.0, 0.1, 0.5, 1)
    }
    assert held[0.0] == set() and held[1] == set(range(3000))
    assert held[0.1] < held[0.5], "a larger share only adds documents"
    assert len(held[0.1]) == pytest.approx(300, abs=60)


def test_documents_that_stand_in_the_corpus_are_left_out_of_both_sets(
    load: Callable[..., ExampleSets],
) -> None:
    texts = DOCUMENTS | {"p0": text_of(1000)}  # the corpus' first passage has this id, and another text
    copies = [*[name for name in DOCUMENTS if is_held_out(name, 0.3)][:2], "d3"]
    passages = ["other", *(DOCUMENTS[name].replace(" ", "  ") for name in copies)]
    sets = load(texts, passages, validation_fraction=0.3)
    left = {example.document_id for example in (*sets.train, *sets.validation)}
    assert left == set(DOCUMENTS) - set(copies)
    dropped = [sets.counts[name]["documents_in_corpus"] for name in ("train", "validation")]
    assert sum(dropped) == 4 and dropped[1] >= 2


def test_of_documents_with_one_id_that_alone_is_left_out_whose_text_stands_in_the_corpus(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Row numbers are ids that several files share."""
    store = store_of(tmp_path / "store", ["other", DOCUMENTS["d1"]])
    files = [
        written(tmp_path / "first.jsonl", {"0": DOCUMENTS["d1"], "1": DOCUMENTS["d2"]}),
        written(tmp_path / "second.jsonl", {"0": DOCUMENTS["d3"], "1": DOCUMENTS["d4"]}),
    ]
    data = DataOptions(
        (), (), tuple(files), validation_fraction=0.0, context_len=4, pred_len=4, min_pred_len=2
    )
    sets = load_examples(data, store, Words(), seed=1)
    assert sets.counts["train"]["documents_in_corpus"] == 1 and sets.counts["train"]["documents"] == 3
    assert any(example.query in DOCUMENTS["d3"] for example in sets.train)
    assert "1 of 4 documents also stand in the corpus" in caplog.text


def test_where_ids_alone_are_the_same_it_says_what_that_may_be(
    load: Callable[..., ExampleSets], caplog: pytest.LogCaptureFixture
) -> None:
    load({"p0": text_of(5), "d1": text_of(6)}, ["other"], validation_fraction=0.0)
    assert "no text is the same, so where ids are mere row numbers" in caplog.text


def test_the_ngram_guard_leaves_out_examples_that_share_a_run(load: Callable[..., ExampleSets]) -> None:
    words = DOCUMENTS["d5"].split()
    passage = "x " + " ".join(words[9:14]) + " y"  # five words, within the second window of d5
    free = load(DOCUMENTS, [passage], validation_fraction=0.0)
    guarded = load(DOCUMENTS, [passage], validation_fraction=0.0, ngram_guard=5)
    gone = set(free.train) - set(guarded.train)
    assert {(example.document_id, " ".join(words[8:12]) in example.query) for example in gone} == {
        ("d5", True)
    }
    assert guarded.counts["train"]["examples_sharing_a_run"] == 1
    assert load(DOCUMENTS, [passage], validation_fraction=0.0, ngram_guard=6).train == free.train


def test_validation_data_of_its_own_leaves_all_of_data_for_training(load: Callable[..., ExampleSets]) -> None:
    own = {f"v{number}": text_of(500 + number) for number in range(5)}
    sets = load(DOCUMENTS, ["other"], own, stride=2)
    assert {example.document_id for example in sets.train} == set(DOCUMENTS)
    assert {example.document_id for example in sets.validation} == set(own)
    assert len(sets.train) > 2 * len(DOCUMENTS), "the stride makes training windows overlap"
    assert len(sets.validation) == 2 * len(own), "validation windows never do"


def test_a_document_in_both_files_is_validated_on_alone(load: Callable[..., ExampleSets]) -> None:
    own = {"row 1": DOCUMENTS["d1"] + "  ", "d2": text_of(501)}  # the text of d1, and the id of d2
    sets = load(DOCUMENTS, ["other"], own)
    assert {example.document_id for example in sets.train} == set(DOCUMENTS) - {"d1"}
    assert {example.document_id for example in sets.validation} == {"row 1", "d2"}
    assert sets.counts["train"]["documents_in_validation"] == 1


def test_limits_draw_examples_at_random_in_their_first_order(load: Callable[..., ExampleSets]) -> None:
    sets = load(DOCUMENTS, ["other"], validation_fraction=0.3, max_examples=10, max_validation=3)
    everything = load(DOCUMENTS, ["other"], validation_fraction=0.3)
    assert (len(sets.train), len(sets.validation)) == (10, 3)
    places = [everything.train.index(example) for example in sets.train]
    assert places == sorted(places) and places != list(range(10))
    assert sets.counts["train"]["used"] == 10


def test_the_same_seed_draws_the_same_sample() -> None:
    numbers: list[Any] = list(range(100))
    assert sample(numbers, 10, 1) == sample(numbers, 10, 1) != sample(numbers, 10, 2)
    assert sample(numbers, 100, 1) == numbers == sample(numbers, None, 1)
    assert sample(numbers, 0, 1) == []


def test_nothing_left_to_train_on_is_an_error_that_says_what_was_found(
    load: Callable[..., ExampleSets],
) -> None:
    with pytest.raises(
        CorpusError, match=r"no training example is left of .*documents\.jsonl.*--context_len 400"
    ):
        load(DOCUMENTS, ["other"], context_len=400)


def test_of_few_documents_one_is_held_out_all_the_same(load: Callable[..., ExampleSets]) -> None:
    names = [name for name in (f"d{number}" for number in range(60)) if not is_held_out(name, 0.1)][:4]
    assert len(names) == 4
    sets = load({name: text_of(number) for number, name in enumerate(names)}, ["elsewhere entirely"])
    validated = {example.document_id for example in sets.validation}
    assert len(validated) == 1
    assert {example.document_id for example in sets.train} == set(names) - validated


@pytest.mark.parametrize("would_be_held_out", [False, True])
def test_a_single_document_is_trained_on(load: Callable[..., ExampleSets], would_be_held_out: bool) -> None:
    names = (f"d{number}" for number in range(60))
    name = next(name for name in names if is_held_out(name, 0.1) == would_be_held_out)
    sets = load({name: text_of(1)}, ["elsewhere entirely"])
    assert sets.train
    assert not sets.validation
