"""What a server is asked before it gets work: what it serves, which formats work, and the canary."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_exponential, wait_random

from replug_client.errors import (
    OptionError,
    SupervisorChangedError,
    SupervisorError,
    SupervisorRequestError,
    SupervisorUnavailableError,
    UnreadableAnswerError,
    WrongAnswerError,
)
from replug_client.supervisor.canary import CANARY, difference
from replug_client.supervisor.endpoint import Endpoint, ServedModel, TimedOutError
from replug_client.supervisor.formats import WireFormat
from replug_client.supervisor.formats.completions import ECHO, echoed_tokens
from replug_client.supervisor.options import ClientOptions
from replug_client.supervisor.protocol import Prompt, Score

_log = logging.getLogger(__name__)

_T = TypeVar("_T")
_PROBE_TOLERANCE = 0.5  # nats per token: bfloat16 noise stays below, another text does not
_WRONG_ANSWERS = 3  # of one question, before the format counts as one that does not work
_LATE_ANSWERS = 2  # the same, of a question that has minutes for its answer
_START_WAIT = 5.0  # between two questions to servers of which none answers yet
_CANARY_SECONDS = 120.0  # a canary waits behind what is queued, but no server is so full
_PART = Prompt(CANARY.ids[:-8], CANARY.num_continuation - 8, "the first part of the canary prompt")


async def find_servers(
    endpoints: Sequence[Endpoint], model: str, options: ClientOptions
) -> tuple[dict[Endpoint, ServedModel], dict[Endpoint, SupervisorUnavailableError]]:
    """What the servers say of ``model``, at least one of them; and those that do not answer, and why.

    Raises:
        OptionError: one does not serve it.
        SupervisorUnavailableError: none answers, not even after ``options.start_wait``.
        SupervisorError: one answers something else.
    """
    deadline = time.monotonic() + options.start_wait
    served, absent = await _ask_all(endpoints, model, options)
    if not served and options.start_wait:
        places = ", ".join(endpoint.base_url for endpoint in endpoints)
        _log.warning("no server answers yet at %s; waiting up to %.0f s", places, options.start_wait)
    while not served and (left := deadline - time.monotonic()) > 0:
        await asyncio.sleep(min(left, _START_WAIT))
        served, absent = await _ask_all(endpoints, model, replace(options, attempts=1))
    if not served:
        error = next(iter(absent.values()))
        raise type(error)(
            f"{error} Where it is still loading its model, wait for it with --server_wait SECONDS."
        )
    return served, absent


async def _ask_all(
    endpoints: Sequence[Endpoint], model: str, options: ClientOptions
) -> tuple[dict[Endpoint, ServedModel], dict[Endpoint, SupervisorUnavailableError]]:
    asked = [patiently(partial(endpoint.served_model, model), options) for endpoint in endpoints]
    served, absent = {}, {}
    for endpoint, found in zip(endpoints, await asyncio.gather(*asked, return_exceptions=True), strict=True):
        if isinstance(found, SupervisorUnavailableError):
            absent[endpoint] = found
        elif isinstance(found, BaseException):
            raise found
        else:
            served[endpoint] = found
    return served, absent


async def admit(endpoint: Endpoint, model: str, max_prompt_tokens: int | None) -> ServedModel:
    """What a server says of ``model`` that was not there when the others were asked.

    Raises:
        SupervisorChangedError: it cannot take part: it serves no such model, or not prompts of that length.
        SupervisorError: it cannot be asked.
    """
    try:
        served = await endpoint.served_model(model)
    except OptionError as error:
        raise SupervisorChangedError(f"{error} The servers that this run began with do.") from error
    length = served.max_model_len
    if length is not None and max_prompt_tokens is not None and length <= max_prompt_tokens:
        raise SupervisorChangedError(
            f"{endpoint.base_url} takes {length} tokens, and those servers that this run began with take"
            f" {max_prompt_tokens + 1}. Start it with --max-model-len {max_prompt_tokens + 1}."
        )
    return served


@dataclass(frozen=True, slots=True)
class Chosen:
    """A format that works.

    Attributes:
        wire_format: It.
        canary: The first server's.
        absent: Servers that gave none, and why; they are taken in when they do.
    """

    wire_format: WireFormat
    canary: Score
    absent: dict[Endpoint, SupervisorUnavailableError]


async def choose_format(
    names: Mapping[Endpoint, str], formats: Sequence[WireFormat], options: ClientOptions
) -> Chosen:
    """The first format that all the servers answer rightly which answer at all.

    A server that lists its model but is out of reach for scores, or says 500 to a format that another one answers, is
    as absent as one that lists nothing.

    Args:
        names: The servers, and what each calls the model.
        formats: In the order in which they are tried.
        options: How often what is transient is tried.

    Raises:
        SupervisorError: no format works, no server is left, or they do not serve one and the same model.
    """
    absent: dict[Endpoint, SupervisorUnavailableError] = {}
    second: Chosen | None = None  # the first format that failed nowhere but with a status of 500
    reasons = []
    for wire_format in formats:
        asked = [endpoint for endpoint in names if endpoint not in absent]
        found = await asyncio.gather(
            *[_probe(endpoint, names[endpoint], wire_format, options) for endpoint in asked],
            return_exceptions=True,
        )
        canaries, errors = _sorted_out(zip(asked, found, strict=True), absent)
        if not canaries and not errors:
            raise absent[asked[0]]
        unwell = {e: error for e, error in errors.items() if isinstance(error, SupervisorUnavailableError)}
        if canaries and len(unwell) == len(errors):
            _check_same(list(canaries), list(canaries.values()))
            chosen = Chosen(wire_format, next(iter(canaries.values())), absent | unwell)
            if not unwell:
                return chosen
            second = second or chosen
        if errors:
            endpoint, error = next(iter(errors.items()))
            reasons.append(f"{wire_format.name}: {error}")
            _log.debug("format %s does not work at %s: %s", wire_format.name, endpoint.base_url, error)
    if second is not None:
        return replace(second, absent=second.absent | absent)
    places = ", ".join(endpoint.base_url for endpoint in names)
    raise SupervisorError(
        f"no prompt log-probs for {next(iter(names.values()))!r} from {places}, in any format:\n  "
        + "\n  ".join(reasons)
        + "\nServe the model with vLLM (python -m server --model NAME_OR_FOLDER), or score in process with"
        " --supervisor local."
    )


def _sorted_out(
    found: Iterable[tuple[Endpoint, Score | BaseException]],
    absent: dict[Endpoint, SupervisorUnavailableError],
) -> tuple[dict[Endpoint, Score], dict[Endpoint, SupervisorError]]:
    """The canaries that came, and what speaks against the format; who is out of reach joins ``absent``."""
    canaries: dict[Endpoint, Score] = {}
    errors: dict[Endpoint, SupervisorError] = {}
    for endpoint, item in found:
        # 400, 403, 404: not here, or not for us. The list of models was given, so it is not the key.
        # A status of 500 that lasts may be this format's alone; an outage, 429 or 503 is not.
        if isinstance(item, Score):
            canaries[endpoint] = item
        elif type(item) is SupervisorUnavailableError or isinstance(
            item, WrongAnswerError | UnreadableAnswerError | SupervisorRequestError
        ):
            errors[endpoint] = item
        elif isinstance(item, SupervisorUnavailableError):
            absent[endpoint] = item
        else:
            raise item
    return canaries, errors


async def check_echoed_text(
    endpoint: Endpoint, name: str, prompt: Prompt, text: str, options: ClientOptions
) -> None:
    """Hold what a server echoes of a prompt against the text that its ids were made of.

    Raises:
        OptionError: it is another text, so the ids are of another tokenizer.
        SupervisorError: there is no answer, or a wrong one.
    """
    body = await patiently(lambda: endpoint.post(ECHO.path, ECHO.build(name, [prompt])), options)
    tokens = echoed_tokens(body, prompt)
    if tokens is None:
        return  # by their ids, which are held against ours in every answer
    _log.warning(
        "%s returns no token ids: its answers are checked by their lengths alone, its tokenizer by one text",
        endpoint.base_url,
    )
    if _without_space("".join(tokens)) != _without_space(text):
        raise OptionError(
            f"the tokenizer in use is not that of {name!r}: {endpoint.base_url} reads the ids of {text[:40]!r} as"
            f" {tokens[:8]} ... Give the folder or hub name of the served model with --tokenizer."
        )


def _without_space(text: str) -> str:
    """Servers write spaces as they are, or as the vocabulary does, or leave out a leading one."""
    for mark in ("\u2581", "\u0120", "\u010a", "<0x0A>"):
        text = text.replace(mark, "")
    return "".join(text.split())


async def check_unchanged(endpoint: Endpoint, name: str, wire_format: WireFormat, canary: Score) -> None:
    """Hold a server's canary against the one of before.

    Raises:
        SupervisorChangedError: another model answers.
        SupervisorError: there is no answer, or a wrong one.
    """
    try:
        (found,) = await ask_once(endpoint, name, wire_format, [CANARY], timeout=_CANARY_SECONDS)
    except SupervisorRequestError:
        try:
            await endpoint.served_model(name)
        except OptionError as error:
            raise SupervisorChangedError(f"{error} It did when this run began. {_MEND}") from error
        raise
    apart = difference(canary, found)
    if not apart.is_noise:
        raise SupervisorChangedError(
            f"{endpoint.base_url} serves another model under the name {name!r} than when this run began:"
            f" the canary prompt's score differs by {apart}. No score that came since the last canary is kept. {_MEND}"
        )


_MEND = (
    "Start the server with the model of before and give the same command again (replug train: with --resume), or"
    " begin another run."
)


async def ask_once(
    endpoint: Endpoint,
    name: str,
    wire_format: WireFormat,
    prompts: Sequence[Prompt],
    timeout: float | None = None,
) -> list[Score]:
    """One request, no second attempt.

    Raises:
        SupervisorError: the first of what went wrong.
    """
    body = await endpoint.post(
        wire_format.path, wire_format.build(name, prompts), beside_v1=wire_format.beside_v1, timeout=timeout
    )
    scores = []
    for result in wire_format.parse(body, prompts):
        if isinstance(result, SupervisorError):
            raise result
        scores.append(result)
    return scores


async def _probe(endpoint: Endpoint, name: str, wire_format: WireFormat, options: ClientOptions) -> Score:
    """The canary's score, asked for alone; then again beside its own first part, which must agree."""

    async def ask(prompts: Sequence[Prompt]) -> list[Score]:
        once = partial(ask_once, endpoint, name, wire_format, prompts, timeout=_CANARY_SECONDS)
        return await patiently(once, options)

    (alone,) = await ask([CANARY])
    together = [[_PART, CANARY]] if wire_format.max_prompts != 1 else [[_PART], [CANARY]]
    first, again = [score for prompts in together for score in await ask(prompts)]
    apart = max(
        difference(first, Score(alone.token_log_probs[:-8])).largest, difference(again, alone).largest
    )
    if apart > _PROBE_TOLERANCE:
        raise WrongAnswerError(
            f"the canary prompt alone and beside another differ by {apart:.3f} nats per token;"
            " the server mixes up prompts, or shifts positions"
        )
    return alone


