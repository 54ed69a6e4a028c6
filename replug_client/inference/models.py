"""Which language model a supervisor is."""

from __future__ import annotations

from replug_client.errors import OptionError
from replug_client.inference.generation import LanguageModel
from replug_client.inference.local import LocalModel
from replug_client.inference.remote import RemoteModel
from replug_client.supervisor.cached import CachedSupervisor
from replug_client.supervisor.client import RemoteSupervisor
from replug_client.supervisor.local import LocalSupervisor
from replug_client.supervisor.protocol import Supervisor
from replug_client.supervisor.tokenizer import SupervisorTokenizer


def language_model(
    supervisor: Supervisor, tokenizer: SupervisorTokenizer, *, top_log_probs: int, look_ahead: int
) -> LanguageModel:
    """The model behind a supervisor, to be asked for next tokens.

    Args:
        supervisor: A remote or local one, behind a score cache or not.
        tokenizer: Its tokenizer, which may know the tokens that end a text.
        top_log_probs: See ``AnswererOptions``.
        look_ahead: See ``AnswererOptions``.

    Raises:
        OptionError: it only scores.
    """
    inner = supervisor.wrapped if isinstance(supervisor, CachedSupervisor) else supervisor
    if isinstance(inner, LocalSupervisor):
        return LocalModel(inner)
    if isinstance(inner, RemoteSupervisor):
        return RemoteModel(
            inner,
            end_ids=getattr(tokenizer, "end_ids", ()),
            top_log_probs=top_log_probs,
            look_ahead=look_ahead,
            scorer=supervisor,
        )
    raise OptionError(
        f"supervisor {supervisor.name} only scores: a server or a local model is needed to generate"
        " (open_supervisor gives one, but not with apart=True)"
    )
