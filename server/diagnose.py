"""Why a server did not start, or died: its log's last lines to one cause and what mends it. Pure.

The words looked for are those of vLLM 0.32, PyTorch, transformers and uvicorn.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

_PREFIX = re.compile(
    r"^(\([\w.-]+ pid=\d+\)\s*)*((DEBUG|INFO|WARNING|ERROR) [\d-]+ [\d:]+ )?(\[[\w./:]+\]\s*)?"
)
# Lines that name many things which are no cause: levels below ERROR, Python's warnings, and the configuration and
# the batch that vLLM writes out, as errors, when its engine fails.
_IN_PASSING = re.compile(
    r"^(\([\w.-]+ pid=\d+\)\s*)*(DEBUG|INFO|WARNING) |\b\w*Warning: |Dumping (input data|scheduler) "
)
# What the API server says when the engine is gone: no cause of its own.
_DEATH = re.compile(r"EngineDead|engine core exited|died unexpectedly")
_CONSEQUENCE = re.compile(f"Engine core initialization failed|{_DEATH.pattern}")
_FINAL = re.compile(r"^(\w+\.)*\w*(Error|Exception|Interrupt)\b.*")
_DTYPES = "auto, bfloat16, float16 or float32"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A cause, what mends it, and the log's own line that says so (empty: none does).

    ``known``: whether the cause is one of those that are told apart; else it is the log's last error.
    """

    cause: str
    mend: str
    evidence: str = ""
    known: bool = True


class _Rule(NamedTuple):
    pattern: str
    cause: str
    mend: str


# The first that matches wins: a cause before its consequences. {0}, {1}: the groups of the pattern.
_RULES: tuple[_Rule, ...] = (
    _Rule(
        r"[Aa]ddress already in use|\[Errno 98\]",
        "the port is taken by another program",
        "Give another with --port, or end what listens there (ss -ltnp shows it).",
    ),
    _Rule(
        r"argument --dtype: invalid choice: '?([^' ]+)|Unknown dtype: '?([\w.]+)",
        "vLLM knows no dtype {0}",
        f"--dtype takes {_DTYPES}.",
    ),
    _Rule(
        r"Bfloat16 is only supported on GPUs[^.]*",
        "this GPU has no bfloat16",
        "Add --dtype float16.",
    ),
    _Rule(
        r"error: (unrecognized arguments: .+)|error: (argument .+)|error: (ambiguous option.+)",
        "vLLM does not take its arguments: {0}",
        "Correct what stands after the --; vllm serve --help=listgroup lists what this version takes.",
    ),
    _Rule(
        r"GatedRepoError|gated repo|401 Client Error|403 Client Error",
        "the hub does not give this model to you",
        "Accept its licence on its page, and set HF_TOKEN in the environment.",
    ),
    _Rule(
        r"Invalid repository ID or local directory|is not a local folder and is not a valid model|"
        r"RepositoryNotFoundError|Repository Not Found|LocalEntryNotFoundError|OfflineModeIsEnabled|"
        r"couldn't connect to 'https://huggingface|HFValidationError|does not appear to have a file named config",
        "there is no such model, neither as a folder here nor, as far as can be asked, on the hub",
        "Check --model; without a network, give a folder.",
    ),
    _Rule(
        r"User-specified max_model_len \((\d+)\) is greater than the derived max_model_len \(\w+=(\d+)",
        "the model takes {1} tokens at most, not {0}",
        "Add --max-model-len {1}, or lower.",
    ),
    _Rule(
        r"cache is needed, which is larger than the available KV cache memory \(([\d.]+) GiB\)"
        r"(?:.*estimated maximum model length is (\d+))?",
        "too little memory: one text of full length does not fit into the {0} GiB for the KV cache",
        "Lower --max-model-len{1: to }, or give more: VLLM_CPU_KVCACHE_SPACE=GIB on a CPU,"
        " -- --gpu-memory-utilization SHARE on a GPU.",
    ),
    _Rule(
        r"Free memory on device \S+ \(([\d.]+)/([\d.]+) GiB\)",
        "too little memory: of the GPU's {1} GiB only {0} are free",
        "End what holds it (nvidia-smi), choose another GPU with CUDA_VISIBLE_DEVICES, or add"
        " -- --gpu-memory-utilization SHARE.",
    ),
    _Rule(
        r"Available memory on node \d+ \(([\d.]+)/([\d.]+) GiB\)",
        "too little memory: of {1} GiB only {0} are free",
        "End other programs, or set VLLM_CPU_KVCACHE_SPACE to fewer GiB, or serve a smaller model.",
    ),
    _Rule(
        r"CUDA out of memory|OutOfMemoryError|HIP out of memory|No available memory for the cache blocks",
        "too little memory on the GPU",
        "Serve a smaller or quantised model, split it with -- --tensor-parallel-size N, or lower"
        " -- --max-num-batched-tokens.",
    ),
    _Rule(
        r"MemoryError|[Cc]an(no|')t allocate memory|DefaultCPUAllocator",
        "too little memory",
        "End other programs, set VLLM_CPU_KVCACHE_SPACE to fewer GiB, or serve a smaller model.",
    ),
    _Rule(
        r"lscpu.*(?:not found|No such file)|No such file or directory: 'lscpu",
        "vLLM on the CPU needs the program lscpu, and there is none",
        "On Debian and Ubuntu: apt install util-linux.",
    ),
    _Rule(
        r"Model architectures? \[?'?([\w, ']+?)'?\]? (?:is|are|failed)",
        "this vLLM does not know the architecture {0}",
        "Upgrade vLLM, or add -- --model-impl transformers.",
    ),
    _Rule(
        r"(?:set the option|pass the argument|consider setting) .trust_remote_code=True",
        "the model brings its own program code, which is not run unasked",
        "If you trust its author, add -- --trust-remote-code.",
    ),
    _Rule(
        r"SafetensorError|Error while deserializing header|Cannot find any model weights|"
        r"Weights? .* not found in checkpoint",
        "the model's weights are missing or damaged",
        "Fetch or copy the model again.",
    ),
    _Rule(
        r"Failed to infer device type|Device string must not be empty|No CUDA GPUs are available|"
        r"no CUDA-capable device|NVIDIA driver|CUDA driver version|libcuda\.so",
        "this vLLM is built for GPUs, and finds none that works",
        "nvidia-smi must show one, with a driver new enough for the CUDA of this vLLM. On a CPU:"
        " server/install_cpu.sh.",
    ),
    _Rule(
        r"InvalidCxxCompiler|No working C\+\+ compiler|Failed to find C compiler|fatal error: Python\.h",
        "compiling the model needs a C++ compiler and Python's headers",
        "Install them (on Debian and Ubuntu: apt install g++ python3-dev), or add -- --enforce-eager.",
    ),
    _Rule(
        r"No space left on device",
        "a disk is full",
        "Make room where HF_HOME (the models), the temporary files and /dev/shm lie.",
    ),
    _Rule(
        r"(?:ModuleNotFoundError|ImportError): (.+)",
        "vLLM is not completely installed: {0}",
        "Install it again: pip install vllm with a GPU, server/install_cpu.sh on a CPU.",
    ),
)
_SIGNALS = {
    signal.SIGKILL: Diagnosis(
        "a process of the server was killed from outside, most likely by the kernel for lack of memory",
        "See dmesg; end other programs, lower --max-model-len or VLLM_CPU_KVCACHE_SPACE, or serve a smaller"
        " model.",
    ),
    signal.SIGILL: Diagnosis(
        "the processor lacks an instruction that this vLLM was built with",
        "vllm-cpu needs AVX2 at least; build vLLM from its source on this machine.",
    ),
}
_SILENT = Diagnosis(
    "the engine died without a word, so it was killed from outside",
    "If nobody did that, the kernel did for lack of memory: see dmesg, and lower VLLM_CPU_KVCACHE_SPACE or"
    " --max-model-len, or end other programs.",
)


