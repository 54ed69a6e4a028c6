"""What is planned for a machine, a model and options: flags, environment, devices, refusals."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from server.detect import Build, Gpu, Machine, Model, read_model
from server.errors import ServerError
from server.options import ServeOptions, WatchOptions
from server.plan import Plan, plan

CPU = Build("/env/bin/python", "0.32.0", "cpu")
GPU = Build("/env/bin/python", "0.32.0", "gpu")
LAPTOP = Machine(2, frozenset({"avx2", "avx512_bf16"}), 16.0)
H100 = Gpu("0", "H100", 80.0, 79.0)
FOLDER = Model(folder=Path("/models/lm"), max_positions=1024, vocabulary=8000)


def box(*gpus: Gpu) -> Machine:
    return Machine(32, frozenset(), 200.0, gpus or (H100,))


def make(
    options: ServeOptions | None = None,
    build: Build = CPU,
    machine: Machine = LAPTOP,
    model: Model = FOLDER,
    environ: Mapping[str, str] | None = None,
) -> Plan:
    return plan(options or ServeOptions("lm"), build, machine, model, environ or {})


def flags(made: Plan) -> tuple[str, ...]:
    return made.commands[0].arguments


def value(made: Plan, flag: str) -> str | None:
    found = [word.partition("=")[2] for word in flags(made) if word.partition("=")[0] == flag]
    assert len(found) <= 1
    return found[0] if found else None


def test_every_setting_says_why() -> None:
    for made in (make(), make(build=GPU, machine=box())):
        assert all(setting.why for setting in made.settings)
        assert all(setting.text in flags(made) for setting in made.settings if setting.name.startswith("--"))


def test_a_small_cpu_uses_every_core_and_its_bfloat16() -> None:
    made = make()
    assert flags(made)[:4] == (
        "/env/bin/python",
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model=/models/lm",
    )
    assert value(made, "--dtype") == "bfloat16"
    assert value(made, "--host") == "127.0.0.1"
    environment = made.commands[0].environment
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "4"
    assert "--enable-scale-out" not in flags(made)
    assert "--enable-tokenizer-info-endpoint" in flags(made)


def test_a_cpu_compiles_where_it_can_and_was_not_told_otherwise() -> None:
    assert "--enforce-eager" in flags(make())
    able = replace(CPU, compiles=True)
    assert "--enforce-eager" not in flags(make(build=able))
    assert (
        flags(make(ServeOptions("lm", extra=("--enforce-eager",)), build=able)).count("--enforce-eager") == 1
    )


def test_a_cpu_without_bfloat16_is_given_float32() -> None:
    assert value(make(machine=Machine(4, frozenset({"avx2"}), 8.0)), "--dtype") == "float32"


def test_a_large_cpu_is_left_to_vllm_unless_it_is_shared() -> None:
    server = Machine(32, frozenset({"amx_bf16"}), 200.0)
    assert "OMP_NUM_THREADS" not in make(machine=server).commands[0].environment
    shared = make(ServeOptions("lm", replicas=4), machine=server)
    assert [command.environment["OMP_NUM_THREADS"] for command in shared.commands] == ["8"] * 4
    assert any("replicas" in warning for warning in shared.warnings)


def test_little_memory_gives_little_cache_but_some() -> None:
    assert make(machine=Machine(2, frozenset(), 1.5)).commands[0].environment["VLLM_CPU_KVCACHE_SPACE"] == "1"


def test_a_gpu_gets_the_fast_path_and_room_for_logits() -> None:
    made = make(build=GPU, machine=box(), model=Model(Path("/models/lm"), 131072, 152_000))
    assert flags(made)[:5] == ("/env/bin/python", "-m", "vllm.entrypoints.cli.main", "serve", "/models/lm")
    assert "--enable-scale-out" in flags(made)
    assert value(made, "--max-num-batched-tokens") == "8192"
    assert value(made, "--max-model-len") == "4096"
    assert value(made, "--dtype") is None
    # 8192 x 152000 x 6 B = 6.96 GiB of logits and 1 GiB beside them, of 80 GiB.
    assert value(made, "--gpu-memory-utilization") == f"{1 - (8192 * 152_000 * 6 / 2**30 + 1) / 80:.2f}"


def test_a_gpu_in_use_gives_what_is_free() -> None:
    made = make(build=GPU, machine=box(Gpu("0", "A10", 24.0, 12.0)))
    assert value(made, "--gpu-memory-utilization") == "0.48"
    with pytest.raises(ServerError, match=r"only 0\.5 GiB free"):
        make(build=GPU, machine=box(Gpu("0", "A10", 24.0, 0.5)))


def test_a_gpu_that_is_not_used_does_not_count() -> None:
    machine = box(H100, Gpu("1", "A10", 24.0, 0.5))
    assert value(make(build=GPU, machine=machine), "--max-num-batched-tokens") == "8192"
    with pytest.raises(ServerError, match="GiB free"):
        make(ServeOptions("lm", extra=("-tp", "2")), GPU, machine)


def test_memory_that_cannot_be_read_is_taken_for_plenty() -> None:
    made = make(machine=Machine(2, frozenset(), float("inf")))
    assert made.commands[0].environment["VLLM_CPU_KVCACHE_SPACE"] == "4"


def test_an_older_vllm_is_not_given_flags_it_does_not_know() -> None:
    old = Build("/env/bin/python", "0.11.2", "gpu")
    assert "--enable-scale-out" not in flags(make(build=old, machine=box()))
    assert value(make(build=old, machine=box(), model=Model(None)), "--max-model-len") == "4096"
    assert value(make(build=GPU, machine=box(), model=Model(None)), "--max-model-len") == "-1"


def test_a_folder_is_served_from_its_own_path_under_the_name_that_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "config.json").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "lm")
    monkeypatch.chdir(tmp_path)
    for typed in ("lm", "./lm/", "../" + tmp_path.name + "/lm", "link", str(tmp_path / "lm")):
        made = make(ServeOptions(typed), model=read_model(typed, {}))
        assert value(made, "--model") == str((tmp_path / "lm").resolve())
        assert value(made, "--served-model-name") == typed
    own = make(ServeOptions("lm", extra=("--served-model-name", "mine")))
    assert [word for word in flags(own) if "served-model-name" in word] == ["--served-model-name"]
    named = make(ServeOptions("org/name"), model=Model(None))
    assert value(named, "--model") == "org/name"
    assert value(named, "--served-model-name") is None


def test_what_the_user_gives_wins() -> None:
    options = ServeOptions(
        "lm",
        max_model_len=512,
        dtype="float32",
        extra=("--gpu_memory_utilization", "0.5", "--enable-prefix-caching", "--max-num-batched-tokens=1024"),
    )
    made = make(options, GPU, box())
    assert value(made, "--max-model-len") == "512"
    assert value(made, "--dtype") == "float32"
    assert value(made, "--max-num-batched-tokens") == "1024"
    assert value(made, "--gpu-memory-utilization") is None
    assert "--no-enable-prefix-caching" not in flags(made)
    assert flags(made)[-4:] == options.extra


def test_the_environment_wins_and_is_told() -> None:
    made = make(environ={"OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1"})
    assert "OMP_NUM_THREADS" not in made.commands[0].environment
    assert [warning for warning in made.warnings if "OMP_NUM_THREADS=1 is kept" in warning]
    assert not [warning for warning in made.warnings if "USAGE" in warning]
    assert made.commands[0].full_environment({"OMP_NUM_THREADS": "1"})["OMP_NUM_THREADS"] == "1"


def test_replicas_share_out_the_gpus() -> None:
    machine = box(*(Gpu(str(i), "H100", 80.0, 79.0) for i in range(4)))
    made = make(ServeOptions("lm", replicas=2, extra=("-tp", "2")), GPU, machine)
    assert [command.environment["CUDA_VISIBLE_DEVICES"] for command in made.commands] == ["0,1", "2,3"]
    assert made.base_urls == ["http://127.0.0.1:8000/v1", "http://127.0.0.1:8001/v1"]
    with pytest.raises(ServerError, match=r"3 replica\(s\) of 2 GPU\(s\), but there are 4"):
        make(ServeOptions("lm", replicas=3, extra=("--tensor-parallel-size=2",)), GPU, machine)
    with pytest.raises(ServerError, match="must be a number"):
        make(ServeOptions("lm", replicas=2, extra=("-tp", "two")), GPU, machine)
    with pytest.raises(ServerError, match="shows no GPU"):
        make(ServeOptions("lm", replicas=2), GPU, LAPTOP)
    alone = make(ServeOptions("lm", extra=("-tp", "8")), GPU, machine)  # Ray may have more elsewhere
    assert "CUDA_VISIBLE_DEVICES" not in alone.commands[0].environment


@pytest.mark.parametrize("key", ["sekret-123\n", "sekret ", "sekr\u00e9t", "sekret\t"])
def test_a_key_that_no_header_can_carry_is_refused_at_once_and_not_said(key: str) -> None:
    with pytest.raises(ServerError, match="the API key in VLLM_API_KEY has") as caught:
        make(environ={"VLLM_API_KEY": key})
    assert "sekr" not in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("--api-key=sekret", "process list"),
        ("--api-ke=sekret", "process list"),
        ("--api_k", "process list"),
        ("--mod", "Give --model before it"),
        ("--max-model-l=9", "Give --max-model-len before it"),
        ("--grpc", "nothing to probe"),
        ("--ssl-keyfile=k", "reverse proxy"),
    ],
)
def test_what_must_not_stand_behind_the_dashes_is_known_by_its_beginning(argument: str, says: str) -> None:
    with pytest.raises(ServerError, match=says) as caught:
        ServeOptions("lm", extra=(argument,))
    assert "sekret" not in str(caught.value)


def test_what_only_resembles_them_is_left_alone() -> None:
    extra = ("-tp", "2", "--model-impl=vllm", "--", "-", "", "--api-server-count", "2")
    assert ServeOptions("lm", extra=extra).extra == extra


@pytest.mark.parametrize("variable", ["VLLM_API_KEY", "OPENAI_API_KEY"])
def test_the_key_goes_from_environment_to_environment_only(variable: str) -> None:
    environ = {variable: "sk-very-secret"}
    made = make(environ=environ)
    command = made.commands[0]
    assert "sk-very-secret" not in repr(made)
    assert "sk-very-secret" not in command.shell()
    assert command.full_environment(environ)["VLLM_API_KEY"] == "sk-very-secret"
    assert ('VLLM_API_KEY="$OPENAI_API_KEY"' in command.shell()) is (variable == "OPENAI_API_KEY")


def test_listening_to_the_world_is_warned_of() -> None:
    made = make(ServeOptions("lm", host="0.0.0.0"))
    assert any("VLLM_API_KEY" in warning for warning in made.warnings)
    assert made.commands[0].base_url == "http://127.0.0.1:8000/v1"
    assert value(made, "--host") == "0.0.0.0"
    assert not any("whoever" in warning for warning in make(environ={"VLLM_API_KEY": "k"}).warnings)


def test_the_shell_command_is_the_command() -> None:
    made = make(ServeOptions("a model"), environ={})
    command = made.commands[0]
    words = shlex.split(command.shell().replace("\\\n", " "))
    variables = [f"{name}={text}" for name, text in command.environment.items()]
    assert words == [*variables, *command.arguments]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": ""}, "--model is empty"),
        ({"replicas": 0}, "--replicas"),
        ({"port": 0}, "--port"),
        ({"port": 65535, "replicas": 2}, "--port"),
        ({"max_model_len": 1}, "--max-model-len"),
        ({"extra": ("--api-key", "sk")}, "process list"),
        ({"extra": ("--api_key=sk",)}, "VLLM_API_KEY"),
        ({"extra": ("--port", "1")}, "before it"),
        ({"extra": ("--ssl-certfile", "c.pem")}, "reverse proxy"),
        ({"extra": ("--ssl_keyfile=k.pem",)}, "reverse proxy"),
    ],
)
def test_bad_options_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ServerError, match=message) as caught:
        ServeOptions(**{"model": "lm", **given})  # type: ignore[arg-type]
    assert "sk" not in str(caught.value).replace("disk", "")


def test_waits_double_up_to_a_bound() -> None:
    options = WatchOptions(first_wait=1.0, longest_wait=5.0)
    assert [options.wait_before(restart) for restart in (1, 2, 3, 4)] == [1.0, 2.0, 4.0, 5.0]
