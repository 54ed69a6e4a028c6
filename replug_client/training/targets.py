"""The temperatures of P and Q for a run: as given, or calibrated on the first candidates."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from replug_client.errors import OptionError
from replug_client.retriever.encoder import encode_queries
from replug_client.retriever.index import positions
from replug_client.training.calibration import (
    Calibration,
    comparable,
    normalised_entropy,
    temperature_for_entropy,
)
from replug_client.training.candidates import NO_PASSAGE, Rows
from replug_client.training.choices import Aggregation, Denominator
from replug_client.training.collator import IndexNegatives
from replug_client.training.loss import ObjectiveOptions
from replug_client.training.objectives import log_distribution, target_scores
from replug_client.training.options import TargetOptions, TrainOptions
from replug_client.training.prepare import Prepared

logger = logging.getLogger(__name__)

_CALIBRATION_EXAMPLES = 128
# A probability below this is as good as 0 at the lowest temperature that is tried.
_TOLD_APART = 1e-5
_UNITS = {
    Aggregation.MEAN: "nats per token",
    Aggregation.SUM: "nats",
    Aggregation.BYTE: "nats per byte",
    Aggregation.PROBABILITY: "of probability",
}


@dataclass(frozen=True, slots=True)
class ScoredSample:
    """The base's candidates of some training examples, scored.

    Attributes:
        numbers: ``(n,)`` the examples.
        vectors: ``(n, D)`` the base's vectors of their queries.
        rows: ``(n, K)`` corpus rows of the candidates, ``NO_PASSAGE`` where there is none.
        similarity: ``(n, K)`` float64 similarities under the base.
        scores: ``(n, K)`` float64, what Q is made of.
        mask: ``(n, K)`` bool, where there is a candidate at all.
    """

    numbers: Rows
    vectors: npt.NDArray[np.float32]
    rows: Rows
    similarity: Tensor
    scores: Tensor
    mask: Tensor


def calibrate(options: TrainOptions, prepared: Prepared) -> ObjectiveOptions:
    """Fix the temperatures: as given, or (auto) from the scores of a sample of the first candidates.

    Beta comes first: it gives Q the entropy that was asked for, as a share of log K. Then gamma: it gives P under the
    base the same share of the log of the number of passages that P is spread over, be they the query's candidates
    or the whole batch's with those of the index. What was chosen is logged with the figures that it was chosen by.
    """
    target = options.target
    gold, score = target.temperature_gold, target.temperature_score
    if gold is None or score is None:
        numbers = prepared.schedule(options.steps).epoch(0).reshape(-1)[:_CALIBRATION_EXAMPLES]
        sample = scored_sample(options, prepared, numbers)
        if gold is None:
            chosen = _calibrated_gold(target, sample)
            gold = chosen.temperature
            logger.info(
                "temperature_gold = %.4g (auto): the scores of one query's candidates differ by %.3g %s (median "
                "standard deviation of %d examples), so Q's median entropy is %.2f of log K, as --gold_entropy %g "
                "asks; the middle half of the examples lies between %.2f and %.2f",
                *(gold, chosen.spread, _UNITS[target.score], chosen.examples),
                *(chosen.entropy, target.gold_entropy, *chosen.quartiles),
            )
        if score is None:
            score = _matching_temperature(options, prepared, sample, gold)
    return ObjectiveOptions(
        temperature_score=score,
        temperature_gold=gold,
        score=target.score,
        kl=target.kl,
        denominator=target.denominator,
        objective=target.objective,
        contrastive_weight=target.contrastive_weight,
    )


def _calibrated_gold(target: TargetOptions, sample: ScoredSample) -> Calibration:
    """Beta for the entropy that was asked for.

    Raises:
        OptionError: no beta gives it; where that is for probabilities near 0, it says so.
    """
    try:
        return temperature_for_entropy(sample.scores, target.gold_entropy, sample.mask)
    except OptionError as error:
        likeliest = float(sample.scores.masked_fill(~sample.mask, 0.0).amax(dim=-1).median())
        if target.score is not Aggregation.PROBABILITY or likeliest > _TOLD_APART:
            raise
        raise OptionError(
            f"--score probability: found {likeliest:.1e} for the likeliest of a query's candidates (median), too near "
            "0 for any --temperature_gold to tell them apart. Take --score mean, or a shorter --pred_len."
        ) from error


def index_negatives(options: TrainOptions, prepared: Prepared) -> IndexNegatives | None:
    """The passages of the index that join each batch's, where the options ask for some."""
    count = options.target.index_negatives
    return IndexNegatives(prepared.indexed, count, options.steps.seed) if count else None


