from __future__ import annotations

import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from replug_client.supervisor import cache as cache_module
from replug_client.supervisor.cache import ScoreCache, ScoreCacheError, cache_key
from replug_client.supervisor.canary import Identity
from replug_client.supervisor.protocol import Prompt, Score


def score(*values: float) -> Score:
    return Score(np.array(values, dtype=np.float32))


def key(number: int) -> bytes:
    return cache_key("fingerprint", Prompt((1, 2, number), 1))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "made" / "on" / "demand" / "scores.sqlite"


def test_scores_come_back_bit_for_bit_after_reopening(path: Path) -> None:
    values = score(-1e-30, -0.1, -9999.0, np.nextafter(np.float32(-1), np.float32(0)))
    cache = ScoreCache(path)
    cache.put([(key(1), values), (key(2), score(-2.0))])
    cache.close()
    again = ScoreCache(path)
    found = again.get([key(1), key(3), key(2)])
    assert set(found) == {key(1), key(2)}
    assert found[key(1)].token_log_probs.tobytes() == values.token_log_probs.tobytes()
    assert found[key(1)].token_log_probs.dtype == np.float32
    assert len(again) == 2
    again.close()


def test_the_key_is_of_all_that_makes_a_score_and_of_nothing_else() -> None:
    prompt = Prompt((1, 2, 3), 1, "a label")
    same = [cache_key("f", prompt), cache_key("f", Prompt((1, 2, 3), 1, "another"))]
    others = [
        cache_key("g", prompt),
        cache_key("f", Prompt((1, 2, 3), 2)),
        cache_key("f", Prompt((1, 2, 4), 1)),
        cache_key("f", Prompt((1, 2, 3, 0), 1)),
        cache_key("f", Prompt((0, 1, 2, 3), 1)),
    ]
    assert len(set(same)) == 1
    assert len({*same, *others}) == 1 + len(others)
    assert all(len(k) == 16 for k in (*same, *others))


def test_more_keys_than_a_statement_takes(path: Path) -> None:
    cache = ScoreCache(path)
    cache.put((key(n), score(-float(n))) for n in range(1, 2001))
    found = cache.get([key(n) for n in range(3000)])
    assert len(found) == 2000
    assert found[key(1234)].log_likelihood == -1234
    cache.close()


def test_in_memory_there_is_no_file(tmp_path: Path) -> None:
    cache = ScoreCache(None)
    cache.put([(key(1), score(-1.0))])
    assert list(cache.get([key(1)])) == [key(1)]
    assert list(tmp_path.iterdir()) == []
    cache.close()


def test_threads_share_it(path: Path) -> None:
    cache = ScoreCache(path)

    def work(start: int) -> None:
        for number in range(start, start + 50):
            cache.put([(key(number), score(-1.0))])
            assert key(number) in cache.get([key(number)])

    threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(cache) == 200
    cache.close()


_WRITER = """
import sys
from pathlib import Path
import numpy as np
from replug_client.supervisor.canary import Identity
from replug_client.supervisor.cache import ScoreCache, cache_key
from replug_client.supervisor.protocol import Prompt, Score
path, start, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
cache = ScoreCache(path)
score = Score(np.array([-1], dtype=np.float32))
for number in range(start, start + count):
    cache.put([(cache_key("fingerprint", Prompt((1, 2, number), 1)), score)])
    print(number, flush=True)
"""


