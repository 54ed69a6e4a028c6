"""`replug data stdlib`: the demo's corpus, from the Python that runs it, with the flags of `demo.stdlib_corpus`."""

from __future__ import annotations

from collections.abc import Callable

from replug_client.errors import OptionError


def _unavailable() -> None:
    """This Python's own library as passages and documents: needs a checkout of the repository."""
    raise OptionError("the demo's corpus needs a checkout of the repository (there is no package `demo`)")


def _command() -> Callable[..., None]:
    try:
        from demo import stdlib_corpus
    except ModuleNotFoundError:
        return _unavailable
    return stdlib_corpus.main


stdlib = _command()
