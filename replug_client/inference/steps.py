"""The generation loop of a mixture: mix, choose, append; eq. 2 of REPLUG at every token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from replug_client.inference.generation import Contexts, GenerationOptions, Token
from replug_client.inference.mixing import Floats, choose, mix, unsettled
from replug_client.mixtures import ensemble_log_probs


@dataclass(frozen=True, slots=True, eq=False)
class MixedToken:
    """One token of a mixture.

    Attributes:
        token: Its id, its log-prob under the mixture, and whether it ends the text.
        log_probs: ``(K,)`` nats: its log-prob behind each context.
        dropped: The mass of the mixture that nothing was known of.
        certain: The whole vocabulary would have given this token, too.
    """

    token: Token
    log_probs: npt.NDArray[np.float64]
    dropped: float
    certain: bool


def generate(contexts: Contexts, log_weights: Floats, options: GenerationOptions) -> Iterator[MixedToken]:
    """Tokens of ``p(y_t) = sum_d λ_d p(y_t | d, x, y_<t)``, until the end token or ``max_tokens``.

    Args:
        contexts: The K prompts; they grow.
        log_weights: ``(K,)`` log λ, as from ``mixtures.log_weights``.
        options: Stop strings are the caller's business.
    """
    random = np.random.default_rng(options.seed)
    for left in reversed(range(options.max_tokens)):
        step = _next(contexts, log_weights, options, random.random())
        yield step
        if step.token.ends or not left:
            return
        contexts.append(step.token.id)


def _next(contexts: Contexts, log_weights: Floats, options: GenerationOptions, uniform: float) -> MixedToken:
    candidates = contexts.candidates()
    mixture = mix(candidates, log_weights)
    wanted = unsettled(candidates, mixture, greedy=options.temperature == 0)
    if wanted.size:
        candidates = candidates.with_known(wanted, contexts.log_probs(wanted))
        mixture = mix(candidates, log_weights)
    choice = choose(mixture, temperature=options.temperature, top_p=options.top_p, uniform=uniform)
    token = int(mixture.ids[choice.place])
    own = candidates.log_probs[:, choice.place]
    log_prob = float(ensemble_log_probs(own[:, None], log_weights)[0])
    return MixedToken(Token(token, log_prob, contexts.ends(token)), own, mixture.dropped, choice.certain)
