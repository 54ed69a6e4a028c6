"""The client in a process of its own: the same scores, errors and log, and nothing left behind."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import wait
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest

from replug_client.errors import (
    OptionError,
    SupervisorChangedError,
    SupervisorError,
    SupervisorUnavailableError,
)
from replug_client.supervisor.apart import SupervisorApart
from replug_client.supervisor.apart_messages import packed, unpacked
from replug_client.supervisor.apart_process import _LogLine, sendable
from replug_client.supervisor.cache import ScoreCache
from replug_client.supervisor.cached import CachedSupervisor
from replug_client.supervisor.client import RemoteSupervisor
from replug_client.supervisor.endpoint import NoConnectionError
from replug_client.supervisor.fake import hashed_log_probs
from replug_client.supervisor.open import SupervisorOptions, open_supervisor
from replug_client.supervisor.options import ClientOptions
from replug_client.supervisor.protocol import Prompt, Score
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


def hold(stack: ExitStack, server: FakeServer) -> None:
    """It answers no more, until the test is over."""
    release = threading.Event()
    stack.callback(release.set)

    def wait(server: FakeServer, payload: dict[str, object], body: Body) -> None:
        release.wait(20)

    server.mischief = wait


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


MANY = replace(QUICK, concurrency=16, prompts_per_request=1)


def test_what_the_callback_raises_ends_that_submission_alone(stack: ExitStack) -> None:
    """Though more of its scores are on their way."""
    (server,) = servers(stack, 1)
    supervisor = apart(stack, server.base_url, options=MANY)
    calls = []

    def full(positions: Sequence[int], scores: Sequence[Score]) -> None:
        calls.append(positions)
        raise OSError("no space left on the disk")

    for turn in range(1, 16):
        with pytest.raises(OSError, match="no space left"):
            supervisor.submit(random_prompts(40, seed=turn), full).result()
        assert len(calls) == turn
    check(random_prompts(6), supervisor.score(random_prompts(6)))


def test_a_cancelled_submission_ends_that_one_alone(stack: ExitStack) -> None:
    """Though more of its scores are on their way; and whoever waits for it is told."""
    (server,) = servers(stack, 1)
    supervisor = apart(stack, server.base_url, options=MANY)
    for turn in range(20):
        first = threading.Event()
        future = supervisor.submit(random_prompts(40, seed=turn), lambda *_, first=first: first.set())
        assert first.wait(20)
        if future.cancel():
            assert wait([future], timeout=20).not_done == set()
    check(random_prompts(6), supervisor.score(random_prompts(6)))


def test_a_cancelled_submission_is_dropped_there(stack: ExitStack) -> None:
    (server,) = servers(stack, 1)
    supervisor = apart(stack, server.base_url, options=replace(QUICK, concurrency=1))
    before = len(server.requests)
    hold(stack, server)
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
    supervisor = apart(stack, server.base_url)
    hold(stack, server)
    future = supervisor.submit(random_prompts(8))
    os.kill(process_of(supervisor), signal.SIGKILL)
    with pytest.raises(SupervisorError, match=r"status -9.*--resume"):
        future.result(timeout=20)
    eventually(lambda: supervisor._end is not None)
    for _ in range(2):
        with pytest.raises(SupervisorError, match="status -9") as caught:
            supervisor.submit(random_prompts(2))
        assert caught.value is not supervisor._end
    supervisor.close()
    with pytest.raises(SupervisorError, match="closed"):
        supervisor.submit(random_prompts(2))


def test_a_message_that_is_not_understood_ends_it(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (server,) = servers(stack, 1)
    supervisor = apart(stack, server.base_url)
    monkeypatch.setattr("replug_client.supervisor.apart.unpacked", lambda _: 1 / 0)
    with pytest.raises(SupervisorError, match="not understood: ZeroDivisionError"):
        supervisor.submit(random_prompts(8)).result(timeout=20)
    eventually(lambda: not is_there(process_of(supervisor)))


def test_what_cannot_be_sent_ends_it(stack: ExitStack, capsys: pytest.CaptureFixture[str]) -> None:
    (server,) = servers(stack, 1)
    supervisor = apart(stack, server.base_url)
    supervisor._line.send(threading.Lock())
    eventually(lambda: supervisor._end is not None)
    assert "cannot pickle" in capsys.readouterr().err
    assert not is_there(process_of(supervisor))


def test_closing_ends_what_is_under_way_and_the_process(stack: ExitStack) -> None:
    (server,) = servers(stack, 1)
    supervisor = apart(stack, server.base_url)
    hold(stack, server)
    future = supervisor.submit(random_prompts(8))
    # More than the socket holds is on its way.
    late = supervisor.submit([Prompt((1,) * 200, 1)] * 20_000)
    pid = process_of(supervisor)
    supervisor.close()
    assert future.cancelled() and late.cancelled()
    assert not is_there(pid)


def test_ctrl_c_while_it_closes_leaves_no_process(stack: ExitStack) -> None:
    (server,) = servers(stack, 1)
    supervisor = apart(stack, server.base_url)
    os.kill(process_of(supervisor), signal.SIGSTOP)  # it will not close
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where tests run in processes
    stack.callback(signal.signal, signal.SIGINT, before)
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    timer = threading.Timer(0.5, signal.pthread_kill, [main_thread, signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        supervisor.close()
    timer.join()
    assert not is_there(process_of(supervisor))


def test_a_timeout_is_kept_there(stack: ExitStack) -> None:
    (server,) = servers(stack, 1)
    options = replace(QUICK, attempts=1, server_wait=0.1)
    supervisor = SupervisorApart([server.base_url], MODEL, options, timeout=0.5)
    stack.callback(supervisor.close)
    hold(stack, server)
    with pytest.raises(SupervisorError, match=r"no answer in 0\.5 s"):
        supervisor.score(random_prompts(1))


# No `if __name__ == "__main__"`: a process that ran this once more would begin a third one.
# The fork holds the driver's end of the socket open.
SCRIPT = """
import os, sys, time
from replug_client.supervisor.apart import SupervisorApart
supervisor = SupervisorApart([sys.argv[1]], "fake-lm")
if sys.argv[2] == "fork" and os.fork() == 0:
    time.sleep(30)
    os._exit(0)
