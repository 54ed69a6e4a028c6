"""How a server is asked, and how a local LM is run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from replug_client.errors import OptionError

_SHORTEST_RECHECK = 0.01  # else a server would be asked for its canary again before it gets anything to do


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """How a server, or a pool of them, is asked.

    Attributes:
        concurrency: Requests in flight at once at each server, over all submissions; ``auto`` finds out.
        prompts_per_request: Most prompts in one request. Each request costs the client some 0.3 ms of CPU, each
            prompt in it 0.2 to 0.6: short prompts travel in large requests, and a trainer on these cores has the rest.
        tokens_per_request: Most tokens in one request; a longer prompt goes alone.
        attempts: How often a prompt is sent before what keeps it from a score counts as an error.
        first_wait: Seconds before the third attempt (the second often comes at once); doubled each time.
        longest_wait: Bound of the above.
        server_wait: Seconds to wait for a server to come back when none is left.
        start_wait: Seconds to wait for a first server at the start, where one may still be loading; 0: as long as
            all attempts take.
        recheck_after: Seconds without an answer after which a server has to pass the canary again. It may
            have been exchanged meanwhile, and connections that would have told are closed by then; loading
            a model takes longer than this.
        canary_every: Seconds after which a server that answers all the time has to pass it, too: another one may
            have come behind a connection that did not break.
    """

    concurrency: int | Literal["auto"] = "auto"
    prompts_per_request: int = 64
    tokens_per_request: int = 4096
    attempts: int = 8
    first_wait: float = 0.25
    longest_wait: float = 2.0
    server_wait: float = 600.0
    start_wait: float = 0.0
    recheck_after: float = 10.0
    canary_every: float = 60.0

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in ("concurrency", "prompts_per_request", "tokens_per_request", "attempts"):
            value = getattr(self, name)
            if value != "auto" and value < 1:
                flag = "--concurrency" if name == "concurrency" else name
                raise OptionError(f"{flag} must be at least 1, not {value}")
        if self.recheck_after < _SHORTEST_RECHECK:
            raise OptionError(
                f"recheck_after must be at least {_SHORTEST_RECHECK} s, not {self.recheck_after}"
            )
        if self.canary_every <= 0:
            raise OptionError(f"canary_every must be more than 0 s, not {self.canary_every}")
        if self.start_wait < 0:
            raise OptionError(f"start_wait must be 0 or more seconds, not {self.start_wait:g}")
        if self.server_wait < 0:
            raise OptionError(f"--server_wait must be 0 or more seconds, not {self.server_wait:g}")

    @property
    def fixed_concurrency(self) -> int | None:
        """The caller's figure, or None for ``auto``."""
        return None if self.concurrency == "auto" else self.concurrency


def parse_concurrency(text: str) -> int | Literal["auto"]:
    """Read ``--concurrency``.

    Raises:
        OptionError: neither ``auto`` nor a number of at least 1.
    """
    if text == "auto":
        return "auto"
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise OptionError(f"--concurrency must be auto or a number of at least 1, not {text!r}")
    return int(text)


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """How a local LM is run.

    Attributes:
        device: ``cpu``, ``cuda``, ``cuda:1``...; ``auto`` takes a GPU where there is one.
        dtype: ``float32``, ``bfloat16`` or ``float16``; ``auto``: float32 on a CPU, bfloat16 on a GPU.
        batch_tokens: Tokens in one forward pass; 0 chooses by device.
        share_prefixes: Run a prefix that prompts of a submission share once, and keep its keys and values.
    """

    device: str = "auto"
    dtype: str = "auto"
    batch_tokens: int = 0
    share_prefixes: bool = True
