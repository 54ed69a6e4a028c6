"""Causes told from logs; the messages are those of vLLM 0.32, PyTorch and Python, word for word."""

from __future__ import annotations

import pytest

from server.diagnose import diagnose, strip_prefix
from server.progress import FIRST, later_stage, stage_of

ENGINE = "(EngineCore pid=123) ERROR 11-21 12:00:00 [core.py:1510] "
HELLO = "(APIServer pid=1) INFO 11-21 11:59:59 [api.py:1] hello"
FAILED = "RuntimeError: Engine core initialization failed. Failed core proc(s): {'EngineCore': 1}"
CONFIG = (
    "(EngineCore pid=7) INFO 11-21 12:00:00 [core.py:134] Initializing a V1 engine: trust_remote_code=False"
)
NODE = (
    "ValueError: Available memory on node 0 (1.2/23.5 GiB) on kv cache allocation is less than requested"
    " memory for kv (4.0 GiB). Decrease --kv-cache-memory-bytes, VLLM_CPU_KVCACHE_SPACE, or reduce CPU memory"
    " used by other processes."
)
KV = (
    "ValueError: To serve at least one request with the model's max seq len (131072), (14.0 GiB KV cache is"
    " needed, which is larger than the available KV cache memory (4.0 GiB). Based on the available memory, the"
    " estimated maximum model length is 37376. Try increasing `gpu_memory_utilization`"
)
DERIVED = (
    "Value error, User-specified max_model_len (9999) is greater than the derived max_model_len"
    " (max_position_embeddings=1024 or model_max_length=None in model's config.json)."
)
DUMPS = [
    ENGINE
    + "Dumping input data for V1 LLM engine (v0.32.0) with config: model='lm', trust_remote_code=False,",
    ENGINE
    + "Dumping scheduler output for model execution: SchedulerOutput(req='set the option `trust_remote_code=True`')",
    ENGINE + "Dumping scheduler stats: SchedulerStats(note='No space left on device')",
]
DRIVER = (
    "/env/lib/torch/cuda/__init__.py:180: UserWarning: CUDA initialization: The NVIDIA driver on your system is too"
    " old (found version 11040)."
)
FREE = (
    "ValueError: Free memory on device cuda:0 (3.1/79.2 GiB) on startup is less than desired GPU memory"
    " utilization (0.9, 71.3 GiB). Decrease GPU memory utilization"
)


@pytest.mark.parametrize(
    ("line", "cause", "mend"),
    [
        ("OSError: [Errno 98] Address already in use", "port is taken", "--port"),
        ("api_server.py: error: unrecognized arguments: --fooo 1", "--fooo 1", "after the --"),
        ("api_server.py: error: argument --dtype: invalid choice: 'bf8' (choose from 'auto')", "dtype bf8", "float16"),
        ("api_server.py: error: argument --seed: invalid int value: 'x'", "--seed: invalid int", "after the --"),
        ("OSError: foo/bar is not a local folder and is not a valid model identifier", "no such model", "--model"),
        ("ValueError: Invalid repository ID or local directory specified: 'x'.", "no such model", "--model"),
        ("huggingface_hub.errors.GatedRepoError: 401 Client Error.", "does not give", "HF_TOKEN"),
        (DERIVED, "takes 1024 tokens at most, not 9999", "--max-model-len 1024"),
        (KV, "the 4.0 GiB for the KV cache", "--max-model-len to 37376"),
        (KV.partition("Based")[0], "the 4.0 GiB for the KV cache", "Lower --max-model-len, or"),
        (FREE, "of the GPU's 79.2 GiB only 3.1 are free", "CUDA_VISIBLE_DEVICES"),
        (NODE, "of 23.5 GiB only 1.2 are free", "VLLM_CPU_KVCACHE_SPACE"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "memory on the GPU", "tensor-parallel"),
        ("RuntimeError: DefaultCPUAllocator: can't allocate", "too little memory", "End"),
        ("/bin/sh: 1: lscpu: not found", "lscpu", "util-linux"),
        ("Value error, Model architectures ['FooForCausalLM'] are not supported for now.", "FooForCausalLM", "Upgrade"),
        ("safetensors_rust.SafetensorError: Error while deserializing header", "damaged", "again"),
        ("RuntimeError: Failed to infer device type", "finds none", "install_cpu.sh"),
        ("torch._inductor.exc.InductorError: InvalidCxxCompiler: No working C++ compiler found", "C++", "g++"),
        ("OSError: [Errno 28] No space left on device", "disk is full", "HF_HOME"),
        ("ModuleNotFoundError: No module named 'xgrammar'", "No module named 'xgrammar'", "Install"),
        ("machine. Please set the option `trust_remote_code=True` to permit", "own program code", "trust"),
        ("Please pass the argument `trust_remote_code=True` to allow custom code", "own program code", "trust"),
        ("RuntimeError: Failed to load the model config. consider setting `trust_remote_code=True`", "code", "trust"),
    ],
)  # fmt: skip
def test_a_known_message_becomes_a_cause_and_a_mend(line: str, cause: str, mend: str) -> None:
    for prefix in ("", ENGINE):
        found = diagnose([HELLO, prefix + line, FAILED], 1)
        assert found.known
        assert cause in found.cause
        assert mend in found.mend
        assert found.evidence == line.rstrip()