async def patiently(ask: Callable[[], Awaitable[_T]], options: ClientOptions) -> _T:
    """Ask again where that may help: a few times where the answer was a wrong one, else with waits.

    Raises:
        SupervisorError: the last of what went wrong.
    """
    wrong = late = 0

    def worth_another(error: BaseException) -> bool:
        nonlocal wrong, late
        if isinstance(error, WrongAnswerError | UnreadableAnswerError):
            wrong += 1
            return wrong < _WRONG_ANSWERS
        if isinstance(error, TimedOutError):
            late += 1
            return late < _LATE_ANSWERS
        return isinstance(error, SupervisorError) and error.retryable

    retrying = AsyncRetrying(
        retry=retry_if_exception(worth_another),
        stop=stop_after_attempt(options.attempts),
        wait=wait_exponential(options.first_wait, options.longest_wait) + wait_random(0, options.first_wait),
        before_sleep=lambda state: _log.log(
            logging.DEBUG if wrong else logging.WARNING,
            "attempt %d of %d failed: %s",
            state.attempt_number,
            options.attempts,
            state.outcome.exception() if state.outcome else "",
        ),
        reraise=True,
    )
    async for attempt in retrying:
        with attempt:
            return await ask()
    raise AssertionError("tenacity gives a result or raises")


def _check_same(endpoints: Sequence[Endpoint], canaries: Sequence[Score]) -> None:
    for endpoint, canary in zip(endpoints[1:], canaries[1:], strict=True):
        apart = difference(canaries[0], canary)
        if not apart.is_noise:
            raise OptionError(
                f"{endpoints[0].base_url} and {endpoint.base_url} serve different models:"
                f" the canary prompt's scores differ by {apart}. Replicas must serve the same weights at the"
                " same precision."
            )