def diagnose(lines: Sequence[str], status: int | None) -> Diagnosis:
    """The cause that a server's last lines and exit status (negative: a signal; None: alive) point at."""
    text = [strip_prefix(line) for line in lines if not _IN_PASSING.search(line)]
    for rule in _RULES:
        for line in text:
            match = re.search(rule.pattern, line)
            if match:
                groups = [group for group in match.groups() if group]
                return Diagnosis(_fill(rule.cause, groups), _fill(rule.mend, groups), line)
    number = _signal_of(text, status)
    if number in _SIGNALS:
        return _SIGNALS[signal.Signals(number)]
    errors = [line for line in text if _FINAL.match(line) and not _CONSEQUENCE.search(line)]
    if any(_DEATH.search(line) for line in text):
        if not errors:
            return _SILENT
        return Diagnosis("the engine died", "", errors[-1], known=False)
    filled = [line for line in text if line.strip()]
    ended = "it does not answer" if status is None else _ended(status)
    return Diagnosis(ended, "", (errors or filled or [""])[-1], known=False)


def strip_prefix(line: str) -> str:
    """A line of vLLM's log without process name, level, time and place."""
    return _PREFIX.sub("", line.rstrip())


def _fill(text: str, groups: Sequence[str]) -> str:
    """``{0}``: the group; ``{1: to }``: the same with words before it, or nothing where there is none."""

    def value(match: re.Match[str]) -> str:
        position = int(match[1])
        return (match[2] or "") + groups[position] if position < len(groups) else ""

    return re.sub(r"\{(\d)(?::([^}]*))?\}", value, text)


def _signal_of(lines: Sequence[str], status: int | None) -> int:
    """The signal that ended the server, or its engine, of which vLLM tells in its last lines; 0: none."""
    if status is not None and status < 0:
        return -status
    for line in reversed(lines):
        engine = re.search(r"Failed core proc\(s\): \{[^}]*: -(\d+)|exit ?code:? -(\d+)", line)
        if engine:
            return int(engine[1] or engine[2])
    return 0


def _ended(status: int) -> str:
    if status < 0:
        return f"it was ended by signal {signal.Signals(-status).name}"
    return f"it ended with status {status}"
