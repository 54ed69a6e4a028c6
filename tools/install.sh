#!/usr/bin/env bash
# Install replug, editable, into a virtual environment of its own: tools/install.sh [FOLDER [EXTRAS]]
#
#   FOLDER   default .venv; made if it is not there
#   EXTRAS   default demo; of demo, dev, gpu, lora, server, separated by commas
#   PYTHON   (environment) the interpreter to make it from; default python3
#
# Versions are those of poetry.lock; Poetry itself is not needed. Running it again changes nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${1:-.venv}
extras=${2:-demo}
cpu_index=https://download.pytorch.org/whl/cpu
# shellcheck source=tools/shared.sh
source tools/shared.sh
alone "$venv"

supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11 python3.14; do
        if supported "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "error: ${PYTHON:-python3} is not Python 3.11 to 3.14, and none of these was found." >&2
    echo "Install one, and name it: make demo PYTHON=/path/to/python3.12" >&2
    return 1
}

# PyTorch's own index has builds without CUDA, which are ten times smaller than those of the package index.
# Where there is no NVIDIA GPU it is asked too, if it answers within three seconds; pip then prefers its "+cpu".
torch_index() {
    [ "$(uname -s)" = Linux ] || return 0
    if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then return 0; fi
    if timeout 5 "$venv/bin/python" - "$cpu_index/torch/" <<'PY' >/dev/null 2>&1
import sys, urllib.request
urllib.request.urlopen(urllib.request.Request(sys.argv[1], method="HEAD"), timeout=3)
PY
    then
        echo "--extra-index-url $cpu_index"
    else
        echo "note: $cpu_index does not answer; torch comes from pip's own indexes" \
            "(which may mean a CUDA build of several GB)" >&2
    fi
}

if ! supported "$venv/bin/python"; then
    python=$(find_python)
    echo "making $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv" || {
        echo "error: $python cannot make a virtual environment (on Debian and Ubuntu: apt install python3-venv)" >&2
        exit 1
    }
fi

constraints=$venv/.constraints.txt
"$venv/bin/python" tools/constraints.py poetry.lock >"$constraints"
# Twice quiet: warnings are about indexes that a pip configuration names; errors are shown.
pip=("$venv/bin/python" -m pip --disable-pip-version-check install --quiet --quiet "$(compile)" --constraint "$constraints")

version_of='import sys; from importlib.metadata import version; print(version(sys.argv[1]).partition("+")[0])'
if [ "$("$venv/bin/python" -c "$version_of" torch 2>/dev/null)" != "$(sed -n 's/^torch==//p' "$constraints")" ]; then
    echo "installing torch"
    # shellcheck disable=SC2046  # two words or none
    "${pip[@]}" $(torch_index) torch
fi
echo "installing replug[$extras] and what it needs"
"${pip[@]}" --editable ".[$extras]"

case ",$extras," in
    *,gpu,*)
        # faiss-cpu and faiss-gpu-cu12 hold the same module: the GPU build must be the one that was written last.
        "$venv/bin/python" -m pip uninstall --quiet --yes faiss-cpu
        "${pip[@]}" --force-reinstall --no-deps faiss-gpu-cu12
        ;;
esac
