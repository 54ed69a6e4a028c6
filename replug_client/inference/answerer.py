"""Answers over passages: what each combination asks of the language model."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np

from replug_client.errors import OptionError, PromptTooLongError
from replug_client.inference.answers import Answer, AnswererOptions, Choice, Combination, Weight
from replug_client.inference.generation import GenerationOptions, Ids, LanguageModel, Token
from replug_client.inference.mixing import Floats
from replug_client.inference.models import language_model
from replug_client.inference.steps import MixedToken, generate
from replug_client.inference.text import Writer
from replug_client.mixtures import ensemble_log_probs, log_weights, uniform_log_weights
from replug_client.supervisor.prompts import PromptBuilder
from replug_client.supervisor.protocol import Supervisor
from replug_client.supervisor.tokenizer import SupervisorTokenizer

__all__ = ["Answer", "Answerer", "AnswererOptions", "Choice", "Combination", "Weight"]


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """One question, ready to be put: everything checked, nothing sent.

    Attributes:
        query: ``(n,)`` its ids.
        passages: As given; none for ``none``.
        contexts: What the text is written behind: one prompt, or one a passage.
        log_weights: ``(K,)`` log λ of the passages.
        options: How tokens are chosen.
    """

    query: list[int]
    passages: tuple[str, ...]
    contexts: list[Ids]
    log_weights: Floats
    options: GenerationOptions


class Answerer:
    """Answers with a supervisor's language model over passages. Safe for several threads.

    Example:
        >>> from replug_client.inference import Answerer, AnswererOptions
        >>> from replug_client.inference.toy import toy_lm
        >>> supervisor, tokenizer = toy_lm(["the cat sat", "the dog ran"])  # open_supervisor gives a real one
        >>> answerer = Answerer(supervisor, tokenizer)
        >>> answer = answerer.answer("the", ["the cat sat", "the dog ran"], similarities=[0.9, 0.1])
        >>> len(answer.tokens) <= 64, [round(weight.prior, 2) for weight in answer.weights]
        (True, [0.69, 0.31])
        >>> supervisor.close()
    """

    def __init__(
        self,
        supervisor: Supervisor,
        tokenizer: SupervisorTokenizer,
        options: AnswererOptions | None = None,
        *,
        model: LanguageModel | None = None,
    ) -> None:
        """Answer with ``supervisor``, which stays the caller's to close.

        Args:
            supervisor: What ``open_supervisor`` gives, a ``RemoteSupervisor`` or a ``LocalSupervisor``.
            tokenizer: The supervisor's.
            options: How prompts are built and mixed.
            model: What generates, if not the supervisor's own model.

        Raises:
            OptionError: a supervisor that scores, but cannot be asked for next tokens.
        """
        self.options = options or AnswererOptions()
        self._supervisor = supervisor
        self._tokenizer = tokenizer
        self._model = model or language_model(
            supervisor,
            tokenizer,
            top_log_probs=self.options.top_log_probs,
            look_ahead=self.options.look_ahead,
        )
        self._builder = PromptBuilder(
            tokenizer,
            retrieved_max_length=self.options.retrieved_max_length,
            max_prompt_tokens=self._model.max_prompt_tokens,
            separator=self.options.separator,
        )

    def answer(
        self,
        prefix: str,
        passages: Sequence[str] = (),
        similarities: Sequence[float] | None = None,
        combination: Combination | str = Combination.ENSEMBLE,
        options: GenerationOptions | None = None,
    ) -> Answer:
        """The whole answer at once.

        Args:
            prefix: The question or code that the text goes on from, as it is.
            passages: Best first; at least one, but for ``none``.
            similarities: One a passage; None: all count alike.
            combination: See :class:`Combination`.
            options: How tokens are chosen; greedy by default.

        Raises:
            OptionError: passages and similarities that do not fit each other or the combination.
            PromptTooLongError: a prompt and ``max_tokens`` do not fit the context; before anything is sent.
            SupervisorError: no answer, or a wrong one.
        """
        pieces = self.stream(prefix, passages, similarities, combination, options)
        while True:
            try:
                next(pieces)
            except StopIteration as end:
                answer: Answer = end.value
                return answer

    def stream(
        self,
        prefix: str,
        passages: Sequence[str] = (),
        similarities: Sequence[float] | None = None,
        combination: Combination | str = Combination.ENSEMBLE,
        options: GenerationOptions | None = None,
    ) -> Generator[str, None, Answer]:
        """The same in pieces of text as they come; the generator's return value is the answer.

        What is wrong with the arguments is raised at once. The pieces add up to ``Answer.text``;
        ``ensemble-answers`` gives its text in one, at the end.
        """
        combination = _combination(combination)
        asked = self._prepared(prefix, passages, similarities, combination, options or GenerationOptions())
        if combination is Combination.ENSEMBLE:
            return self._ensemble(asked)
        if combination is Combination.ENSEMBLE_ANSWERS:
            return self._ensemble_answers(asked)
        return self._plain(asked)

    def _prepared(
        self,
        prefix: str,
        passages: Sequence[str],
        similarities: Sequence[float] | None,
        combination: Combination,
        options: GenerationOptions,
    ) -> _Asked:
        if isinstance(passages, str):
            raise OptionError(
                f"passages are a text, {passages[:40]!r}; expected a list of texts, even of one"
            )
        passages = () if combination is Combination.NONE else tuple(passages)
        if not passages and combination is not Combination.NONE:
            raise OptionError(f"combination {combination} needs at least one passage; without any, take none")
        if similarities is not None and passages and len(similarities) != len(passages):
            raise OptionError(
                f"{len(passages)} passages with {len(similarities)} similarities; one each is needed"
            )
        try:
            query = self._tokenizer.encode(prefix)
            if combination in (Combination.CONCAT, Combination.NONE):
                contexts = [self._builder.context(passages[::-1], query)]  # the best one next to the query
            else:
                contexts = [self._builder.context(passage, query) for passage in passages]
        except UnicodeEncodeError as error:
            raise OptionError(f"a text that cannot be written in UTF-8: {error}") from error
        for place, context in enumerate(contexts):
            self._check_length(
                context, options, f"passage {place + 1}" if len(contexts) > 1 else "the prompt"
            )
        weights = np.zeros(0)
        if passages and similarities is None:
            weights = uniform_log_weights(len(passages))
        elif passages:
            try:
                weights = log_weights(np.asarray(similarities), self.options.temperature_score)
            except ValueError as error:
                raise OptionError(f"similarities that give no weights: {error}") from error
        return _Asked(query, passages, contexts, weights, options)

    def _check_length(self, context: Ids, options: GenerationOptions, name: str) -> None:
        most = self._model.max_prompt_tokens
        if not context:
            raise OptionError(
                "there is nothing to go on from: an empty prefix, no passage, and the model has no BOS"
            )
        if len(context) + options.max_tokens > most:
            raise PromptTooLongError(
                f"{name}: {len(context)} tokens and up to {options.max_tokens} generated ones, but the supervisor takes"
                f" {most}. Lower --max_tokens, --retrieved_max_length or --n_docs (concat), or shorten the question."
            )

    def _plain(self, asked: _Asked) -> Generator[str, None, Answer]:
        """One prompt, the model's own generation: ``concat`` and ``none``."""
        writer = self._writer(asked, asked.contexts[0])
        with closing(self._model.continuations(asked.contexts, asked.options)) as tokens:
            for _, token in tokens:
                if piece := writer.feed(token):
                    yield piece
                if writer.reason:
                    break
        if piece := writer.finish():
            yield piece
        return self._finished(asked, writer, self._posterior(asked, writer.tokens))

    def _ensemble(self, asked: _Asked) -> Generator[str, None, Answer]:
        """Eq. 2 of REPLUG at every token."""
        writer = self._writer(asked, asked.contexts[0])
        steps: list[MixedToken] = []
        for step in generate(self._model.contexts(asked.contexts), asked.log_weights, asked.options):
            steps.append(step)
            if piece := writer.feed(step.token):
                yield piece
            if writer.reason:
                break
        if piece := writer.finish():
            yield piece
        evidence = asked.log_weights + np.sum([step.log_probs for step in steps], axis=0)
        answer = self._finished(asked, writer, log_weights(evidence, 1.0))
        return replace(
            answer,
            dropped_mass=tuple(step.dropped for step in steps),
            certain=tuple(step.certain for step in steps),
        )

    def _ensemble_answers(self, asked: _Asked) -> Generator[str, None, Answer]:
        """A whole answer behind each passage; equal ones (but for space around them) put their weights together."""
        writers = [self._writer(asked, context) for context in asked.contexts]
        with closing(self._model.continuations(asked.contexts, asked.options)) as tokens:
            for place, token in tokens:
                if writers[place].reason is None:
                    writers[place].feed(token)
                if all(writer.reason for writer in writers):
                    break
        for writer in writers:
            writer.finish()
        groups: dict[str, list[int]] = {}
        for place, writer in enumerate(writers):
            groups.setdefault(writer.text.strip(), []).append(place)
        # Of those that say the same, the passage that counts most speaks.
        speakers = [max(places, key=lambda place: asked.log_weights[place]) for places in groups.values()]
        shares = self._shares(asked, list(groups.values()), [writers[place].tokens for place in speakers])
        order = np.argsort(-shares, kind="stable")
        best = writers[speakers[order[0]]]
        if best.text:
            yield best.text
        texts = list(groups)
        answer = self._finished(asked, best, self._posterior(asked, best.tokens))
        return replace(answer, choices=tuple(Choice(texts[i], float(shares[i])) for i in order))

    def _shares(self, asked: _Asked, groups: list[list[int]], texts: list[list[Token]]) -> Floats:
        """``(A,)`` the share of each distinct answer; they sum to 1."""
        if self.options.answer_weights == "prior":
            return np.array([np.exp(asked.log_weights[places]).sum() for places in groups])
        logs = [ensemble_log_probs(self._scores(asked, tokens), asked.log_weights).sum() for tokens in texts]
        return np.asarray(np.exp(log_weights(logs, 1.0)))

    def _posterior(self, asked: _Asked, tokens: Sequence[Token]) -> Floats | None:
        """``(K,)`` log-weights behind the text: what each passage alone gives it."""
        if not asked.passages or not self.options.posterior:
            return None
        return log_weights(asked.log_weights + self._scores(asked, tokens).sum(axis=1), 1.0)

    def _scores(self, asked: _Asked, tokens: Sequence[Token]) -> Floats:
        """``(K, T)`` nats: the tokens behind each passage by itself."""
        ids = [token.id for token in tokens]
        prompts = [
            self._builder.build(passage, asked.query, ids, f"passage {place + 1}")
            for place, passage in enumerate(asked.passages)
        ]
        return np.array(
            [score.token_log_probs for score in self._supervisor.score(prompts)], dtype=np.float64
        )

    def _writer(self, asked: _Asked, context: Ids) -> Writer:
        return Writer(self._tokenizer.decode, context, asked.options.stop)

    def _finished(self, asked: _Asked, writer: Writer, posterior: Floats | None) -> Answer:
        priors = np.exp(asked.log_weights).tolist()
        posteriors = [None] * len(priors) if posterior is None else np.exp(posterior).tolist()
        return Answer(
            text=writer.text,
            weights=tuple(map(Weight, priors, posteriors)),
            tokens=tuple(token.id for token in writer.tokens),
            log_probs=tuple(token.log_prob for token in writer.tokens),
            dropped_mass=(0.0,) * len(writer.tokens),
            certain=(True,) * len(writer.tokens),
            finish_reason=writer.reason or "length",
        )


def _combination(name: Combination | str) -> Combination:
    try:
        return Combination(name)
    except ValueError as error:
        raise OptionError(f"--combination must be one of {', '.join(Combination)}, not {name!r}") from error
