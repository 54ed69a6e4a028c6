from __future__ import annotations

import hashlib
import json
import socket
from pathlib import Path

import pytest

from replug_client.corpus.download import Checksum, DownloadOptions, fetch
from replug_client.errors import DownloadError
from tests.corpus.file_server import FileServer, serving

BODY = bytes(range(256)) * 40_000  # 10 MB: more than what sockets hold back
QUICK = DownloadOptions(attempts=3, wait=0.0, timeout=5.0)
MD5 = Checksum("md5", hashlib.md5(BODY).hexdigest())


def test_a_file_is_fetched_whole_and_its_hashes_are_recorded(tmp_path: Path) -> None:
    with serving(FileServer(BODY)) as server:
        path = fetch(f"{server.url}/a.zip", tmp_path / "a.zip", checksum=MD5, options=QUICK)
    assert path.read_bytes() == BODY
    record = json.loads((tmp_path / "a.zip.json").read_text())
    assert record == {
        "url": f"{server.url}/a.zip",
        "bytes": len(BODY),
        "md5": MD5.value,
        "sha256": hashlib.sha256(BODY).hexdigest(),
    }
    assert not list(tmp_path.glob("*.part*")) and not list(tmp_path.glob(".a.zip.part*"))


def test_a_broken_connection_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with serving(FileServer(BODY, cut_after=[3_000_000, 2_000_000])) as server:
        fetch(f"{server.url}/a", tmp_path / "a", checksum=MD5, options=QUICK)
    assert (tmp_path / "a").read_bytes() == BODY
    assert server.seen[0] is None and len(server.seen) == 3
    starts = [int(str(asked).removeprefix("bytes=").removesuffix("-")) for asked in server.seen[1:]]
    assert starts == [3_000_000, 5_000_000]


def test_a_killed_download_is_gone_on_with_by_the_next_one(tmp_path: Path) -> None:
    with serving(FileServer(BODY, cut_after=[4_000_000, 0, 0, 0])) as server:
        with pytest.raises(DownloadError, match="cannot be fetched"):
            fetch(f"{server.url}/a", tmp_path / "a", options=QUICK)
        assert not (tmp_path / "a").exists()
        server.seen.clear()
        server.cut_after.clear()
        fetch(f"{server.url}/a", tmp_path / "a", options=QUICK)
        assert server.seen == ["bytes=4000000-"]
    assert (tmp_path / "a").read_bytes() == BODY


def test_halves_of_two_versions_are_never_joined(tmp_path: Path) -> None:
    with serving(FileServer(b"old" * 1_000_000, cut_after=[1_000_000, 0, 0, 0])) as server:
        with pytest.raises(DownloadError):
            fetch(f"{server.url}/a", tmp_path / "a", options=QUICK)
        server.body, server.cut_after = b"new" * 1_000_000, []
        fetch(f"{server.url}/a", tmp_path / "a", options=QUICK)
    assert (tmp_path / "a").read_bytes() == b"new" * 1_000_000


@pytest.mark.parametrize("ability", ["ranges", "validator"])
def test_a_server_that_cannot_resume_is_asked_from_the_beginning(tmp_path: Path, ability: str) -> None:
    server = FileServer(BODY, cut_after=[3_000_000])
    setattr(server, ability, False)
    with serving(server):
        fetch(f"{server.url}/a", tmp_path / "a", checksum=MD5, options=QUICK)
    assert (tmp_path / "a").read_bytes() == BODY
    assert len(server.seen) == 2


def test_a_wrong_hash_is_refused_and_the_file_is_not_there(tmp_path: Path) -> None:
    with (
        serving(FileServer(b"something else")) as server,
        pytest.raises(DownloadError, match=f"expected {MD5.value}.*put it there"),
    ):
        fetch(f"{server.url}/a", tmp_path / "a", checksum=MD5, options=QUICK, mend="Or put it there.")
    assert not (tmp_path / "a").exists()
    assert (tmp_path / "a.wrong").read_bytes() == b"something else"


def test_without_a_published_hash_later_files_are_held_to_the_first(tmp_path: Path) -> None:
    with serving(FileServer(b"first")) as server:
        url = f"{server.url}/a"
        fetch(url, tmp_path / "a", options=QUICK)
        (tmp_path / "a").unlink()
        fetch(url, tmp_path / "a", options=QUICK)  # the same again passes
        (tmp_path / "a").unlink()
        server.body = b"other"
        with pytest.raises(DownloadError, match=r"a new version was published, remove .*a\.json"):
            fetch(url, tmp_path / "a", options=QUICK)


def test_a_file_put_there_by_hand_needs_no_network(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(BODY)
    fetch("http://127.0.0.1:9/a", tmp_path / "a", checksum=MD5, options=QUICK)
    (tmp_path / "b").write_bytes(b"damaged")
    with pytest.raises(DownloadError, match="damaged, or not the file"):
        fetch("http://127.0.0.1:9/b", tmp_path / "b", checksum=MD5, options=QUICK)


def test_what_is_transient_is_tried_again_and_what_is_not_is_not(tmp_path: Path) -> None:
    with serving(FileServer(b"x", statuses=[503, 429, 200])) as server:
        fetch(f"{server.url}/a", tmp_path / "a", options=QUICK)
        assert len(server.seen) == 3
    with serving(FileServer(b"x", statuses=[404, 200])) as server:
        with pytest.raises(DownloadError, match="answers 404"):
            fetch(f"{server.url}/b", tmp_path / "b", options=QUICK)
        assert len(server.seen) == 1


def test_offline_the_error_says_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(DownloadError, match=r"cannot be fetched .*Put it there\."):
        fetch(f"http://127.0.0.1:{port}/a", tmp_path / "a", options=QUICK, mend="Put it there.")