print(supervisor._process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("how", "fork"),
    [(signal.SIGKILL, ""), (signal.SIGTERM, ""), (signal.SIGKILL, "fork")],
    ids=["SIGKILL", "SIGTERM", "SIGKILL beside a fork"],
)
def test_it_ends_with_the_process_that_began_it(
    stack: ExitStack, tmp_path: Path, how: signal.Signals, fork: str
) -> None:
    (server,) = servers(stack, 1)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    # What lies beside the script, or where it is started, is not taken for a library's.
    (tmp_path / "openai.py").write_text("raise SystemExit('not this one')")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-P", str(script), server.base_url, fork],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tmp_path,
        start_new_session=True,
    ) as driver:
        assert driver.stdout is not None
        group = driver.pid
        pid = int(driver.stdout.readline())
        assert is_there(pid)
        driver.send_signal(how)
        driver.wait()
        eventually(lambda: not is_there(pid))
        if fork:
            os.killpg(group, signal.SIGKILL)


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


def test_without_a_process_it_asks_from_this_one_and_says_so(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (server,) = servers(stack, 1)
    monkeypatch.setattr(sys, "executable", "")
    supervisor, _ = open_supervisor(SupervisorOptions(MODEL, base_url=server.base_url, apart=True))
    with supervisor:
        assert isinstance(supervisor.wrapped, RemoteSupervisor)
    assert "servers are asked from this process" in caplog.text


def test_scores_travel_bit_for_bit() -> None:
    scores = [Score(np.array(hashed_log_probs(prompt), dtype=np.float32)) for prompt in random_prompts(7)]
    there = unpacked(packed(scores))
    assert [score.token_log_probs.tobytes() for score in there] == [
        score.token_log_probs.tobytes() for score in scores
    ]


def test_log_records_travel_without_what_hangs_on_them() -> None:
    outbox: SimpleQueue[object] = SimpleQueue()
    record = logging.makeLogRecord({"name": "x", "msg": "%d left", "args": (3,), "lock": threading.Lock()})
    _LogLine(outbox).handle(record)
    sent = outbox.get()
    assert isinstance(sent, logging.LogRecord)
    assert (sent.name, sent.getMessage()) == ("x", "3 left")
    assert pickle.dumps(sent)


def test_errors_travel_as_what_they_are_and_foreign_ones_as_text() -> None:
    error = SupervisorUnavailableError("gone")
    assert sendable(error) is error
    assert sendable(None) is None
    foreign = sendable(KeyError("x"))
    assert type(foreign) is SupervisorError
    assert str(foreign) == "KeyError('x')"
