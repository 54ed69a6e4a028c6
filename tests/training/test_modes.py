"""What the modes are made of: schedules, re-ranking, the copy that embeds beside the training, LoRA, SIGReg."""

from __future__ import annotations

import math
from pathlib import Path
from threading import Event

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sentence_transformers import SentenceTransformer

from replug_client.errors import ArtefactError, OptionError
from replug_client.retriever.encoder import EncoderOptions, encode_passages, encode_queries, load_encoder
from replug_client.retriever.index import ArrayIndex, PassageIndex
from replug_client.retriever.projection import first_weights, with_projection
from replug_client.training.background import BackgroundEmbedding
from replug_client.training.choices import Direction
from replug_client.training.isotropy import epps_pulley, sigreg
from replug_client.training.lora import add_lora, has_lora, load_updates, merge_lora, save_updates
from replug_client.training.loss import ObjectiveOptions
from replug_client.training.modes import ModeOptions, RefreshSchedule
from replug_client.training.rerank import RerankedIndex
from replug_client.training.trainable import last_layers
from tests.retriever.index_contract import PassageIndexContract, unit_vectors
from tests.retriever.tiny import saved_encoder, sentences
from tests.training.planted import PASSAGES, QUERIES, Planted, base_model, recall_at_1, trainer_for

TEXTS = sentences(9)


@pytest.fixture
def model(tmp_path: Path) -> SentenceTransformer:
    return load_encoder(EncoderOptions(str(saved_encoder(tmp_path / "encoder")), device="cpu"))


def test_the_schedules() -> None:
    constant = [RefreshSchedule.CONSTANT.last_due(step, 3) for step in (0, 2, 3, 5, 6, 20)]
    assert constant == [0, 0, 3, 3, 6, 18]
    doubling = [RefreshSchedule.DOUBLING.last_due(step, 3) for step in (0, 2, 3, 5, 6, 9, 12, 23, 24, 50)]
    assert doubling == [0, 0, 3, 3, 6, 6, 12, 12, 24, 48]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"grad_cache_chunk": -1}, "--grad_cache_chunk -1"),
        ({"head_learning_rate": 0.0}, "--head_learning_rate 0.0"),
        ({"isotropy_weight": math.nan}, "--isotropy_weight nan"),
        ({"lora_alpha": 4}, "--lora_rank"),
        ({"retrieve_every": 3}, "--retrieve_every 3: expected a divisor of --refresh_every 8"),
        ({"retrieve_every": 2, "over_retrieve": 5}, "--over_retrieve 5: expected more than --n_docs 5"),
        ({"background_refresh": True}, "2 processes"),
    ],
)
def test_what_cannot_work_is_said(options: dict[str, float], expected: str) -> None:
    with pytest.raises(OptionError, match=expected):
        ModeOptions(**options).check("both", refresh_every=8, n_docs=5, processes=2)  # type: ignore[arg-type]


class TestRerankedIndex(PassageIndexContract):
    """Where nothing has changed since the index was made, it is an index like any other."""

    def make(
        self, folder: Path, vectors: npt.NDArray[np.float32], rows: npt.NDArray[np.int64] | None = None
    ) -> PassageIndex:
        index = ArrayIndex(vectors, rows)
        return RerankedIndex(index, index.vectors, depth=len(vectors))


