"""What is checked about prompts before anything is sent, by every supervisor alike."""

from __future__ import annotations

from collections.abc import Sequence

from replug_client.errors import PromptTooLongError, SupervisorError
from replug_client.supervisor.protocol import Prompt


def check_lengths(prompts: Sequence[Prompt], max_prompt_tokens: int) -> None:
    """Every prompt fits, has a continuation, and has something before it.

    Raises:
        PromptTooLongError: too long; names the pair and both lengths.
        SupervisorError: nothing to score, or nothing to score it by.
    """
    for prompt in prompts:
        name = prompt.label or "a prompt"
        if len(prompt.ids) > max_prompt_tokens:
            raise PromptTooLongError(
                f"{name}: {len(prompt.ids)} tokens, but the supervisor takes {max_prompt_tokens}."
                " Lower --retrieved_max_length, --context_len or --pred_len."
            )
        if not 1 <= prompt.num_continuation < len(prompt.ids):
            raise SupervisorError(
                f"{name}: {prompt.num_continuation} of its {len(prompt.ids)} tokens are to be scored; at"
                " least one must be, and at least one must stand before them"
            )