def writer(path: Path, start: int, count: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", _WRITER, str(path), str(start), str(count)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


def test_processes_share_it(path: Path) -> None:
    processes = [writer(path, 1000 * n, 100) for n in range(3)]
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [0, 0, 0]
    cache = ScoreCache(path)
    assert len(cache) == 300
    cache.close()


def test_kill_9_loses_nothing_that_was_put(path: Path) -> None:
    process = writer(path, 0, 100_000)
    assert process.stdout is not None
    put = [int(process.stdout.readline()) for _ in range(50)]
    os.kill(process.pid, signal.SIGKILL)
    put += [int(line) for line in process.stdout.read().split("\n") if line.isdigit()]
    process.wait()
    cache = ScoreCache(path)
    assert len(cache.get([key(number) for number in put])) == len(put) >= 50
    cache.close()


def test_a_file_that_is_no_database_is_moved_aside(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"this is no database" * 1000)
    with caplog.at_level(logging.WARNING):
        cache = ScoreCache(path)
    assert "is damaged" in caplog.text
    cache.put([(key(1), score(-1.0))])
    assert len(cache) == 1
    cache.close()
    (aside,) = path.parent.glob("*.damaged-*")
    assert aside.read_bytes().startswith(b"this is no database")


def test_damage_found_later_does_not_lose_what_is_put_then(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ScoreCache(path)
    cache.put((key(n), score(*[-1.0] * 64)) for n in range(2000))
    cache.close()
    data = bytearray(path.read_bytes())
    for start in range(4096 * 3, len(data), 4096):
        data[start : start + 200] = os.urandom(200)  # the header of each page but the first ones
    path.write_bytes(data)
    cache = ScoreCache(path)
    with caplog.at_level(logging.WARNING):
        cache.get([key(n) for n in range(2000)])
        cache.put([(key(5000), score(-5.0))])
    assert "is damaged" in caplog.text
    assert cache.get([key(5000)])[key(5000)].log_likelihood == -5
    assert list(path.parent.glob("*.damaged-*"))
    cache.close()


@pytest.mark.parametrize("value", [b"", b"1234", b"1234567", bytes(12), "text", None])
def test_a_damaged_value_is_a_missing_one(
    path: Path, value: object, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ScoreCache(path)
    cache.put([(key(1), score(-1.0, -2.0)), (key(2), score(-3.0))])
    cache.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE scores SET value = ? WHERE key = ?", (value, key(1)))
    connection.close()
    cache = ScoreCache(path)
    with caplog.at_level(logging.WARNING):
        assert list(cache.get([key(1), key(2)])) == [key(2)]
    assert "damaged score" in caplog.text
    cache.put([(key(1), score(-1.0))])
    assert cache.get([key(1)])[key(1)].log_likelihood == -1
    cache.close()


@pytest.mark.parametrize(
    ("found", "put"),
    [
        (None, (18, b"\x09")),  # a version of the file that may only be read
        (None, (47, b"\x09")),  # a format of the schema that is not known
        (b"canary", b"canarx"),
        (b"value BLOB", b"valuX BLOB"),
        (b"other_names (identity", b"other_names (identitX"),
        (b"CREATE TABLE", b"CREATE \xff\xfeBLE"),
    ],
    ids=str,
)
def test_a_damaged_header_or_schema_is_moved_aside(
    found: bytes | None, put: tuple[int, bytes] | bytes, path: Path
) -> None:
    cache = ScoreCache(path)
    cache.recognise(identity())
    cache.put([(key(1), score(-1.0))])
    cache.close()
    data = path.read_bytes()
    if found is None:
        assert isinstance(put, tuple)
        at, byte = put
        data = data[:at] + byte + data[at + 1 :]
    else:
        assert isinstance(put, bytes) and found in data
        data = data.replace(found, put)
    path.write_bytes(data)
    cache = ScoreCache(path)
    cache.recognise(identity())
    cache.put([(key(2), score(-2.0))])
    assert cache.get([key(2)])[key(2)].log_likelihood == -2
    cache.close()
    assert list(path.parent.glob("*.damaged-*"))


def test_a_file_of_another_format_is_moved_aside(path: Path) -> None:
    path.parent.mkdir(parents=True)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    cache = ScoreCache(path)
    assert len(cache) == 0
    cache.close()
    assert list(path.parent.glob("*.damaged-*"))


def test_a_full_disk_is_a_typed_error_and_keeps_what_was_put(path: Path) -> None:
    cache = ScoreCache(path)
    cache.put([(key(1), score(-1.0))])
    (pages,) = cache._connection.execute("PRAGMA page_count").fetchone()
    cache._connection.execute(f"PRAGMA max_page_count={pages + 1}")  # SQLite then says what a full disk says
    with pytest.raises(ScoreCacheError, match=r"cannot write.*full.*--cache_dir"):
        cache.put((key(n), score(*[-1.0] * 1000)) for n in range(10, 100))
    assert set(cache.get([key(1), key(10)])) == {key(1)}
    cache.close()


def test_a_place_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ScoreCacheError, match=r"cannot be opened.*--cache_dir"):
        ScoreCache(tmp_path / "file" / "scores.sqlite")


def test_a_closed_cache_says_so(path: Path) -> None:
    cache = ScoreCache(path)
    cache.close()
    with pytest.raises(ScoreCacheError, match="closed"):
        cache.get([key(1)])


def identity(shift: float = 0.0, spike: float = 0.0, model: str = "m") -> Identity:
    """A supervisor whose canary is off by ``shift`` everywhere, and by ``spike`` at one token."""
    values = np.linspace(-8, -0.5, 32, dtype=np.float32) + np.float32(shift)
    values[7] -= spike
    return Identity({"kind": "server", "model": model}, Score(values))


def test_noise_does_not_make_another_supervisor(path: Path) -> None:
    cache = ScoreCache(path)
    first = cache.recognise(identity())
    cache.close()
    again = ScoreCache(path)
    assert [again.recognise(identity(shift)) for shift in (0.0, 1e-5, -0.02, 0.029)] == [first] * 4
    assert again.recognise(identity(spike=0.14)) == first
    again.close()


@pytest.mark.parametrize(
    "other", [identity(0.031), identity(-0.2), identity(spike=0.16), identity(model="n")]
)
def test_another_model_is_another_supervisor(path: Path, other: Identity) -> None:
    cache = ScoreCache(path)
    assert cache.recognise(identity()) != cache.recognise(other) == cache.recognise(other)
    cache.close()


def named(*models: str, shift: float = 0.0) -> Identity:
    """Replicas with the same weights in different places."""
    first, *others = [{"kind": "server", "model": model} for model in models]
    return Identity(first, identity(shift).canary, tuple(others))


@pytest.mark.parametrize(
    "met", [("a", "b"), ("b", "a"), ("a", "b", "c"), ("b",), ("c", "b"), ("b", "c")], ids="+".join
)
def test_replicas_with_other_folders_are_one_supervisor_whichever_are_there(
    met: tuple[str, ...], path: Path
) -> None:
    cache = ScoreCache(path)
    first = cache.recognise(named("a", "b"))
    cache.close()
    again = ScoreCache(path)
    assert again.recognise(named(*met, shift=0.01)) == first
    assert again.recognise(named(met[-1])) == first
    assert again.recognise(named("a", shift=0.2)) != first
    assert again.recognise(named("d")) != first
    again.close()


def test_a_replica_alone_and_then_with_another_is_one_supervisor_too(path: Path) -> None:
    cache = ScoreCache(path)
    first = cache.recognise(named("b"))
    assert cache.recognise(named("a", "b")) == cache.recognise(named("a")) == first
    cache.close()


def test_of_replicas_met_one_by_one_the_same_is_taken_whatever_the_noise() -> None:
    cache = ScoreCache(None)
    first, second = cache.recognise(named("a")), cache.recognise(named("b"))
    assert first != second
    for shift in (-0.001, 0.0, 0.001):
        assert cache.recognise(named("a", "b", shift=shift)) == cache.recognise(named("b", "a")) == first
    cache.close()


def test_small_steps_do_not_add_up() -> None:
    cache = ScoreCache(None)
    found = [cache.recognise(identity(0.02 * step)) for step in range(4)]
    assert found[0] == found[1] != found[2] == found[3]
    cache.close()


# What version 1 of this file wrote: a table without row ids, and a fingerprint of the rounded canary.
_OLD_TABLE = "CREATE TABLE scores (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID"
_OLD_FINGERPRINT = "6417de467adf8c694d27225930077463c0041ca228c7b8194de3ad086c5bc9e0"


def test_scores_of_an_older_file_are_found_and_added_to(path: Path) -> None:
    cache = ScoreCache(path)
    prompt = Prompt((1, 2, 3), 1)
    cache.put([(cache_key(_OLD_FINGERPRINT, prompt), score(-1.5))])
    rows = cache._connection.execute("SELECT key, value FROM scores").fetchall()
    cache.close()
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute(_OLD_TABLE)
        connection.executemany("INSERT INTO scores VALUES (?, ?)", rows)
        connection.execute("PRAGMA user_version=1")
    connection.close()
    old = ScoreCache(path)
    fingerprint = old.recognise(identity())
    assert fingerprint == _OLD_FINGERPRINT
    assert old.get([cache_key(fingerprint, prompt)]).popitem()[1].log_likelihood == -1.5
    old.put([(key(5), score(-2.0))])
    assert len(old) == 2
    old.close()
    assert not list(path.parent.glob("*.damaged-*"))


def test_a_supervisor_keeps_its_fingerprint_when_the_file_is_set_aside(path: Path) -> None:
    cache = ScoreCache(path)
    fingerprint = cache.recognise(identity())
    cache.close()
    cache = ScoreCache(path)
    assert cache.recognise(identity(0.02)) == fingerprint
    cache._connection.close()
    cache._connection = cache._open(damage="for the test")
    assert cache.recognise(identity(0.02)) == fingerprint
    cache.close()


def test_a_file_that_another_process_has_replaced_is_not_moved_aside(path: Path) -> None:
    one, two = ScoreCache(path), ScoreCache(path)
    one._set_aside(path, "found first")
    fresh = ScoreCache(path)
    fresh.put([(key(1), score(-1.0))])
    two._set_aside(path, "found second, of the same old file")
    assert len(list(path.parent.glob("*.damaged-*"))) == 1
    assert len(fresh) == 1
    for cache in (one, two, fresh):
        cache.close()


def test_two_that_find_a_damaged_file_at_once_begin_one_new_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first has seen the damage; before it does anything the second does all that it wants to, if it can."""
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no database" * 1000)
    connect, seen, go_on = cache_module._connect, threading.Event(), threading.Event()

    def slowly(name: str) -> sqlite3.Connection:
        try:
            return connect(name)
        except cache_module._DamagedError:
            if threading.current_thread().name == "first":
                seen.set()
                go_on.wait(0.5)
            raise

    monkeypatch.setattr(cache_module, "_connect", slowly)
    first = threading.Thread(target=lambda: ScoreCache(path).close(), name="first")
    first.start()
    assert seen.wait(20)
    second = ScoreCache(path)
    second.put([(key(1), score(-1.0))])
    go_on.set()
    first.join(20)
    second.close()
    assert len(list(path.parent.glob("*.damaged-*"))) == 1
    again = ScoreCache(path)
    assert set(again.get([key(1)])) == {key(1)}
    again.close()


def test_a_file_that_others_keep_locked_is_not_called_a_full_disk(path: Path) -> None:
    cache = ScoreCache(path)
    cache._connection.execute("PRAGMA busy_timeout=10")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(ScoreCacheError, match=r"locked.*another process.*--cache_dir") as caught:
        cache.put([(key(1), score(-1.0))])
    assert "space" not in str(caught.value)
    other.close()
    cache.close()
