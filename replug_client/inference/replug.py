"""Retrieval and answer in one: the class for other programs, and what `replug answer` runs."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replug_client.artefacts import default_cache_dir
from replug_client.corpus.records import Passage
from replug_client.corpus.store import PassageStore
from replug_client.errors import OptionError
from replug_client.inference.answerer import Answerer
from replug_client.inference.answers import Answer, AnswererOptions, Combination
from replug_client.inference.generation import GenerationOptions
from replug_client.retriever.build import build_index, usable_shards
from replug_client.retriever.encoder import EncoderOptions, load_encoder
from replug_client.retriever.hybrid import LazyMatches
from replug_client.retriever.index import PassageIndex
from replug_client.retriever.search import Retriever
from replug_client.supervisor.open import SupervisorOptions, open_supervisor

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

QUESTION = "{question}"


@dataclass(frozen=True, slots=True)
class ReplugOptions:
    """Where passages, retriever and language model are.

    Attributes:
        passages: Corpus files, or one.
        retriever: The encoder, tuned or not.
        supervisor: The language model.
        shards: Passage vectors that may serve, as ``replug embed`` wrote them; what is missing is made, once.
        cache_dir: Keeps vectors, converted corpora and scores.
        n_docs: Passages an answer.
        template: What the model goes on from, with ``{question}`` in the place of the question.
        answerer: How prompts are built and mixed.
    """

    passages: tuple[Path, ...]
    retriever: EncoderOptions
    supervisor: SupervisorOptions
    shards: tuple[str, ...] = ()
    cache_dir: Path = field(default_factory=default_cache_dir)
    n_docs: int = 4
    template: str = QUESTION
    answerer: AnswererOptions = field(default_factory=AnswererOptions)

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name, given in (("passages", self.passages), ("shards", self.shards)):
            found: object = given
            if isinstance(found, str | Path):  # one of them, and not its letters
                object.__setattr__(self, name, (found,))
        object.__setattr__(self, "passages", tuple(map(Path, self.passages)))
        check_template(self.template)
        if self.n_docs < 1:
            raise OptionError(f"--n_docs must be at least 1, not {self.n_docs}")


@dataclass(frozen=True, slots=True)
class Grounded:
    """An answer with the passages it was made over, best first, and the similarity of each to the question."""

    answer: Answer
    passages: tuple[Passage, ...]
    similarities: tuple[float, ...]

    @property
    def text(self) -> str:
        """The answer's text."""
        return self.answer.text


class Replug:
    """Retrieves passages for a question and answers it with a language model over them. Safe for several threads.

    Example:
        >>> from replug_client.inference import Replug
        >>> from replug_client.inference.toy import toy_replug
        >>> passages = ["the cat sat on the mat", "the dog ran home", "a bird can sing"]
        >>> with toy_replug(passages) as replug:  # Replug.open(ReplugOptions(...)) takes files and models
        ...     found = replug.answer("the cat")
        >>> found.passages[0].text
        'the cat sat on the mat'
        >>> len(found.answer.weights), round(sum(weight.posterior for weight in found.answer.weights), 6)
        (2, 1.0)
    """

    def __init__(
        self,
        model: SentenceTransformer,
        index: PassageIndex,
        passages: PassageStore | Sequence[Passage],
        answerer: Answerer,
        *,
        n_docs: int = 4,
        template: str = QUESTION,
    ) -> None:
        """Put the parts together; ``close`` closes none of them.

        Args:
            model: Encodes the question.
            index: Of the passages, under the same model.
            passages: By corpus row.
            answerer: Over the language model.
            n_docs: Passages an answer.
            template: See ``ReplugOptions``.

        Raises:
            OptionError: a template without ``{question}``.
        """
        check_template(template)
        self.answerer = answerer
        self.n_docs = n_docs
        self._template = template
        self._retriever = Retriever(model, index, LazyMatches(self._texts))
        self._passages = passages
        self._owned: list[Any] = []

    def _texts(self) -> Iterator[str]:
        return (self._passages[row].text for row in self._retriever.index.rows.tolist())

    @classmethod
    def open(cls, options: ReplugOptions) -> Replug:
        """Open everything; ``close`` closes it.

        Raises:
            CorpusError: the passages cannot be read.
            OptionError: a model that cannot be loaded.
            SupervisorError: the server cannot be reached.
        """
        store = PassageStore.open(options.passages, options.cache_dir)
        # The server is asked first: what is wrong there is known before passages are embedded.
        supervisor, tokenizer = open_supervisor(options.supervisor)
        try:
            answerer = Answerer(supervisor, tokenizer, options.answerer)
            model = load_encoder(options.retriever)
            shards = usable_shards(options.shards)
            index = build_index(
                model, store, options.cache_dir, encoder_options=options.retriever, shards=shards
            )
            replug = cls(model, index, store, answerer, n_docs=options.n_docs, template=options.template)
        except BaseException:
            supervisor.close()
            raise
        replug._owned.append(supervisor)
        return replug

    def retrieve(
        self, question: str, n_docs: int | None = None
    ) -> tuple[tuple[Passage, ...], tuple[float, ...]]:
        """The passages nearest to a question, best first, and their similarities."""
        found = self._retriever.search([question], n_docs or self.n_docs)
        return tuple(self._passages[row] for row in found.rows[0].tolist()), tuple(found.scores[0].tolist())

    def answer(
        self,
        question: str,
        *,
        combination: Combination | str = Combination.ENSEMBLE,
        options: GenerationOptions | None = None,
        n_docs: int | None = None,
    ) -> Grounded:
        """Retrieve and answer; see :meth:`Answerer.answer`."""
        pieces = self.stream(question, combination=combination, options=options, n_docs=n_docs)
        while True:
            try:
                next(pieces)
            except StopIteration as end:
                grounded: Grounded = end.value
                return grounded

    def stream(
        self,
        question: str,
        *,
        combination: Combination | str = Combination.ENSEMBLE,
        options: GenerationOptions | None = None,
        n_docs: int | None = None,
    ) -> Generator[str, None, Grounded]:
        """The same in pieces of text as they come; the generator's return value is the answer."""
        passages, similarities = (
            ((), ()) if combination == Combination.NONE else self.retrieve(question, n_docs)
        )
        prefix = self._template.replace(QUESTION, question)
        texts = [passage.text for passage in passages]
        answer = yield from self.answerer.stream(prefix, texts, similarities, combination, options)
        return Grounded(answer, passages, similarities)

    def close(self) -> None:
        """Close what :meth:`open` opened."""
        while self._owned:
            self._owned.pop().close()

    def __enter__(self) -> Replug:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_template(template: str) -> None:
    """Refuse a template that has no place for the question.

    Raises:
        OptionError: it has none.
    """
    if QUESTION not in template:
        raise OptionError(f"--template {template!r} has no {QUESTION} in it: there the question goes")
