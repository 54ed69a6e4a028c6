"""What a mode of training (``--train``) may be asked beyond its name, and which of it goes together."""

from __future__ import annotations

from dataclasses import dataclass

from replug_client.errors import OptionError


@dataclass(frozen=True, slots=True)
class ModeOptions:
    """How the mode that ``--train`` names works; what does not concern the mode stays at its default.

    Attributes:
        grad_cache_chunk: ``both``: passages encoded at once; the gradient is the same, the memory that of a
            chunk. 0 encodes the batch's passages together.
    """

    grad_cache_chunk: int = 0

    def __post_init__(self) -> None:
        if self.grad_cache_chunk < 0:
            raise OptionError(
                f"--grad_cache_chunk {self.grad_cache_chunk}: expected 0 (off) or more passages"
            )

    def check(self, train: str) -> None:
        """Refuse what the mode ``train`` cannot honour.

        Raises:
            OptionError: names the option, and the mode that has it.
        """
        if self.grad_cache_chunk and train != "both":
            raise _belongs("--grad_cache_chunk", self.grad_cache_chunk, "both", train)


def _belongs(flag: str, value: object, modes: str, train: str) -> OptionError:
    return OptionError(
        f"{flag} {value} goes with --train {modes}; found --train {train}. Leave one of them out."
    )
