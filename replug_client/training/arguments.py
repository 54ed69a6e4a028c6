"""Training arguments: sentence-transformers' own, and what candidates and prompts need beside them."""

from __future__ import annotations

from dataclasses import dataclass, field

from sentence_transformers import SentenceTransformerTrainingArguments

from replug_client.errors import OptionError
from replug_client.training.candidates import CandidateOptions
from replug_client.training.options import Train

_MODES = (Train.QUERY.value, Train.BOTH.value)


@dataclass
class LSRTrainingArguments(SentenceTransformerTrainingArguments):
    """Arguments of :class:`~replug_client.training.text_trainer.TrainerForLSR`: a superset of its parent's.

    Names and defaults are those of the flags of ``replug train``. The objective and its temperatures belong to the
    loss, as in sentence-transformers.

    Attributes:
        train: ``query``: passage vectors stay as they are; ``both``: candidates are re-encoded in each step.
        n_docs: The retriever's own candidates of a query.
        bm25_docs: BM25's candidates beside them.
        random_docs: Random candidates beside them.
        index_negatives: Passages drawn into what the batch shares (``query``, with the loss's denominator
            ``batch`` or its contrastive term).
        refresh_every: Steps between two retrievals with the current retriever (``both``: and re-embeddings); 0: never.
        retrieved_max_length: A passage keeps this many of its first tokens in a prompt, the supervisor's.
        separator: Between passage and query in a prompt.
        dropout: Of the encoder while training.
        train_word_embeddings: Whether large tables of input embeddings are trained.

    Raises:
        OptionError: another ``train``, or counts of candidates that give nothing to compare.

    Example:
        >>> from replug_client.training import LSRTrainingArguments
        >>> args = LSRTrainingArguments("out", learning_rate=1e-4, n_docs=4, bm25_docs=4, random_docs=0)
        >>> args.candidates.total, args.train, args.learning_rate
        (8, 'query', 0.0001)
    """

    train: str = field(default=Train.QUERY.value, metadata={"help": "query or both."})
    n_docs: int = field(default=10, metadata={"help": "The retriever's own candidates of a query."})
    bm25_docs: int = field(default=4, metadata={"help": "BM25's candidates beside them."})
    random_docs: int = field(default=2, metadata={"help": "Random candidates beside them."})
    index_negatives: int = field(default=0, metadata={"help": "Passages of the index in the denominator."})
    refresh_every: int = field(default=100, metadata={"help": "Steps between two retrievals; 0: never."})
    retrieved_max_length: int = field(default=128, metadata={"help": "Tokens a passage keeps in a prompt."})
    separator: str = field(default="\n", metadata={"help": "Between passage and query in a prompt."})
    dropout: float = field(default=0.0, metadata={"help": "Of the encoder while training."})
    train_word_embeddings: bool = field(default=False, metadata={"help": "Train the input embeddings."})

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        if self.train not in _MODES:
            raise OptionError(f"train is {self.train!r}; expected one of {', '.join(_MODES)}")
        if self.refresh_every < 0 or self.index_negatives < 0:
            raise OptionError(
                f"refresh_every is {self.refresh_every} and index_negatives {self.index_negatives}; expected 0 or more"
            )
        if self.index_negatives and self.train != Train.QUERY:
            raise OptionError("index_negatives needs train='query': its vectors come from the frozen index")
        if self.prompts:
            raise OptionError(
                f"prompts is {self.prompts!r}; expected none: training takes the encoder's own, as encode_query and "
                'encode_document do. Set model.prompts["query"] and model.prompts["document"] instead.'
            )
        _ = self.candidates

    @property
    def candidates(self) -> CandidateOptions:
        """How many candidates an example gets, by source."""
        return CandidateOptions(self.n_docs, self.bm25_docs, self.random_docs)
