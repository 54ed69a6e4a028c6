"""The objectives as a sentence-transformers loss: gradients flow into the retriever, never into the supervisor."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from replug_client.retriever.lexical_weights import PARAMETER
from replug_client.retriever.projection import ProjectedEncoder
from replug_client.training.choices import (
    Aggregation,
    Denominator,
    Direction,
    Objective,
    check_objective,
    direction_of,
    named,
)
from replug_client.training.distributed import join_parts, of_all
from replug_client.training.grad_cache import encode_in_chunks
from replug_client.training.isotropy import sigreg
from replug_client.training.objectives import (
    aggregate,
    all_but,
    info_nce,
    log_distribution,
    lsr_loss,
    marginal_loss,
    spread_to_batch,
    target_scores,
)
from replug_client.training.sources import SOURCES

_CHOICES: dict[str, type[StrEnum]] = {
    "score": Aggregation,
    "kl": Direction,
    "denominator": Denominator,
    "objective": Objective,
}


@dataclass(frozen=True, slots=True)
class ObjectiveOptions:
    """What the retriever is trained on. Choices may be given by name: ``kl="q-p"``, ``score="sum"``.

    Attributes:
        temperature_score: gamma, of the retrieval distribution P.
        temperature_gold: beta, of the target distribution Q.
        score: Aggregation of the continuation's log-probs.
        kl: Direction of the divergence; None becomes the objective's own (``lsr``: p-q, else q-p).
        denominator: Whether P's mass is shared by the query's candidates or by the whole batch's.
        objective: Which loss.
        contrastive_weight: Of the InfoNCE term beside it; 0 leaves it out.

    Raises:
        OptionError: options that cannot be computed together, or no choice of that name.
    """

    temperature_score: float = 0.1
    temperature_gold: float = 0.1
    score: Aggregation = Aggregation.MEAN
    kl: Direction | None = None
    denominator: Denominator = Denominator.CANDIDATES
    objective: Objective = Objective.LSR
    contrastive_weight: float = 0.0

    def __post_init__(self) -> None:
        for name, kind in _CHOICES.items():
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, named(kind, value, name))
        check_objective(self.objective, self.score, self.kl, self.denominator, self.contrastive_weight)
        object.__setattr__(self, "kl", direction_of(self.objective, self.kl))


class LSRLoss(nn.Module):
    """REPLUG LSR (Shi et al. 2023, section 4): KL between the retrieval and the LM distribution.

    Or another objective between the two, as the options say: :mod:`replug_client.training.objectives` has the
    equations. Called as sentence-transformers calls every loss: ``loss(sentence_features, labels)``.

    * ``sentence_features[0]``: the tokenised queries, encoded here with gradient.
    * ``sentence_features[1]``: the batch's N distinct candidate passages, either tokenised (``input_ids``:
      encoded here with gradient) or as frozen vectors (``sentence_embedding``, ``(N, D)``). Of several
      processes, each encodes a part of the tokenised ones, and ``columns`` says what N is.
    * ``labels``: ``(batch, K, 4)`` float64, made by :class:`~replug_client.training.collator.LSRDataCollator`:
      log-likelihood (nats), number of tokens, number of bytes, and the candidate's column among the N
      passages (-1 where there is no candidate). How many candidates there are may differ from query to
      query: missing ones, and those whose log-likelihood is not finite (scoring failed), are masked in P and
      in Q alike.

    Similarities are dot products of the model's output, cut to its ``truncate_dim`` where it has one, in float32:
    cosines, where the model normalises. Where the queries come with ``lexical`` ``(batch, N, 2)``, how well words
    match, these are added by the weights that the model has for them (:mod:`replug_client.retriever.hybrid`). Without
    ``options``, :class:`ObjectiveOptions`' own hold, the paper's.

    Of a :class:`~replug_client.retriever.projection.ProjectedEncoder` ``sentence_embedding`` is the base's, of
    queries too where they come so, and is projected here with gradient. ``isotropy_weight`` adds
    :func:`~replug_client.training.isotropy.sigreg` of the vectors that have a gradient.

    ``grad_cache_chunk`` above 0 encodes passages so many at a time, in the memory of one chunk and with the same
    gradient (:mod:`replug_client.training.grad_cache`).

    Example:
        >>> import torch
        >>> from replug_client.training import LSRLoss, Objective, ObjectiveOptions
        >>> from replug_client.training.toy import toy
        >>> passages = ["paris lies in france", "cats chase mice"]
        >>> model, supervisor, _ = toy(["capital", *passages])
        >>> supervisor.close()  # here the scores are there: nats, tokens, bytes, and the passage's column
        >>> labels = torch.tensor([[[-2.0, 1, 5, 0], [-5.0, 1, 5, 1]]], dtype=torch.float64)
        >>> def features():
        ...     return [model.preprocess(["capital"]), model.preprocess(passages)]
        >>> loss = LSRLoss(model, ObjectiveOptions(0.1, 0.5, objective=Objective.PDIST))
        >>> value = loss(features(), labels)
        >>> value.backward()
        >>> [bool(weight.grad.abs().sum() > 0) for weight in model.parameters()]  # the gradient is the retriever's
        [True]
        >>> torch.optim.SGD(model.parameters(), lr=0.3).step()
        >>> bool(loss(features(), labels) < value)
        True
        >>> similarity = model.similarity(model.encode_query(["capital"]), model.encode_document(passages))
        >>> similarity.argmax().item()  # the passage behind which the continuation is likelier
        0
    """

    def __init__(
        self,
        model: SentenceTransformer,
        options: ObjectiveOptions | None = None,
        *,
        grad_cache_chunk: int = 0,
        isotropy_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.options = options or ObjectiveOptions()
        self._chunk = grad_cache_chunk
        self._isotropy_weight = isotropy_weight
        self._projects = isinstance(model, ProjectedEncoder)
        self.last: dict[str, Tensor] = {}

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """The loss of one batch, a scalar in nats."""
        queries, passages = sentence_features
        columns = passages.pop("columns", None)
        matches = queries.pop("lexical", None)
        # The one pass through a wrapper for several processes: it is ready for one backward pass, and the queries
        # go through all that is trained.
        encoded = self.model(queries)
        query_vectors = self._cut(encoded["sentence_embedding"])
        passage_vectors = self._cut(self._passage_vectors(passages))
        if columns is not None:
            passage_vectors = join_parts(passage_vectors, int(columns))
        # An autocast around the loss would make bfloat16 of the product, which tells close passages apart no more.
        with torch.autocast(query_vectors.device.type, enabled=False):
            similarity = query_vectors @ passage_vectors.T
        if matches is not None:
            similarity = similarity + (matches * encoded[PARAMETER]).sum(dim=-1)
        loss = self.from_similarity(similarity, labels)
        if self._isotropy_weight:
            everyone = of_all(query_vectors), passage_vectors
            moving = [vectors for vectors in everyone if vectors.requires_grad]
            isotropy = torch.stack([sigreg(vectors) for vectors in moving]).mean()
            self.last["isotropy"] = isotropy.detach()
            loss = loss + self._isotropy_weight * isotropy
        return loss

    def _cut(self, vectors: Tensor) -> Tensor:
        """Float32, as long as ``encode`` gives them: the model's modules know nothing of ``truncate_dim``."""
        length = getattr(getattr(self.model, "module", self.model), "truncate_dim", None)
        return (vectors if self._projects else vectors[:, :length]).float()

    def _passage_vectors(self, passages: dict[str, Tensor]) -> Tensor:
        if "input_ids" not in passages and not self._projects:
            return passages["sentence_embedding"]
        if self._chunk and "input_ids" in passages:
            return encode_in_chunks(self.model, passages, self._chunk)
        # A second pass through the wrapper would have it look again for what is unused, in this pass alone: of a head
        # the encoder's layers, which the queries have used.
        inner = getattr(self.model, "module", self.model)
        vectors: Tensor = inner(passages)["sentence_embedding"]
        return vectors

    def from_similarity(self, similarity: Tensor, labels: Tensor) -> Tensor:
        """The loss from ``(batch, N)`` similarities and the labels described above."""
        options = self.options
        log_likelihood, columns = labels[..., 0], labels[..., 3].long()
        mask = (columns >= 0) & log_likelihood.isfinite()
        # Those of the continuation, which all candidates share; a missing one may have none.
        tokens, num_bytes = (labels[..., which].masked_fill(~mask, 0).amax(dim=1) for which in (1, 2))
        counts = tokens, num_bytes
        scores = target_scores(log_likelihood, *counts, options.score, options.objective, mask)
        log_q = log_distribution(scores, options.temperature_gold, mask).to(similarity.dtype)
        own = similarity.gather(1, columns.clamp(min=0))
        log_p_own = log_distribution(own, options.temperature_score, mask)
        self.last = {
            "similarity": own.detach(),
            "scores": aggregate(log_likelihood, *counts, options.score),
            "mask": mask,
            "log_p": log_p_own.detach(),
            "log_q": log_q,
        }
        log_p = log_p_own
        if options.denominator is Denominator.BATCH:
            num_columns = similarity.shape[1]
            scored = all_but(columns.masked_fill(mask, -1), num_columns)
            log_p = log_distribution(similarity, options.temperature_score, scored)
            log_q = spread_to_batch(log_q, columns, num_columns)
        loss = self._between(log_p, log_q)
        if options.contrastive_weight:
            best = log_likelihood.masked_fill(~mask, -math.inf).argmax(dim=-1)
            contrastive = info_nce(similarity, columns, best, options.temperature_score)
            self.last["contrastive"] = contrastive.detach()
            loss = loss + options.contrastive_weight * contrastive
        return loss

    def _between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """The objective itself. With Q for the likelihoods the marginal is the same up to a constant, and stable."""
        options = self.options
        if options.objective is Objective.MARGINAL:
            return marginal_loss(log_p, log_q)
        return lsr_loss(log_p, log_q, direction_of(options.objective, options.kl))

    def get_config_dict(self) -> dict[str, Any]:
        """The objective's options, for the model card."""
        return asdict(self.options)

    @property
    def citation(self) -> str:
        """BibTeX of the method, and of the objective where it comes from elsewhere."""
        return SOURCES[self.options.objective]