def _matching_temperature(
    options: TrainOptions, prepared: Prepared, sample: ScoredSample, gold: float
) -> float:
    """Gamma at which P under the base is as flat as Q, so that the KL does not begin by flattening P."""
    compared, own = comparable(sample.scores, sample.mask)
    q_entropy = float(normalised_entropy(log_distribution(compared, gold, own), own).median())
    wanted = min(max(q_entropy, 0.05), 0.95)
    if options.target.denominator is Denominator.CANDIDATES:
        similarity, mask, over = (
            _own_similarity(options, prepared, sample),
            sample.mask,
            "one query's candidates",
        )
    else:
        similarity, mask = _batch_similarity(options, prepared, sample)
        over = f"a batch's passages ({int(mask.sum(-1).median()):,})"
    if options.modes.lexical:
        over += ", by vectors and words as if both counted the same,"
    chosen = temperature_for_entropy(similarity, wanted, mask)
    logger.info(
        "temperature_score = %.4g (auto): the similarities of %s differ by %.3g (median standard deviation), so P's "
        "median entropy under the base is %.2f of the log of their number; Q's is %.2f of log K, and a P much sharper "
        "than Q would begin by unlearning its order",
        *(chosen.temperature, over, chosen.spread, chosen.entropy, q_entropy),
    )
    return chosen.temperature


def _own_similarity(options: TrainOptions, prepared: Prepared, sample: ScoredSample) -> Tensor:
    """``(n, K)`` float64 similarities under the base to a query's own candidates."""
    if not options.modes.lexical:
        return sample.similarity
    mask = sample.mask.numpy()
    rows = np.where(mask, sample.rows, prepared.indexed[0])
    matches = prepared.matches()
    queries = matches.queries([prepared.sets.train[number].query for number in sample.numbers])
    matched = matches.of_own(queries, positions(prepared.indexed, rows.ravel()).reshape(rows.shape))
    return torch.from_numpy(with_words(sample.similarity.numpy(), matched, mask))


def with_words(
    similarity: npt.NDArray[np.floating], matched: npt.NDArray[np.floating], mask: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Similarities as a hybrid retriever may have them after training: words differ as much as vectors do.

    At its weights of 0 a gamma would be chosen for vectors alone, and P could only become sharper than Q as words come
    to count.

    Args:
        similarity: ``(n, N)`` of the vectors.
        matched: ``(n, N, 2)`` of the words.
        mask: ``(n, N)`` where there is a passage.
    """
    total = matched.sum(axis=-1)
    spread = total[mask].std()
    weight = similarity[mask].std() / spread if spread > 0 else 0.0
    sums: npt.NDArray[np.float64] = similarity + weight * total.astype(np.float64)
    return sums


def _batch_similarity(
    options: TrainOptions, prepared: Prepared, sample: ScoredSample
) -> tuple[Tensor, Tensor]:
    """Similarities under the base to all passages of P's denominator, the sample cut into batches as in training.

    Returns:
        ``(n, N)`` float64 similarities, and where there is a passage: batches differ in how many they have.
    """
    negatives = index_negatives(options, prepared)
    size = options.steps.batch_size * options.steps.processes
    parts, words = [], []
    for start in range(0, len(sample.numbers), size):
        batch = slice(start, start + size)
        rows = sample.rows[batch]
        passages = rows[rows != NO_PASSAGE]
        if negatives is not None:
            passages = np.concatenate([passages, negatives.draw(sample.numbers[batch])])
        passages = np.unique(passages)
        parts.append(sample.vectors[batch] @ prepared.index.vectors(passages).T)
        if options.modes.lexical:
            queries = [prepared.sets.train[number].query for number in sample.numbers[batch]]
            words.append(prepared.word_matches(queries, passages))
    similarity = np.zeros((len(sample.numbers), max(part.shape[1] for part in parts)))
    mask = np.zeros(similarity.shape, dtype=bool)
    for number, part in enumerate(parts):
        place = np.s_[number * size : number * size + len(part), : part.shape[1]]
        similarity[place], mask[place] = part, True
    if words:
        matched = np.zeros((*mask.shape, words[0].shape[-1]))
        for number, word in enumerate(words):
            matched[number * size : number * size + len(word), : word.shape[1]] = word
        similarity = with_words(similarity, matched, mask)
    return torch.from_numpy(similarity), torch.from_numpy(mask)


def scored_sample(options: TrainOptions, prepared: Prepared, numbers: Rows) -> ScoredSample:
    """The base's candidates of the ``(n,)`` numbered training examples, scored by the supervisor."""
    examples = [prepared.sets.train[number] for number in numbers]
    vectors = encode_queries(prepared.base, [example.query for example in examples])
    rows = prepared.miner.mine(vectors, [example.query for example in examples], numbers)
    rows = prepared.processes.same(rows)
    mask = rows != NO_PASSAGE
    log_likelihoods = prepared.log_likelihoods(numbers, rows)
    passages = prepared.index.vectors(np.where(mask, rows, prepared.indexed[0]))
    scores = target_scores(
        torch.from_numpy(log_likelihoods),
        torch.tensor([len(example.continuation_ids) for example in examples]),
        torch.tensor([example.num_bytes for example in examples]),
        options.target.score,
        options.target.objective,
        torch.from_numpy(mask),
    )
    similarity = torch.from_numpy(np.einsum("nd,nkd->nk", vectors, passages)).double()
    return ScoredSample(numbers, vectors, rows, similarity, scores, torch.from_numpy(mask))
