"""The client in a process of its own: the same scores, errors and log, and nothing left behind."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from replug_client.errors import (
    OptionError,
    SupervisorChangedError,
    SupervisorError,
    SupervisorUnavailableError,
)
from replug_client.supervisor.apart import SupervisorApart, packed, unpacked
from replug_client.supervisor.apart_process import sendable
from replug_client.supervisor.cache import ScoreCache
from replug_client.supervisor.cached import CachedSupervisor
from replug_client.supervisor.client import RemoteSupervisor
from replug_client.supervisor.endpoint import NoConnectionError
from replug_client.supervisor.fake import hashed_log_probs
from replug_client.supervisor.open import SupervisorOptions, open_supervisor
from replug_client.supervisor.options import ClientOptions
from replug_client.supervisor.protocol import Score
from tests.supervisor.client_tools import check, start
from tests.supervisor.contract import random_prompts
from tests.supervisor.fake_server import MODEL, Body, FakeServer
from tests.supervisor.pool_tools import QUICK, eventually, other_model, servers
from tests.supervisor.reference import DEMO_LM

NOWHERE = "http://127.0.0.1:9/v1"


def apart(stack: ExitStack, *base_urls: str, options: ClientOptions = QUICK) -> SupervisorApart:
    """Closed at the end, whatever it then says."""
    supervisor = SupervisorApart(base_urls, MODEL, options)

    def close() -> None:
        try:
            supervisor.close()
        except SupervisorError:
            logging.getLogger(__name__).debug("closed with an error")

    stack.callback(close)
    return supervisor


def process_of(supervisor: SupervisorApart) -> int:
    return supervisor._process.pid


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "zombie" not in Path(f"/proc/{pid}/status").read_text() if Path("/proc/self").exists() else True


def test_it_says_of_the_supervisor_what_one_in_this_process_says(stack: ExitStack) -> None:
    (server,) = servers(stack, 1)
    there = apart(stack, server.base_url)
    here = stack.enter_context(RemoteSupervisor(server.base_url, MODEL, QUICK))
    for name in ("name", "format", "max_prompt_tokens", "fingerprint"):
        assert getattr(there, name) == getattr(here, name)
    assert there.identity.key == here.identity.key


@pytest.mark.parametrize(
    ("model", "url", "kind"),
    [("another", None, OptionError), (MODEL, NOWHERE, NoConnectionError), (MODEL, "ftp://x", OptionError)],
    ids=["model", "nobody there", "no address"],
)
def test_a_start_that_fails_says_what_one_in_this_process_says(
    stack: ExitStack, model: str, url: str | None, kind: type[Exception]
) -> None:
    (server,) = servers(stack, 1)
    with pytest.raises(kind) as here:
        RemoteSupervisor(url or server.base_url, model, QUICK)
    with pytest.raises(kind) as there:
        SupervisorApart([url or server.base_url], model, QUICK)
    assert str(there.value) == str(here.value)
    assert type(there.value) is type(here.value)


def test_a_failed_submission_says_what_one_in_this_process_says_and_keeps_the_rest(stack: ExitStack) -> None:
    (server,) = servers(stack, 1)
    prompts = random_prompts(12)
    bad = prompts[5]

    def refuse(server: FakeServer, payload: dict[str, object], body: Body) -> tuple[int, Body] | None:
        found = list(bad.ids) in payload["prompt"]  # type: ignore[operator]
        return (400, {"error": {"message": "token out of vocabulary"}}) if found else None

    server.mischief = refuse
    supervisor = apart(stack, server.base_url)
    told: list[int] = []
    with pytest.raises(SupervisorError, match=r"prompt 5: .*token out of vocabulary") as caught:
        supervisor.submit(prompts, lambda positions, _: told.extend(positions)).result()
    with (
        RemoteSupervisor(server.base_url, MODEL, QUICK) as here,
        pytest.raises(type(caught.value)) as expected,
    ):
        here.score(prompts)
    assert str(caught.value) == str(expected.value)
    assert sorted(told) == [number for number in range(12) if number != 5]
    check(prompts[:5], supervisor.score(prompts[:5]))


def test_what_the_callback_raises_ends_that_submission_alone(stack: ExitStack) -> None:
    (server,) = servers(stack, 1)
    supervisor = apart(stack, server.base_url)

    def full(positions: Sequence[int], scores: Sequence[Score]) -> None:
        raise OSError("no space left on the disk")

    with pytest.raises(OSError, match="no space left"):
        supervisor.submit(random_prompts(40), full).result()
    check(random_prompts(6), supervisor.score(random_prompts(6)))


def test_a_cancelled_submission_is_dropped_there(stack: ExitStack) -> None:
    (server,) = servers(stack, 1)
    release = threading.Event()
    stack.callback(release.set)

    def wait(server: FakeServer, payload: dict[str, object], body: Body) -> None:
        release.wait(20)

    supervisor = apart(stack, server.base_url, options=replace(QUICK, concurrency=1))
    before = len(server.requests)
    server.mischief = wait
    future = supervisor.submit(random_prompts(40))
    eventually(lambda: len(server.requests) > before)
    assert future.cancel()
    server.mischief = None
    check(random_prompts(2, seed=9), supervisor.score(random_prompts(2, seed=9)))
    assert len(server.requests) <= before + 3


def test_another_model_ends_it_and_what_it_gave_is_taken_back(stack: ExitStack, tmp_path: Path) -> None:
    (server,) = servers(stack, 1)
    path = tmp_path / "scores.sqlite"
    supervisor = CachedSupervisor(apart(stack, server.base_url), ScoreCache(path))
    server.log_probs = other_model
    supervisor.score(random_prompts(20))
    assert len(supervisor._cache) == 20
    with pytest.raises(SupervisorChangedError):
        supervisor.close()
    assert len(ScoreCache(path)) == 0


def test_what_a_canary_has_confirmed_is_not_taken_back(stack: ExitStack, tmp_path: Path) -> None:
    (server,) = servers(stack, 1)
    path = tmp_path / "scores.sqlite"
    inner = apart(stack, server.base_url, options=replace(QUICK, recheck_after=0.01))
    supervisor = CachedSupervisor(inner, ScoreCache(path))
    good = random_prompts(20)
    check(good, supervisor.score(good))
    time.sleep(0.02)
    supervisor.score(random_prompts(1, seed=5))  # not before the canary
    eventually(lambda: len(inner._parts) <= 1)
    server.log_probs = other_model
    time.sleep(0.02)
    with pytest.raises(SupervisorChangedError):
        supervisor.score(random_prompts(20, seed=6))
    assert len(supervisor._cache) >= len(good)


def test_its_log_comes_out_here(stack: ExitStack, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="replug_client")
    (server,) = servers(stack, 1)
    supervisor = apart(stack, server.base_url, NOWHERE)
    eventually(lambda: "going on without it" in caplog.text)
    assert any(
        record.name == "replug_client.supervisor.client" and "format vllm" in record.getMessage()
        for record in caplog.records
    )
    check(random_prompts(8), supervisor.score(random_prompts(8)))


def test_its_end_is_an_error_that_says_so_and_not_a_wait_without_end(stack: ExitStack) -> None:
    (server,) = servers(stack, 1)
    release = threading.Event()
    stack.callback(release.set)
    supervisor = apart(stack, server.base_url)

    def wait(server: FakeServer, payload: dict[str, object], body: Body) -> None:
        release.wait(20)

    server.mischief = wait
    future = supervisor.submit(random_prompts(8))
    os.kill(process_of(supervisor), signal.SIGKILL)
    with pytest.raises(SupervisorError, match=r"status -9.*--resume"):
        future.result(timeout=20)
    eventually(lambda: supervisor._end is not None)
    with pytest.raises(SupervisorError, match="status -9"):
        supervisor.submit(random_prompts(2))
    supervisor.close()
    with pytest.raises(SupervisorError, match="closed"):
        supervisor.submit(random_prompts(2))


def test_closing_ends_what_is_under_way_and_the_process(stack: ExitStack) -> None:
    (server,) = servers(stack, 1)
    supervisor = apart(stack, server.base_url)
    release = threading.Event()
    stack.callback(release.set)

    def wait(server: FakeServer, payload: dict[str, object], body: Body) -> None:
        release.wait(20)

    server.mischief = wait
    future = supervisor.submit(random_prompts(8))
    pid = process_of(supervisor)
    supervisor.close()
    assert future.cancelled()
    assert not is_there(pid)


# No `if __name__ == "__main__"`: a process that ran this once more would begin a third one.
SCRIPT = """
import sys, time
from replug_client.supervisor.apart import SupervisorApart
supervisor = SupervisorApart([sys.argv[1]], "fake-lm")
print(supervisor._process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_it_ends_with_the_process_that_began_it(
    stack: ExitStack, tmp_path: Path, how: signal.Signals
) -> None:
    (server,) = servers(stack, 1)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    # What lies beside the script, or where it is started, is not taken for a library's.
    (tmp_path / "openai.py").write_text("raise SystemExit('not this one')")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-P", str(script), server.base_url],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tmp_path,
    ) as driver:
        assert driver.stdout is not None
        pid = int(driver.stdout.readline())
        assert is_there(pid)
        driver.send_signal(how)
    eventually(lambda: not is_there(pid))