def test_what_is_said_in_passing_is_no_cause() -> None:
    lines = [
        CONFIG,
        "WARNING 11-21 12:00:00 [x.py:1] Failed to import: ModuleNotFoundError: No module named 'vllm._C'",
        ENGINE + "Traceback (most recent call last):",
        ENGINE + "ZeroDivisionError: division by zero",
        FAILED,
    ]
    found = diagnose(lines, 1)
    assert not found.known
    assert found.evidence == "ZeroDivisionError: division by zero"
    assert "status 1" in found.cause


def test_what_vllm_writes_out_when_its_engine_fails_is_no_cause() -> None:
    found = diagnose([*DUMPS, ENGINE + "IndexError: list index out of range", "died unexpectedly"], 1)
    assert (found.cause, found.evidence) == ("the engine died", "IndexError: list index out of range")
    unseen = diagnose(["RuntimeError: the engine's args: trust_remote_code=False"], 1)
    assert not unseen.known


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ([], -9),
        ([DRIVER], -9),
        (["RuntimeError: Engine core initialization failed. Failed core proc(s): {'EngineCore': -9}"], 1),
    ],
)
def test_a_kill_is_laid_at_the_kernels_door(lines: list[str], status: int) -> None:
    found = diagnose(lines, status)
    assert found.known
    assert "lack of memory" in found.cause


def test_an_engine_that_dies_is_told_with_its_own_error_if_it_had_one() -> None:
    gone = [
        "(APIServer pid=1) WARNING 11-21 13:02:06 [core_client.py:817] [shutdown] MPClient: engine core exited",
        "(APIServer pid=1) ERROR 11-21 13:02:06 [a.py:9] vllm.v1.engine.exceptions.EngineDeadError: EngineCore",
    ]
    assert "killed from outside" in diagnose(gone, None).cause
    found = diagnose([ENGINE + "IndexError: list index out of range", *gone], None)
    assert (found.cause, found.evidence) == ("the engine died", "IndexError: list index out of range")


def test_nothing_at_all_is_still_a_diagnosis() -> None:
    assert "status 3" in diagnose([], 3).cause
    assert "SIGSEGV" in diagnose([], -11).cause
    assert "does not answer" in diagnose([], None).cause


def test_prefixes_go() -> None:
    assert strip_prefix("(APIServer pid=9) INFO 11-21 12:32:06 [entry.py:140] Starting vLLM server") == (
        "Starting vLLM server"
    )
    assert strip_prefix("plain") == "plain"


@pytest.mark.parametrize(
    ("line", "stage"),
    [
        ("INFO 11-21 [cpu_model_runner.py:68] Starting to load model demo/lm...", "loading the model"),
        ("INFO 11-21 [default_loader.py:502] Loading weights took 0.31 seconds", "weights loaded"),
        ("INFO 11-21 [model_runner.py:13] Warming up model for the compilation...", "compiling"),
        ("INFO 11-21 [kv_cache_utils.py:2328] CPU KV cache size: 4,096 tokens", "setting up the KV cache"),
        ("INFO 11-21 [entry.py:140] Starting vLLM server on http://127.0.0.1:8000", "opening the port"),
        ("INFO 11-21 something else", None),
    ],
)
def test_stages_are_told_from_lines(line: str, stage: str | None) -> None:
    assert stage_of(line) == stage


def test_a_start_never_goes_back() -> None:
    stage = FIRST
    for line, expected in [
        ("Enforce eager set, disabling torch.compile, CUDAGraphs", FIRST),
        ("Initializing a V1 LLM engine (v0.32.0)", "starting the engine"),
        ("Resolved architecture: LlamaForCausalLM", "starting the engine"),
        ("CPU KV cache size: 4,096 tokens", "setting up the KV cache"),
    ]:
        stage = later_stage(stage, line)
        assert stage == expected