def test_what_rose_since_is_found_if_it_was_within_depth() -> None:
    old, fresh = unit_vectors(6, 2), unit_vectors(6, 2, seed=1)
    query = old[:1]
    order = np.argsort(-(query @ old.T)[0])
    asked: list[int] = []

    def encode(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        asked.extend(rows.tolist())
        return fresh[rows]

    found = RerankedIndex(ArrayIndex(old), encode, depth=4).search(query, 2)
    assert sorted(asked) == sorted(order[:4].tolist()), "only what was found is encoded anew, once"
    among = sorted(order[:4], key=lambda row: -float(query[0] @ fresh[row]))
    assert found.rows.tolist() == [[int(row) for row in among[:2]]]
    np.testing.assert_allclose(found.scores[0], [query[0] @ fresh[row] for row in among[:2]], atol=1e-6)


def test_the_copy_embeds_the_weights_of_the_step_it_was_made_at(model: SentenceTransformer) -> None:
    go, texts = Event(), np.array(TEXTS)

    def encode(encoder: SentenceTransformer, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        assert go.wait(60)
        return encode_passages(encoder, texts[positions].tolist())

    before = encode_passages(model, TEXTS)
    beside = BackgroundEmbedding(model, len(TEXTS), encode)
    beside.start(40)
    assert beside.take() is None and beside.is_running
    with pytest.raises(RuntimeError, match="step 40"):
        beside.start(41)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    go.set()
    step, vectors = taken(beside)
    assert step == 40
    np.testing.assert_allclose(vectors, before, atol=1e-6)
    beside.start(80)
    step, vectors = taken(beside)
    np.testing.assert_allclose(vectors, encode_passages(model, TEXTS), atol=1e-6)
    assert step == 80 and np.abs(vectors - before).max() > 1e-2
    assert all(parameter.requires_grad for parameter in model.parameters())
    beside.close()


def taken(beside: BackgroundEmbedding) -> tuple[int, npt.NDArray[np.float32]]:
    assert beside._running is not None
    beside._running[1].exception(60)
    found = beside.take()
    assert found is not None
    return found


def test_an_error_beside_is_raised_where_it_is_taken_and_closing_waits_for_the_end(
    model: SentenceTransformer,
) -> None:
    def fail(*_: object) -> npt.NDArray[np.float32]:
        raise ArtefactError("no vectors")

    beside = BackgroundEmbedding(model, 3, fail)
    beside.start(1)
    with pytest.raises(ArtefactError, match="no vectors"):
        taken(beside)
    beside.close()


def test_a_rank_that_no_layer_has_is_refused(model: SentenceTransformer) -> None:
    with pytest.raises(OptionError, match=r"--lora_rank 100000: this encoder's layers are \d+ wide"):
        add_lora(model, 100_000)


def test_lora_starts_at_the_base_trains_little_and_merges_without_a_trace(
    model: SentenceTransformer, tmp_path: Path
) -> None:
    names = [name for name, _ in model.named_parameters()]
    before = encode_passages(model, TEXTS)
    add_lora(model, 2)
    np.testing.assert_allclose(encode_passages(model, TEXTS), before, atol=1e-6)
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    # Six linear layers in the one layer of this encoder, two factors each; none in the pooler.
    assert len(trained) == 12 and all("lora_" in name for name in trained)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    moved = encode_passages(model, TEXTS)
    assert np.abs(moved - before).max() > 1e-2
    save_updates(model, tmp_path)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    load_updates(model, tmp_path)
    np.testing.assert_allclose(encode_passages(model, TEXTS), moved, atol=1e-6)
    merge_lora(model)
    assert not has_lora(model) and [name for name, _ in model.named_parameters()] == names
    np.testing.assert_allclose(encode_passages(model, TEXTS), moved, atol=1e-5)
    with pytest.raises(ArtefactError, match="expected 0"):
        load_updates(model, tmp_path)
    with pytest.raises(ArtefactError, match="no such file"):
        load_updates(model, tmp_path / "nowhere")


def test_the_last_layers(model: SentenceTransformer) -> None:
    assert last_layers(model, 0) == []
    assert last_layers(model, 1) == [model[0].model.encoder.layer[0]]
    with pytest.raises(OptionError, match="this encoder has 1 layers"):
        last_layers(model, 2)


def test_a_head_alone_learns_what_the_lm_prefers(tmp_path: Path) -> None:
    """The LM prefers what is nearest in a plane that the base does not know of; a projection can find it."""
    base = base_model(tmp_path)
    base.requires_grad_(False)
    vectors = encode_passages(base, PASSAGES)
    plane = with_projection(base, np.random.default_rng(0).normal(size=(2, 16)))
    nearest = encode_queries(plane, QUERIES) @ encode_passages(plane, PASSAGES).T
    task = Planted(vectors, nearest.argmax(axis=1))
    model = with_projection(base, first_weights(vectors, 16))
    assert recall_at_1(model, task, reencode=True) <= 0.5
    objective = ObjectiveOptions(0.1, 0.5, kl=Direction.Q_P)
    trainer_for(model, task, tmp_path, objective, train_passages=False).train()
    assert recall_at_1(model, task, reencode=True) >= 0.9
    np.testing.assert_array_equal(encode_queries(base, TEXTS), encode_queries(base_model(tmp_path), TEXTS))


def test_the_statistic_on_a_value_worked_out_by_hand() -> None:
    """All samples at 0: the characteristic function is 1, and |1 - e^(-t^2/2)|^2 e^(-t^2/2) is integrated."""
    # Over the real line each e^(-a t^2 / 2) gives sqrt(2 pi / a); beyond 3 the weight is as good as nothing.
    exact = math.sqrt(2 * math.pi) * (1 - 2 / math.sqrt(2) + 1 / math.sqrt(3))
    found = float(epps_pulley(torch.zeros(5, 1, dtype=torch.float64)))
    assert abs(found - exact) < 0.02 * exact


def test_isotropic_vectors_score_low_and_collapsed_ones_high() -> None:
    generator = torch.Generator().manual_seed(0)
    even = torch.nn.functional.normalize(torch.randn(512, 32, generator=generator), dim=-1)
    few = torch.nn.functional.normalize(even * torch.tensor([1.0] * 4 + [0.05] * 28), dim=-1)
    same = even[:1].expand(512, 32) + 0.01 * even
    assert sigreg(even) < 0.01 < 0.05 < sigreg(few) < sigreg(same)
    torch.manual_seed(1)
    first = sigreg(even)
    torch.manual_seed(1)
    torch.testing.assert_close(sigreg(7 * even), first, msg="the scale is no part of it")
    with pytest.raises(ValueError, match="at least two"):
        sigreg(even[:1])


def test_its_gradient_spreads_vectors_out() -> None:
    torch.manual_seed(0)
    points = (torch.randn(1, 8) + 0.2 * torch.randn(64, 8)).requires_grad_(True)
    optimiser = torch.optim.Adam([points], lr=0.05)

    def cosine() -> float:
        units = torch.nn.functional.normalize(points.detach(), dim=-1)
        return float((units @ units.T).mean())

    assert cosine() > 0.8
    for _ in range(150):
        optimiser.zero_grad()
        sigreg(torch.nn.functional.normalize(points, dim=-1), 64).backward()
        optimiser.step()
    assert cosine() < 0.1
