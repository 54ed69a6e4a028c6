r"""FedRAG's LSR trainer beside replug's under FedRAG's names, on one batch: do the weights move, does the loss fall?

python -m benchmarks.fed_rag --fed_rag_python /tmp/fedrag/bin/python

FedRAG lives in an environment of its own; fed-rag 0.0.27 cannot make its collator with newer libraries than these:

    python -m venv /tmp/fedrag && /tmp/fedrag/bin/pip install "fed-rag[huggingface]==0.0.27" \
        "sentence-transformers==4.1.0" "transformers<5" "datasets>=3,<4" "peft<0.18"

(A torchvision for CUDA that comes along with a torch for the CPU breaks transformers: uninstall it there.)
Without --fed_rag_python only replug's side runs. Both sides get the same encoder (MiniLM), the same LM (demo/lm),
passages, rows and training arguments, and the loss is measured with the same templates; it is each library's own,
KL(Q||P) without temperatures. An LM score is the target's probability there, about 0 for every passage: Q is uniform
but for a hair, and the loss falls because P becomes so. (`score="mean"` of the collator mends that.) The last two
columns are the log-probability of one target as the library reads it, and as one forward pass over prompt and target
gives it. (Two of MiniLM's tensors, its pooler's, have no part in its vectors and never move.)
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from demo.pipeline import LM, minilm
from replug_client.compat.fed_rag import DEFAULT_PROMPT_TEMPLATE, DEFAULT_TARGET_TEMPLATE

_ROWS, _PASSAGES, _TOP_K = 6, 24, 4
_CHARACTERS = 160
_SIDE = Path(__file__).with_name("_fed_rag_side.py")
_ROW = "{:>9}{:>7}{:>20}{:>13}{:>12}{:>16}{:>11}"


def main() -> None:
    """Print a line for each side."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fed_rag_python", type=Path, help="interpreter of an environment with fed-rag")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    options = parser.parse_args()
    if options.steps < 1:
        parser.error("--steps must be at least 1")
    with tempfile.TemporaryDirectory() as folder:
        job = make_job(options.steps, options.learning_rate, plain_lm(Path(folder) / "lm"))
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        print(f"{_ROWS} rows, {_TOP_K} of {_PASSAGES} passages each")
        print(
            _ROW.format(
                "library", "steps", "tensors moved", "loss before", "loss after", "log P(target)", "is"
            )
        )
        if options.fed_rag_python is not None:
            print_side("fed_rag", options.fed_rag_python, path)
        print_side("replug", Path(sys.executable), path)


def make_job(steps: int, learning_rate: float, lm: Path) -> dict[str, Any]:
    """Code of this Python's library: passages, and rows of a line and the line after it."""
    code = (Path(sysconfig.get_paths()["stdlib"]) / "argparse.py").read_text(encoding="utf-8")
    lines = [line for line in code.splitlines() if len(line.strip()) > 30]
    passages = [code[start : start + _CHARACTERS] for start in range(0, _PASSAGES * 700, 700)]
    rows = [
        {"query": lines[place], "response": lines[place + 1].strip()}
        for place in range(40, 40 + 9 * _ROWS, 9)
    ]
    return {
        "encoder": str(minilm().absolute()),
        "lm": str(lm),
        "passages": passages,
        "rows": rows,
        "top_k": _TOP_K,
        "steps": steps,
        "learning_rate": learning_rate,
        "templates": (DEFAULT_PROMPT_TEMPLATE, DEFAULT_TARGET_TEMPLATE),
        "pair": ("import os\n\ndef main():\n    print(os.", "path.join(a, b))\n"),
    }


def plain_lm(folder: Path) -> Path:
    """A copy of demo/lm whose tokenizer names a class that transformers 4 knows, too."""
    shutil.copytree(LM, folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(config), encoding="utf-8")
    return folder


def print_side(library: str, python: Path, job: Path) -> None:
    """Run one side in its own interpreter.

    Raises:
        SystemExit: it failed; says how.
    """
    root = str(Path(__file__).parent.parent)
    # FedRAG's interpreter must not see this one's packages; replug's needs the checkout.
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": root if library == "replug" else ""}
    done = subprocess.run(
        [str(python), "-P", str(_SIDE), library, str(job)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{library} under {python} failed:\n{done.stderr[-3000:]}")
    figures = json.loads(done.stdout.splitlines()[-1])
    print(
        _ROW.format(
            library,
            figures["steps"],
            f"{figures['tensors_moved']} of {figures['tensors']}",
            f"{figures['loss_before']:.6f}",
            f"{figures['loss_after']:.6f}",
            f"{figures['log_probability']:.2f}",
            f"{figures['reference']:.2f}",
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
