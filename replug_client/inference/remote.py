"""The language model of a server: the most probable tokens behind each context, a request a step or fewer."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt

from replug_client.inference.generation import GenerationOptions, Ids, Token
from replug_client.inference.mixing import Candidates, merge
from replug_client.supervisor.client import RemoteSupervisor
from replug_client.supervisor.formats import next_tokens as wire
from replug_client.supervisor.protocol import Prompt, Supervisor

_log = logging.getLogger(__name__)


class RemoteModel:
    """A ``LanguageModel`` over the servers of a ``RemoteSupervisor``.

    A step of a mixture is one request of K prompts, answered from the server's prefix cache where that is on (``python
    -m server`` leaves it off, for scoring; ``-- --enable-prefix-caching`` turns it on). Behind each context the server
    generates a few tokens more, greedily; for as long as the mixture takes the same ones, their log-probs are those of
    the steps to come, and no request is needed. What stands among the tops of one context and not of another is asked
    for exactly, where the choice depends on it (vLLM's ``logprob_token_ids``; else by scoring it, which is slow).
    """

    def __init__(
        self,
        supervisor: RemoteSupervisor,
        *,
        end_ids: Iterable[int] = (),
        top_log_probs: int = 20,
        look_ahead: int = 4,
        scorer: Supervisor | None = None,
    ) -> None:
        """Use the servers of ``supervisor``.

        Args:
            supervisor: Connected.
            end_ids: Tokens that end a text; those that the server is seen to end one with are added.
            top_log_probs: See ``AnswererOptions``.
            look_ahead: See ``AnswererOptions``.
            scorer: Scores single tokens, where the server cannot be asked for them; None takes ``supervisor``.
        """
        self.supervisor = supervisor
        self.top_log_probs = top_log_probs
        self.look_ahead = look_ahead
        self.end_ids = set(end_ids)
        self._scorer = scorer or supervisor
        self._knows_token_ids = True

    @property
    def max_prompt_tokens(self) -> int:
        """See ``LanguageModel.max_prompt_tokens``."""
        return self.supervisor.max_prompt_tokens

    def contexts(self, prompts: Sequence[Ids]) -> RemoteContexts:
        """See ``LanguageModel.contexts``."""
        return RemoteContexts(self, prompts)

    def continuations(
        self, prompts: Sequence[Ids], options: GenerationOptions
    ) -> Generator[tuple[int, Token], None, None]:
        """See ``LanguageModel.continuations``: one streamed request, all prompts at once."""
        texts = _Texts(prompts, options)
        future = self.supervisor.stream(texts.build, texts.take)
        future.add_done_callback(lambda _: texts.arrived.put(None))
        try:
            while (item := texts.arrived.get()) is not None:
                yield item
            future.result()
        finally:
            future.cancel()  # whoever has heard enough; the server need not go on

    def tops(self, prompts: Sequence[Ids], num_tokens: int) -> list[list[wire.Step]]:
        """The most probable tokens behind each prompt, and behind up to ``num_tokens - 1`` greedy ones."""
        payload = wire.build_tops(prompts, self.top_log_probs, num_tokens)
        steps = self.supervisor.complete(payload, partial(wire.parse_steps, prompts=prompts)).result()
        self.end_ids.update(step.token for own in steps for step in own if step.ends)
        return steps

    def log_probs(self, prompts: Sequence[Ids], ids: Sequence[int]) -> npt.NDArray[np.float64]:
        """``(K, n)`` nats: exactly these tokens behind each prompt."""
        parts = []
        for at in range(0, len(ids), wire.MAX_TOKEN_IDS):
            part = list(ids[at : at + wire.MAX_TOKEN_IDS])
            found = self._asked(prompts, part) if self._knows_token_ids else None
            parts.append(self._scored(prompts, part) if found is None else found)
        return np.concatenate(parts, axis=1)

    def _asked(self, prompts: Sequence[Ids], ids: list[int]) -> npt.NDArray[np.float64] | None:
        read = partial(wire.parse_token_ids, prompts=prompts, token_ids=ids)
        found = self.supervisor.complete(wire.build_token_ids(prompts, ids), read).result()
        if found is None:
            self._knows_token_ids = False
            _log.warning(
                "%s does not know logprob_token_ids: tokens outside a passage's tops are scored one by one, which is"
                " slow. Newer versions of vLLM know it.",
                self.supervisor.name,
            )
        return found

    def _scored(self, prompts: Sequence[Ids], ids: list[int]) -> npt.NDArray[np.float64]:
        asked = [Prompt((*prompt, token), 1, f"token {token}") for prompt in prompts for token in ids]
        values = [score.log_likelihood for score in self._scorer.score(asked)]
        return np.array(values).reshape(len(prompts), len(ids))


class RemoteContexts:
    """Contexts at a server, with what it has generated ahead of them."""

    def __init__(self, model: RemoteModel, prompts: Sequence[Ids]) -> None:
        self._model = model
        self._prompts = [tuple(prompt) for prompt in prompts]
        self._ahead: list[deque[wire.Step]] = [deque() for _ in prompts]

    def candidates(self) -> Candidates:
        """See ``Contexts.candidates``: the union of the tops."""
        missing = [place for place, ahead in enumerate(self._ahead) if not ahead]
        if missing:
            prompts = [self._prompts[place] for place in missing]
            room = self._model.max_prompt_tokens - max(map(len, prompts))
            steps = self._model.tops(prompts, 1 + max(0, min(self._model.look_ahead, room)))
            for place, own in zip(missing, steps, strict=True):
                self._ahead[place] = deque(own)
        return merge([(ahead[0].ids, ahead[0].log_probs) for ahead in self._ahead])

    def log_probs(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """See ``Contexts.log_probs``."""
        return self._model.log_probs(self._prompts, ids.tolist())

    def append(self, token: int) -> None:
        """See ``Contexts.append``; what was generated ahead counts where it began with this token."""
        self._prompts = [(*prompt, token) for prompt in self._prompts]
        for ahead in self._ahead:
            if ahead and ahead.popleft().token != token:
                ahead.clear()

    def ends(self, token: int) -> bool:
        """See ``Contexts.ends``."""
        return token in self._model.end_ids


class _Texts:
    """The texts of one streamed request, as far as they have come; where it breaks off, the next goes on."""

    def __init__(self, prompts: Sequence[Ids], options: GenerationOptions) -> None:
        self.arrived: SimpleQueue[tuple[int, Token] | None] = SimpleQueue()
        self._prompts = prompts
        self._options = options
        self._tokens: list[list[int]] = [[] for _ in prompts]
        self._open = list(range(len(prompts)))
        self._asked: list[int] = []

    def build(self) -> dict[str, Any] | None:
        """Ask for what is missing; None where all is there."""
        self._asked = list(self._open)
        if not self._asked:
            return None
        options = self._options
        come = [len(self._tokens[place]) for place in self._asked]
        if options.seed is not None:  # going on with the seed of before would draw the same numbers again
            options = replace(options, seed=options.seed + max(come))
        return wire.build_continuations(
            [(*self._prompts[place], *self._tokens[place]) for place in self._asked],
            options.max_tokens - min(come),
            options.temperature,
            options.top_p,
            options.stop,
            options.seed,
        )

    def take(self, event: Any) -> None:
        """Hand out the tokens of one event."""
        for index, steps, done in wire.parse_event(event, len(self._asked)):
            place = self._asked[index]
            for step in steps[: self._options.max_tokens - len(self._tokens[place])]:
                self._tokens[place].append(step.token)
                self.arrived.put((place, Token(step.token, step.log_prob, step.ends)))
            full = len(self._tokens[place]) == self._options.max_tokens
            if (done or full) and place in self._open:
                self._open.remove(place)
