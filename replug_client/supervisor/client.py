"""The remote supervisor: scores over an OpenAI-compatible server such as vLLM."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import openai
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_exponential, wait_random

from replug_client.errors import (
    OptionError,
    SupervisorError,
    SupervisorRequestError,
    SupervisorUnavailableError,
    UnreadableAnswerError,
    WrongAnswerError,
)
from replug_client.supervisor.canary import CANARY, Identity
from replug_client.supervisor.checks import check_lengths
from replug_client.supervisor.endpoint import Endpoint, PromptRefusedError, ServedModel
from replug_client.supervisor.formats import FORMATS, Parsed, WireFormat
from replug_client.supervisor.prefixes import batches
from replug_client.supervisor.protocol import OnScores, Prompt, Score

_log = logging.getLogger(__name__)

_T = TypeVar("_T")
_UNKNOWN_LENGTH = 1 << 31
_PROBE_TOLERANCE = 0.5  # nats per token: bfloat16 noise stays below, another text does not


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """How a server is asked.

    Attributes:
        concurrency: Requests in flight at once, over all submissions.
        prompts_per_request: Most prompts in one request.
        tokens_per_request: Most tokens in one request; a longer prompt goes alone.
        attempts: How often a request is sent before a transient failure counts as an error.
        first_wait: Seconds before the second attempt; doubled each time.
        longest_wait: Bound of the above.
    """

    concurrency: int = 16
    prompts_per_request: int = 8
    tokens_per_request: int = 8192
    attempts: int = 6
    first_wait: float = 0.25
    longest_wait: float = 10.0

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in ("concurrency", "prompts_per_request", "tokens_per_request", "attempts"):
            if getattr(self, name) < 1:
                raise OptionError(f"--{name} must be at least 1, not {getattr(self, name)}")


@dataclass(slots=True)
class _Request:
    """Prompts that travel together, where they stand in the submission, and what became of each so far."""

    model: str
    wire_format: WireFormat
    prompts: Sequence[Prompt]
    positions: Sequence[int] = ()
    on_scores: OnScores | None = None
    results: dict[int, Score | SupervisorError] = field(default_factory=dict)

    def unsettled(self, wanted: Sequence[int]) -> list[int]:
        """Those without a result, or with one that may be better next time."""
        return [i for i in wanted if isinstance(self.results.get(i), SupervisorUnavailableError | None)]

    def payload(self, wanted: Sequence[int]) -> dict[str, Any]:
        return self.wire_format.build(self.model, [self.prompts[i] for i in wanted])

    def read(self, answer: bytes, wanted: Sequence[int]) -> None:
        """Take in an answer and hand out its scores; a prompt that the server gave up on is raised."""
        parsed = self.wire_format.parse(answer, [self.prompts[i] for i in wanted])
        self.results.update(zip(wanted, parsed, strict=True))
        scored = [(i, result) for i, result in zip(wanted, parsed, strict=True) if isinstance(result, Score)]
        if scored and self.on_scores is not None:
            self.on_scores([self.positions[i] for i, _ in scored], [score for _, score in scored])
        for result in parsed:
            if isinstance(result, SupervisorUnavailableError):
                raise result


class RemoteSupervisor:
    """Scores with the model of a server.

    Requests hold many prompts of about the same length, and run on an event loop of their own, in a
    thread; their number in flight is bounded over all submissions. What is transient is retried, within
    bounds. A refused request is halved until the refused prompt stands alone, so its neighbours are
    scored. At the start the server is asked what it serves, and each wire format is probed, cheapest
    first, until one gives the right kind of answer.
    """

    def __init__(
        self,
        client: openai.AsyncOpenAI,
        model: str,
        options: ClientOptions | None = None,
        formats: Sequence[WireFormat] = FORMATS,
    ) -> None:
        """Connect and probe. ``client`` belongs to this object from now on, and is closed with it.

        Raises:
            OptionError: the server does not serve ``model``.
            SupervisorError: no answer, or no format that works.
        """
        self._options = options or ClientOptions()
        self._endpoint = Endpoint(client)
        self._slots = asyncio.Semaphore(self._options.concurrency)
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="remote-supervisor", daemon=True)
        self._thread.start()
        try:
            self._served, self._format, canary = self._on_loop(self._connect(model, formats)).result()
        except BaseException:
            self.close()
            raise
        length = self._served.max_model_len
        # One token is generated, though nobody reads it.
        self.max_prompt_tokens = _UNKNOWN_LENGTH if length is None else length - 1
        self.name = self._served.name
        # Which format was used is not in it: all give the same numbers.
        self.identity = Identity({"kind": "server", "model": self._served.root or self._served.name}, canary)
        self.fingerprint = self.identity.fingerprint

    @property
    def format(self) -> str:
        """Name of the wire format that the probe chose."""
        return self._format.name

    def score(self, prompts: Sequence[Prompt]) -> list[Score]:
        """See ``Supervisor.score``."""
        future = self.submit(prompts)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C: the server need not go on
            raise

    def submit(self, prompts: Sequence[Prompt], on_scores: OnScores | None = None) -> Future[list[Score]]:
        """See ``StreamingSupervisor.submit``."""
        if self._closed:
            raise SupervisorError(f"supervisor {self.name} is closed")
        prompts = tuple(prompts)
        check_lengths(prompts, self.max_prompt_tokens)
        return self._on_loop(self._run(prompts, on_scores))

    def close(self) -> None:
        """Drop what is under way, close the connections, and end the thread."""
        if self._closed:
            return
        self._closed = True
        self._on_loop(self._shut_down()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> RemoteSupervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _on_loop(self, coroutine: Coroutine[Any, Any, _T]) -> Future[_T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def _shut_down(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._endpoint.close()

    async def _connect(
        self, model: str, formats: Sequence[WireFormat]
    ) -> tuple[ServedModel, WireFormat, Score]:
        async for attempt in self._retrying():
            with attempt:
                served = await self._endpoint.served_model(model)
        reasons = []
        for wire_format in formats:
            try:
                canary = await self._probe(served.name, wire_format)
            except (WrongAnswerError, UnreadableAnswerError, SupervisorRequestError) as error:
                # 400, 403, 404: not here, or not for us. The list of models was given, so it is not the key.
                reasons.append(f"{wire_format.name}: {error}")
                _log.debug("format %s does not work: %s", wire_format.name, error)
                continue
            _log.info(
                "supervisor %s at %s: format %s, at most %s tokens",
                served.name,
                self._endpoint.base_url,
                wire_format.name,
                served.max_model_len or "an unknown number of",
            )
            if not wire_format.verifies_ids:
                _log.info(
                    "format %s: token ids are checked only if this server returns them", wire_format.name
                )
            return served, wire_format, canary
        raise SupervisorError(
            f"{self._endpoint.base_url} gives no prompt log-probs for {served.name!r}, in any format:\n  "
            + "\n  ".join(reasons)
            + "\nServe the model with vLLM, or score in process with --supervisor local."
        )

    async def _probe(self, model: str, wire_format: WireFormat) -> Score:
        """The canary's score, asked for alone; then again beside its own first part, which must agree."""
        part = Prompt(CANARY.ids[:-8], CANARY.num_continuation - 8, "the first part of the canary prompt")
        (alone,) = _all_scores(await self._ask_all(_Request(model, wire_format, [CANARY])))
        together = [[part, CANARY]] if wire_format.max_prompts != 1 else [[part], [CANARY]]
        parts = [await self._ask_all(_Request(model, wire_format, prompts)) for prompts in together]
        first, again = _all_scores([result for results in parts for result in results])
        difference = max(
            np.abs(first.token_log_probs - alone.token_log_probs[:-8]).max(),
            np.abs(again.token_log_probs - alone.token_log_probs).max(),
        )
        if difference > _PROBE_TOLERANCE:
            raise WrongAnswerError(
                f"the canary prompt alone and beside another differ by {difference:.3f} nats per token;"
                " the server mixes up prompts, or shifts positions"
            )
        return alone

    async def _run(self, prompts: Sequence[Prompt], on_scores: OnScores | None) -> list[Score]:
        options = self._options
        lengths = [len(prompt.ids) for prompt in prompts]
        most = min(options.prompts_per_request, self._format.max_prompts or options.prompts_per_request)
        chunks = list(batches(lengths, options.tokens_per_request, most))
        requests = [
            _Request(self._served.name, self._format, [prompts[i] for i in chunk], chunk, on_scores)
            for chunk in chunks
        ]
        tasks = [asyncio.ensure_future(self._ask_all(request)) for request in requests]
        try:
            # A server that is gone ends the submission at once; a refused prompt only after its neighbours.
            parts = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        results: dict[int, Score | SupervisorError] = {}
        for chunk, part in zip(chunks, parts, strict=True):
            results.update(zip(chunk, part, strict=True))
        return _all_scores([results[position] for position in range(len(prompts))])

    async def _ask_all(self, request: _Request) -> Parsed:
        """Send a request until each of its prompts has a score, or an error that is its own."""
        await self._ask(request, range(len(request.prompts)))
        return [request.results[i] for i in range(len(request.prompts))]

    async def _ask(self, request: _Request, wanted: Sequence[int]) -> None:
        """Send, retry what is transient, and halve what is refused."""
        try:
            async for attempt in self._retrying():
                with attempt:
                    missing = request.unsettled(wanted)
                    payload = request.payload(missing)
                    async with self._slots:
                        answer = await self._endpoint.post(
                            request.wire_format.path, payload, beside_v1=request.wire_format.beside_v1
                        )
                    request.read(answer, missing)
        except UnreadableAnswerError as error:
            raise UnreadableAnswerError(f"{self._endpoint.base_url}: {error}") from error
        except WrongAnswerError as error:  # the answer as a whole; other requests go on
            request.results.update(dict.fromkeys(request.unsettled(wanted), error))
        except PromptRefusedError as error:
            missing = request.unsettled(wanted)
            if len(missing) == 1:
                name = request.prompts[missing[0]].label or "a prompt"
                request.results[missing[0]] = PromptRefusedError(f"{name}: {error}")
                return
            middle = len(missing) // 2
            await asyncio.gather(self._ask(request, missing[:middle]), self._ask(request, missing[middle:]))

    def _retrying(self) -> AsyncRetrying:
        options = self._options
        return AsyncRetrying(
            retry=retry_if_exception(lambda error: isinstance(error, SupervisorError) and error.retryable),
            stop=stop_after_attempt(options.attempts),
            wait=wait_exponential(options.first_wait, options.longest_wait)
            + wait_random(0, options.first_wait),
            before_sleep=lambda state: _log.warning(
                "attempt %d of %d failed: %s",
                state.attempt_number,
                options.attempts,
                state.outcome.exception() if state.outcome else "",
            ),
            reraise=True,
        )


def _all_scores(results: Sequence[Score | SupervisorError]) -> list[Score]:
    """The scores, or the first error, which then says how many there are."""
    scores = [result for result in results if isinstance(result, Score)]
    errors = [result for result in results if isinstance(result, SupervisorError)]
    if not errors:
        return scores
    if len(errors) == 1:
        raise errors[0]
    raise type(errors[0])(f"{errors[0]} ({len(errors)} of {len(results)} prompts failed; this is the first)")
