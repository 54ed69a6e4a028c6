"""What these tests answer with: one token a character, and an LM that is a function."""

from __future__ import annotations

from collections.abc import Sequence

from replug_client.inference.answerer import Answer, Combination, Weight
from replug_client.supervisor.tokenizer import Offsets


class Characters:
    """A tokenizer of one token a character."""

    bos_id: int | None = 1

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        return self.encode(text), [(place, place + 1) for place in range(len(text))]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))


def answer_of(text: str, weights: Sequence[float] = ()) -> Answer:
    """An answer of this text; of its tokens nothing is known."""
    return Answer(
        text=text,
        weights=tuple(Weight(weight, None) for weight in weights),
        tokens=(),
        log_probs=(),
        dropped_mass=(),
        certain=(),
        finish_reason="end",
    )


def copying(
    prompt: str, passages: Sequence[str], similarities: Sequence[float] | None, combination: Combination
) -> Answer:
    """Answers with the first passage's last word; without passages, with nothing."""
    assert combination is not Combination.NONE or not passages
    weights = [1 / len(passages)] * len(passages) if passages else []
    return answer_of(f" {passages[0].split()[-1]}" if passages else "", weights)
