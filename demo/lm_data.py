"""The code LM's data: files of permissively licensed installed packages, its tokenizer, its sequences."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

BOS, EOS = "<s>", "</s>"
# Words, single digits, underscores, punctuation, and a new line together with its indentation.
_PIECES = r"\n+ *| ?[A-Za-z]+| ?[0-9]| ?_+| ?[^\sA-Za-z0-9_]+| +"
_PERMISSIVE = frozenset(
    {"0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0"}
    | {"CC0-1.0", "CNRI-Python", "HPND", "ISC", "MIT", "MIT-0", "MIT-CMU", "PSF-2.0", "Python-2.0"}
    | {"Unlicense", "Zlib"}
)
# What stands in the older free-text field for the same licences.
_ALIASES = {
    "apache": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "3-clause bsd license": "BSD-3-Clause",
    "bsd 3-clause": "BSD-3-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "bsd": "BSD-3-Clause",
    "isc license": "ISC",
    "mit license": "MIT",
}
_LONGEST_EXPRESSION = 200
_PERMISSIVE_CLASSIFIERS = (
    "License :: OSI Approved :: Apache Software License",
    "License :: OSI Approved :: BSD License",
    "License :: OSI Approved :: ISC License (ISCL)",
    "License :: OSI Approved :: MIT License",
    "License :: OSI Approved :: Python Software Foundation License",
    "License :: OSI Approved :: The Unlicense (Unlicense)",
    "License :: OSI Approved :: zlib/libpng License",
)


@dataclass(frozen=True)
class SequenceOptions:
    """How training sequences are drawn (the shares are those of the README beside the weights).

    Attributes:
        length: Tokens of a sequence, BOS included.
        contiguous: Share of sequences that are one contiguous text; the others are a passage and a target.
        same_file: Of those, the share whose passage comes from elsewhere in the target's file.
        copied: Of those, the share whose passage is a span of the target; the rest is from another file.
        passage: Shortest and longest passage, in tokens.
    """

    length: int = 512
    contiguous: float = 0.40
    same_file: float = 0.45
    copied: float = 0.30
    passage: tuple[int, int] = (96, 192)


def is_permissive(distribution: Distribution) -> bool:
    """Whether a package's metadata name a permissive licence, and no other.

    Every licence that stands in the classifiers, and in ``License-Expression`` (or the older ``License``,
    unless it holds a whole text), must be permissive; there must be at least one.
    """
    metadata = distribution.metadata
    named = [c for c in metadata.get_all("Classifier") or [] if c.startswith("License :: ")]
    named = [c for c in named if c not in ("License :: OSI Approved", "License :: DFSG approved")]
    for field in ("License-Expression", "License"):
        if expression := " ".join(metadata.get_all(field) or []):
            break
    if len(expression) > _LONGEST_EXPRESSION:  # the licence's whole text: the classifiers must say it
        expression = ""
    parts = [part.strip() for part in re.split(r" (?:AND|OR) |[()]", expression) if part.strip()]
    licences = [_ALIASES.get(part.lower(), part) for part in parts]
    if not named and not licences:
        return False
    return all(c in _PERMISSIVE_CLASSIFIERS for c in named) and all(part in _PERMISSIVE for part in licences)


def collect_files(
    min_bytes: int = 500, max_bytes: int = 200_000, path: list[str] | None = None
) -> Iterator[tuple[str, str]]:
    """``(package/file, text)`` of every permissively licensed package installed here, without duplicates.

    Only files that a package's own record lists are read, so nothing of the standard library is. The order is
    that of a hash of the names: stopping early gives a sample of all packages.

    Args:
        min_bytes: Smaller files are left out.
        max_bytes: Larger files (tables, generated code) are left out.
        path: Folders to look for packages in; ``sys.path`` when None.
    """
    found = distributions(path=path) if path is not None else distributions()
    files: dict[str, Path] = {}
    for distribution in found:
        if not is_permissive(distribution):
            continue
        package = distribution.metadata["Name"]  # each access reads and parses the whole file
        for file in distribution.files or ():
            if file.suffix == ".py" and ".." not in file.parts:
                files[f"{package}/{file.as_posix()}"] = Path(str(file.locate()))
    seen: set[bytes] = set()
    for name in sorted(files, key=lambda name: hashlib.sha256(name.encode()).digest()):
        try:
            content = files[name].read_bytes()
            text = content.decode("utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        digest = hashlib.sha256(content).digest()
        if min_bytes <= len(content) <= max_bytes and digest not in seen:
            seen.add(digest)
            yield name, text


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer: id 0 is BOS, id 1 EOS; it adds neither by itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode_files(
    texts: Iterable[str], tokenizer: Tokenizer, max_tokens: int, batch: int = 256
) -> list[npt.NDArray[np.uint16]]:
    """Token ids of each file, until ``max_tokens`` are reached; ids must fit 16 bits."""
    if tokenizer.get_vocab_size() > 1 << 16:
        raise ValueError(f"a vocabulary of {tokenizer.get_vocab_size()} does not fit 16 bits")
    files: list[npt.NDArray[np.uint16]] = []
    total, rest = 0, iter(texts)
    while total < max_tokens and (pending := list(islice(rest, batch))):
        for encoding in tokenizer.encode_batch(pending, add_special_tokens=False):
            files.append(np.array(encoding.ids, dtype=np.uint16))
            total += len(encoding.ids)
    return files


def draw_sequence(
    files: Sequence[npt.NDArray[np.uint16]],
    options: SequenceOptions,
    bos_id: int,
    rng: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """One training sequence, ``(length,)``: BOS + contiguous text, or BOS + passage + target.

    Every file must hold at least ``options.length`` tokens (see :func:`long_enough`); each is as likely,
    whatever its size, so that long tables do not drown the rest.
    """
    room = options.length - 1
    own = files[int(rng.integers(len(files)))]
    if rng.random() < options.contiguous:
        body = _span(own, room, rng)
    else:
        shortest, longest = options.passage
        length = int(rng.integers(shortest, longest + 1))
        target = _span(own, room - length, rng)
        kind = rng.random()
        if kind < options.same_file:
            passage = _span(own, length, rng)
        elif kind < options.same_file + options.copied:
            passage = _span(target, length, rng)
        else:
            passage = _span(files[int(rng.integers(len(files)))], length, rng)
        body = np.concatenate([passage, target])
    return np.concatenate([[bos_id], body]).astype(np.int64)


def long_enough(
    files: Iterable[npt.NDArray[np.uint16]], options: SequenceOptions
) -> list[npt.NDArray[np.uint16]]:
    """The files that can fill a sequence."""
    return [file for file in files if len(file) >= options.length]


def _span(ids: npt.NDArray[np.uint16], length: int, rng: np.random.Generator) -> npt.NDArray[np.uint16]:
    """A random run of ``length`` tokens."""
    start = int(rng.integers(len(ids) - length + 1))
    return ids[start : start + length]
