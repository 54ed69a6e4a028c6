"""What is checked about prompts before anything is sent, and about scores when they come, of every supervisor alike."""

from __future__ import annotations

from collections.abc import Sequence

from replug_client.errors import PromptTooLongError, SupervisorError
from replug_client.supervisor.protocol import Prompt, Score


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


def check_scores(prompts: Sequence[Prompt], scores: Sequence[Score]) -> None:
    """Every prompt has a score, with a log-prob for each token of its continuation.

    Raises:
        SupervisorError: the supervisor gave others; names the pair.
    """
    if len(scores) != len(prompts):
        raise SupervisorError(f"the supervisor gave {len(scores)} scores for {len(prompts)} prompts")
    for prompt, score in zip(prompts, scores, strict=True):
        if score.num_tokens != prompt.num_continuation:
            raise SupervisorError(
                f"{prompt.label or 'a prompt'}: the supervisor gave {score.num_tokens} log-probs for a continuation of "
                f"{prompt.num_continuation} tokens; expected one a token, in order"
            )
