"""Sending prompts until each has a score, or an error that is its own.

What is asked again, and how:

=============================================  ===========================================================
connection refused, reset, cut off; 502 to 504  at once, as soon as the server has passed the canary
wrong, unreadable or aborted answer             at once, only the prompts concerned; later ones after a wait
no answer in time                               in two halves
500, 429                                        after a wait that doubles
any of them for the third time                  in two halves, so that one bad prompt ends up alone
any of them for the last time                   each prompt by itself, once more
the server died while this alone was there      each prompt by itself; never again where one by itself did so
400, 413, 422                                   never; in two halves, until the refused prompt stands alone
401, 403, 404 and the like                      never; everything ends
=============================================  ===========================================================
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from replug_client.errors import (
    SupervisorChangedError,
    SupervisorError,
    SupervisorUnavailableError,
    UnreadableAnswerError,
    WrongAnswerError,
)
from replug_client.supervisor.endpoint import (
    Endpoint,
    LostConnectionError,
    PromptRefusedError,
    TimedOutError,
)
from replug_client.supervisor.formats import Parsed, WireFormat
from replug_client.supervisor.options import ClientOptions
from replug_client.supervisor.pool import KilledServerError, OutageError, Pool
from replug_client.supervisor.protocol import OnScores, Prompt, Retract, Score

_log = logging.getLogger(__name__)

_HALVED_AFTER = 3
_DEADLY = 2  # so often the server dies of nothing but a prompt, or its request, before it is not sent again


@dataclass(slots=True)
class Request:
    """Prompts that travel together, where they stand in the submission, and what became of each."""

    prompts: Sequence[Prompt]
    positions: Sequence[int]
    on_scores: OnScores | None = None
    results: dict[int, Score | SupervisorError] = field(default_factory=dict)
    scored_before: int | None = None

    def outcome(self) -> Parsed:
        """A score or an error for each prompt."""
        return [self.results[i] for i in range(len(self.prompts))]

    def keep(self, wanted: Sequence[int], parsed: Parsed) -> tuple[list[int], Retract | None]:
        """Take in an answer and hand out its scores; those of ``wanted`` that got none, and how to take it back."""
        retract = None
        pairs = list(zip(wanted, parsed, strict=True))
        self.results.update(pairs)
        scored = [(i, result) for i, result in pairs if isinstance(result, Score)]
        if scored and self.on_scores is not None:
            retract = self.on_scores([self.positions[i] for i, _ in scored], [score for _, score in scored])
        return [i for i, result in pairs if not isinstance(result, Score)], retract


class Asker:
    """Sends requests to a pool of servers in one wire format; ``names`` says what each calls the model."""

    def __init__(
        self, pool: Pool, names: Mapping[Endpoint, str], wire_format: WireFormat, options: ClientOptions
    ) -> None:
        self._pool = pool
        self._names = names
        self._format = wire_format
        self._options = options
        self._scored = 0
        self._scored_at_death: int | None = None

    async def ask(self, request: Request) -> Parsed:
        """Send a request until each of its prompts has a score, or an error that is its own.

        Raises:
            SupervisorError: what concerns the servers and not a prompt; ends a submission.
        """
        await self._ask(request, range(len(request.prompts)), 0)
        return request.outcome()

    async def _ask(self, request: Request, wanted: Sequence[int], failures: int, killed: int = 0) -> None:
        while wanted:
            try:
                wanted = await self._send(request, wanted, again=failures > 0)
                if not wanted:
                    return
                error = _first_error(request, wanted)
            except PromptRefusedError as refusal:
                await self._isolate(request, wanted, failures, killed, refusal)
                return
            except (OutageError, SupervisorChangedError) as end:
                name = _name(request.prompts[wanted[0]])
                raise type(end)(f"{end} Without a score: {name}, and what comes after it.") from end
            except SupervisorError as failure:
                if not _may_pass(failure):
                    raise
                error = failure
            failures += 1
            killed += isinstance(error, KilledServerError)
            _log.debug("attempt %d of %d: %s", failures, self._options.attempts, error)
            last = failures >= self._options.attempts
            if len(wanted) == 1 and (last or killed >= _DEADLY):
                self._give_up(request, wanted[0], error)
                return
            await self._pause(error, failures)
            if last:  # whichever of them it is, the others are not to be lost with it
                parts, failures = _singles(wanted), self._options.attempts - 1
            else:
                parts = _parts(wanted, error, failures)
            if parts:
                await all_or_none([self._ask(request, part, failures, killed) for part in parts])
                return

    async def _send(self, request: Request, wanted: Sequence[int], *, again: bool) -> list[int]:
        """One attempt; those that got no score from it, each with its error in ``request.results``."""
        prompts = [request.prompts[i] for i in wanted]
        tokens = sum(len(prompt.ids) for prompt in prompts)
        async with self._pool.slot(len(prompts), tokens, again=again) as slot:
            if request.scored_before is None:
                request.scored_before = self._scored
            wire_format, endpoint = self._format, slot.endpoint
            body = await endpoint.post(
                wire_format.path,
                wire_format.build(self._names[endpoint], prompts),
                beside_v1=wire_format.beside_v1,
            )
        await slot.confirm()
        try:
            left, retract = request.keep(wanted, wire_format.parse(body, prompts))
        except (WrongAnswerError, UnreadableAnswerError) as error:
            raise type(error)(f"{endpoint.base_url}: {error}") from error
        slot.kept(retract)
        self._scored += len(wanted) - len(left)
        return left

    async def _isolate(
        self, request: Request, wanted: Sequence[int], failures: int, killed: int, refusal: PromptRefusedError
    ) -> None:
        """A refused request holds a bad prompt: halve it until that one stands alone."""
        if len(wanted) > 1:
            await all_or_none([self._ask(request, half, failures, killed) for half in _halves(wanted)])
        else:
            name = request.prompts[wanted[0]].label or "a prompt"
            request.results[wanted[0]] = PromptRefusedError(
                f"{name}: {refusal}. It would be refused again. Is --tokenizer that of the served model, and has"
                " the server room for it (--retrieved_max_length, --context_len, --pred_len)?"
            )

    def _give_up(self, request: Request, wanted: int, error: SupervisorError) -> None:
        """A prompt gets its error; where nothing at all was scored meanwhile, everything ends.

        Then it is not the prompt: asking for all the others would take as long for each of them.
        """
        own = request.results.get(wanted)
        last = self._last_word(request.prompts[wanted], own if isinstance(own, SupervisorError) else error)
        request.results[wanted] = last
        deadly = isinstance(error, KilledServerError)  # it may well be the first that is asked for again
        if self._scored == (self._scored_at_death if deadly else request.scored_before):
            raise last
        if deadly:
            self._scored_at_death = self._scored

    def _last_word(self, prompt: Prompt, error: SupervisorError) -> SupervisorError:
        """The error with the pair, the servers and what mends it."""
        text, name = str(error), _name(prompt)
        named = text if name in text else f"{name}: {text}"
        place = "" if "://" in text else f" (from {self._pool.names})"
        asked = f"Asked {self._options.attempts} times."
        if isinstance(error, KilledServerError):
            asked = (
                "Each time the server was gone after it, the last time with nothing else to do. Where the server's log"
                " shows that it died, leave this pair out."
            )
        mend = (
            f"{asked} See what the server says of itself with:"
            f" python -m server check --base_url {self._pool.names.replace(', ', ',')}"
        )
        return type(error)(f"{named}{place}. {mend}")

    async def _pause(self, error: SupervisorError, failures: int) -> None:
        at_once = isinstance(
            error, LostConnectionError | TimedOutError | WrongAnswerError | UnreadableAnswerError
        )
        if at_once and failures == 1:
            return
        doublings = failures - 2 if at_once else failures - 1
        wait = min(self._options.first_wait * 2**doublings, self._options.longest_wait)
        await asyncio.sleep(wait + random.uniform(0, self._options.first_wait))


def _name(prompt: Prompt) -> str:
    return prompt.label or f"a prompt of {len(prompt.ids)} tokens"


def _halves(wanted: Sequence[int]) -> list[Sequence[int]]:
    middle = len(wanted) // 2
    return [wanted[:middle], wanted[middle:]]


def _singles(wanted: Sequence[int]) -> list[Sequence[int]]:
    return [[i] for i in wanted]


def _parts(wanted: Sequence[int], error: SupervisorError, failures: int) -> list[Sequence[int]]:
    """What is asked for separately from now on; nothing where all of it may stay together."""
    if len(wanted) == 1:
        return []
    if isinstance(error, KilledServerError):  # each death costs one of the server's restarts
        return _singles(wanted)
    return _halves(wanted) if isinstance(error, TimedOutError) or failures >= _HALVED_AFTER else []


def _may_pass(error: SupervisorError) -> bool:
    return error.retryable or isinstance(error, WrongAnswerError)


def _first_error(request: Request, wanted: Sequence[int]) -> SupervisorError:
    for i in wanted:
        result = request.results[i]
        if isinstance(result, SupervisorError):
            return result
    return SupervisorUnavailableError("no score, and no reason")


async def all_or_none(work: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Results in order; at the first exception the others are cancelled, and it is raised."""
    tasks = [asyncio.ensure_future(item) for item in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
