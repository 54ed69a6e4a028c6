"""LSR as a sentence-transformers loss: gradients flow into the retriever, never into the supervisor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from replug_client.training.objectives import (
    Aggregation,
    Denominator,
    Direction,
    aggregate,
    log_distribution,
    lsr_loss,
    spread_to_batch,
)


@dataclass(frozen=True, slots=True)
class ObjectiveOptions:
    """What the retriever is trained on.

    Attributes:
        temperature_score: gamma, of the retrieval distribution P.
        temperature_gold: beta, of the target distribution Q.
        score: Aggregation of the continuation's log-probs.
        kl: Direction of the divergence.
        denominator: Whether P's mass is shared by the query's candidates or by the whole batch's.
    """

    temperature_score: float = 0.1
    temperature_gold: float = 0.1
    score: Aggregation = Aggregation.MEAN
    kl: Direction = Direction.P_Q
    denominator: Denominator = Denominator.CANDIDATES

    def __post_init__(self) -> None:
        if self.denominator is Denominator.BATCH and self.kl is Direction.P_Q:
            raise ValueError(
                "the denominator 'batch' needs the direction 'q-p': Q is 0 on other queries' passages, "
                "so KL(P||Q) would be infinite. Use --kl q-p, or --denominator candidates."
            )


class LSRLoss(nn.Module):
    """REPLUG LSR (Shi et al. 2023, section 4): KL between the retrieval and the LM distribution.

    Called as sentence-transformers calls every loss: ``loss(sentence_features, labels)``.

    * ``sentence_features[0]``: the tokenised queries, encoded here with gradient.
    * ``sentence_features[1]``: the batch's N distinct candidate passages, either tokenised (``input_ids``:
      encoded here with gradient) or as frozen vectors (``sentence_embedding``, ``(N, D)``).
    * ``labels``: ``(batch, K, 4)`` float64, made by :class:`~replug_client.training.collator.LSRDataCollator`:
      log-likelihood (nats), number of tokens, number of bytes, and the candidate's column among the N
      passages (-1 where there is no candidate; such entries are masked in P and in Q alike).

    Similarities are dot products of the model's output: cosines, where the model normalises.

    Example:
        >>> from replug_client.training.loss import LSRLoss, ObjectiveOptions
        >>> options = ObjectiveOptions(temperature_score=0.05, temperature_gold=0.02, kl=Direction.Q_P)
        >>> options.kl.value
        'q-p'
    """

    def __init__(self, model: SentenceTransformer, options: ObjectiveOptions) -> None:
        super().__init__()
        self.model = model
        self.options = options
        self.last: dict[str, Tensor] = {}

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """The loss of one batch, a scalar in nats."""
        queries, passages = sentence_features
        query_vectors = self.model(queries)["sentence_embedding"].float()
        frozen = "input_ids" not in passages
        passage_vectors = (
            passages["sentence_embedding"] if frozen else self.model(passages)["sentence_embedding"]
        )
        similarity = query_vectors @ passage_vectors.float().T
        return self.from_similarity(similarity, labels)

    def from_similarity(self, similarity: Tensor, labels: Tensor) -> Tensor:
        """The loss from ``(batch, N)`` similarities and the labels described above."""
        options = self.options
        columns = labels[..., 3].long()
        mask = columns >= 0
        scores = aggregate(labels[..., 0], labels[:, 0, 1], labels[:, 0, 2], options.score)
        log_q = log_distribution(scores, options.temperature_gold, mask).to(similarity.dtype)
        own = similarity.gather(1, columns.clamp(min=0))
        log_p_own = log_distribution(own, options.temperature_score, mask)
        self.last = {
            "similarity": own.detach(),
            "scores": scores,
            "mask": mask,
            "log_p": log_p_own.detach(),
            "log_q": log_q,
        }
        if options.denominator is Denominator.CANDIDATES:
            return lsr_loss(log_p_own, log_q, options.kl)
        log_p = log_distribution(similarity, options.temperature_score)
        return lsr_loss(log_p, spread_to_batch(log_q, columns, similarity.shape[1]), options.kl)

    def get_config_dict(self) -> dict[str, Any]:
        """The objective's options, for the model card."""
        return asdict(self.options)

    @property
    def citation(self) -> str:
        """BibTeX of the method."""
        return """
@article{shi2023replug,
    title = {{REPLUG}: Retrieval-Augmented Black-Box Language Models},
    author = {Shi, Weijia and Min, Sewon and Yasunaga, Michihiro and Seo, Minjoon and James, Rich
              and Lewis, Mike and Zettlemoyer, Luke and Yih, Wen-tau},
    journal = {arXiv preprint arXiv:2301.12652},
    year = {2023}
}
"""
