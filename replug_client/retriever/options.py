"""Which encoder, as plain data: a command's flags are read with it before anything large is imported."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from replug_client.errors import OptionError

ComputeDtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class EncoderOptions:
    """Which encoder, and what is to differ from the way it is saved or its family works. None: as it is.

    Attributes:
        model_name_or_path: A folder, or a name on the model hub.
        query_prompt: Put before every query; ``""`` for none.
        passage_prompt: Put before every passage; ``""`` for none.
        pooling: ``mean``, ``cls``, ``lasttoken``, ``max``, ``weightedmean`` or ``mean_sqrt_len_tokens``.
        normalize: Whether vectors are scaled to length 1.
        max_seq_length: Cut texts at this many of the encoder's tokens.
        device: ``cpu``, ``cuda``, ``cuda:1``, ...; None takes a GPU where there is one.
        attn_implementation: ``sdpa``, ``eager`` or ``flash_attention_2``.
        trust_remote_code: Run code that comes with the model. Only for models you have read.
    """

    model_name_or_path: str
    query_prompt: str | None = None
    passage_prompt: str | None = None
    pooling: str | None = None
    normalize: bool | None = None
    max_seq_length: int | None = None
    device: str | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.pooling is not None:
            from sentence_transformers.sentence_transformer.modules import Pooling

            if self.pooling not in Pooling.POOLING_MODES:
                raise OptionError(
                    f"--pooling {self.pooling}: expected one of {', '.join(Pooling.POOLING_MODES)}."
                )
        if self.max_seq_length is not None and self.max_seq_length < 1:
            raise OptionError(f"--max_length {self.max_seq_length}: expected at least 1 token.")

    def to_json(self) -> dict[str, Any]:
        """The options as JSON-ready values; ``EncoderOptions(**value)`` reads them."""
        return asdict(self)