def test_ctrl_c_is_for_the_process_that_began_it(stack: ExitStack) -> None:
    (server,) = servers(stack, 1)
    supervisor = apart(stack, server.base_url)
    os.kill(process_of(supervisor), signal.SIGINT)
    check(random_prompts(6), supervisor.score(random_prompts(6)))


def test_open_supervisor_takes_it_and_holds_the_tokenizer_against_the_servers(stack: ExitStack) -> None:
    server = start(stack, FakeServer(formats={"openai-echo"}))
    options = SupervisorOptions(MODEL, base_url=server.base_url, tokenizer=str(DEMO_LM), apart=True)
    with pytest.raises(OptionError, match="tokenizer"):
        open_supervisor(options)
    supervisor, tokenizer = open_supervisor(replace(options, tokenizer=None))
    with supervisor:
        assert isinstance(supervisor.wrapped, SupervisorApart)
        assert tokenizer.encode("ab") == [197, 198]
        check(random_prompts(6), supervisor.score(random_prompts(6)))


def test_scores_travel_bit_for_bit() -> None:
    scores = [Score(np.array(hashed_log_probs(prompt), dtype=np.float32)) for prompt in random_prompts(7)]
    there = unpacked(packed(scores))
    assert [score.token_log_probs.tobytes() for score in there] == [
        score.token_log_probs.tobytes() for score in scores
    ]


def test_errors_travel_as_what_they_are_and_foreign_ones_as_text() -> None:
    error = SupervisorUnavailableError("gone")
    assert sendable(error) is error
    assert sendable(None) is None
    foreign = sendable(KeyError("x"))
    assert type(foreign) is SupervisorError
    assert str(foreign) == "KeyError('x')"
