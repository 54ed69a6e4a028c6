"""Passages a second of MiniLM in bfloat16 to those in float32, measured in turns in one run.

python -m benchmarks.embedding
"""

from __future__ import annotations

import statistics
import sysconfig
import time
from pathlib import Path

from demo.pipeline import minilm
from replug_client.retriever.encoder import ComputeDtype, EncoderOptions, encode_passages, load_encoder

_PASSAGES, _CHARACTERS, _ROUNDS = 96, 600, 3


def main() -> None:
    """Print the rate of each precision and the ratio."""
    library = Path(sysconfig.get_paths()["stdlib"])
    code = "".join(
        path.read_text(encoding="utf-8") for path in (library / "argparse.py", library / "typing.py")
    )
    texts = [code[start : start + _CHARACTERS] for start in range(0, _PASSAGES * _CHARACTERS, _CHARACTERS)]
    model = load_encoder(EncoderOptions(str(minilm())))
    rates: dict[ComputeDtype, list[float]] = {"float32": [], "bfloat16": []}
    for dtype in rates:
        encode_passages(model, texts[:16], dtype=dtype)
    for _ in range(_ROUNDS):
        for dtype, measured in rates.items():
            began = time.perf_counter()
            encode_passages(model, texts, dtype=dtype)
            measured.append(len(texts) / (time.perf_counter() - began))
    plain, lower = statistics.median(rates["float32"]), statistics.median(rates["bfloat16"])
    print(f"float32 {plain:.1f} passages/s, bfloat16 {lower:.1f} passages/s: ratio {lower / plain:.2f}")


if __name__ == "__main__":
    main()
