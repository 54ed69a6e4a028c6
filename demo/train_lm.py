"""Train a code LM of the kind that stands in ``demo/lm``: the recipe, from installed packages to weights.

    python -m demo.train_lm --output_dir my_lm                              # about an hour on 2 cores
    python -m demo.train_lm --output_dir my_lm --steps 20 --tokens 200000   # does it run?

The text is whatever permissively licensed packages are installed where it runs; for a model like the one
that stands there, install PyTorch, transformers, vLLM, NumPy, SciPy and pandas first. The standard library is
left out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import typer
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo.lm_data import (
    BOS,
    EOS,
    SequenceOptions,
    collect_files,
    draw_sequence,
    encode_files,
    long_enough,
    train_tokenizer,
)
from replug_client.artefacts import write_json
from replug_client.errors import OptionError

Files = Sequence[npt.NDArray[np.uint16]]
_HELD_OUT_EVERY = 50
_BYTES_PER_TOKEN = 8  # at most, on code: enough text is read, and what is too much is not encoded


@dataclass(frozen=True)
class RecipeOptions:
    """The training run; the defaults made the weights in ``demo/lm``.

    Attributes:
        steps: Optimiser steps.
        batch_size: Sequences a step.
        learning_rate: At its highest; linear over ``warmup`` steps, constant to ``constant`` of all steps,
            then linear to ``final`` of the highest.
        tokens: Stop collecting text after so many tokens.
        tokenizer_bytes: The tokenizer is trained on the first so many bytes of text.
        vocab_size: Entries of the tokenizer.
        seed: Of the weights and of the sequences.
    """

    steps: int = 3830
    batch_size: int = 16
    learning_rate: float = 3e-3
    warmup: int = 200
    constant: float = 0.60
    final: float = 0.02
    weight_decay: float = 0.1
    clip: float = 1.0
    tokens: int = 80_000_000
    tokenizer_bytes: int = 64_000_000
    vocab_size: int = 6144
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.tokens) < 1:
            raise OptionError(
                f"--steps {self.steps}, --batch_size {self.batch_size}, --tokens {self.tokens}: "
                "each must be 1 or more"
            )


def learning_rate_factor(step: int, options: RecipeOptions) -> float:
    """Share of the highest learning rate at ``step`` (from 0): warm-up, constant, linear to ``final``."""
    warmup = min(options.warmup, options.steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    start = options.constant * options.steps
    progress = max(0.0, (step - start) / max(1.0, options.steps - start))
    return 1.0 - (1.0 - options.final) * progress


def new_model(vocab_size: int, length: int) -> LlamaForCausalLM:
    """A Llama of 4 layers and width 256 with tied embeddings, random weights; twice ``length`` positions."""
    build: Any = LlamaForCausalLM  # typed in some versions of transformers and not in others
    model: LlamaForCausalLM = build(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=2 * length,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
        )
    )
    return model


def train(
    model: LlamaForCausalLM, files: Files, sequences: SequenceOptions, options: RecipeOptions
) -> Iterator[tuple[int, float]]:
    """Train in place; yields the step (from 1) and its loss in nats per token."""
    rng = np.random.default_rng(options.seed)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=options.learning_rate,
        betas=(0.9, 0.95),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, options))
    model.train()
    for step in range(1, options.steps + 1):
        drawn = [draw_sequence(files, sequences, 0, rng) for _ in range(options.batch_size)]
        ids = torch.from_numpy(np.stack(drawn))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        yield step, float(loss.detach())


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, files: Files, length: int, limit: int = 64) -> dict[str, float]:
    """Nats per token on held-out files, and on a span seen for the second time in its context.

    ``repeated`` and ``first`` are the same spans of a quarter of ``length`` tokens, with and without an
    earlier copy.
    """
    model.train(False)
    plain, first, repeated = [], [], []
    for file in files[:limit]:
        ids = torch.tensor([[0, *file[: length - 1].tolist()]])
        plain.append(float(model(input_ids=ids, labels=ids).loss))
        span = file[: length // 4].tolist()
        log_probs = torch.log_softmax(
            model(input_ids=torch.tensor([[0, *span, *span]])).logits[0].float(), -1
        )
        nll = -log_probs[:-1].gather(1, torch.tensor([*span, *span])[:, None])[:, 0]
        first.append(float(nll[: len(span)].mean()))
        repeated.append(float(nll[len(span) :].mean()))
    return {
        "files": float(len(plain)),
        "held_out": float(np.mean(plain)),
        "first": float(np.mean(first)),
        "repeated": float(np.mean(repeated)),
    }


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, output_dir: Path) -> None:
    """Write the float16 weights, the configuration and the tokenizer in Hugging Face form."""
    model.half().save_pretrained(output_dir)  # type: ignore[no-untyped-call]
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=EOS
    ).save_pretrained(output_dir)


def load_text(options: RecipeOptions) -> list[str]:
    """The text of the packages installed here: as much as ``options.tokens`` can need."""
    texts: list[str] = []
    size = 0
    for _, text in collect_files():
        texts.append(text)
        size += len(text)
        if size > options.tokens * _BYTES_PER_TOKEN:
            break
    return texts


def prepare(
    options: RecipeOptions, sequences: SequenceOptions
) -> tuple[Tokenizer, Files, Files, dict[str, Any]]:
    """Collect, train the tokenizer, encode: the tokenizer, training files, held-out files, and counts."""
    texts = load_text(options)
    characters = np.cumsum([len(text) for text in texts])
    enough = int(np.searchsorted(characters, options.tokenizer_bytes)) + 1
    tokenizer = train_tokenizer(islice(texts, enough), options.vocab_size)
    encoded = encode_files(texts, tokenizer, options.tokens)
    usable = long_enough(encoded, sequences)
    held_out = usable[::_HELD_OUT_EVERY]
    training = [file for position, file in enumerate(usable) if position % _HELD_OUT_EVERY]
    if not training or not held_out:
        raise OptionError(
            f"{len(usable)} of {len(encoded)} files have {sequences.length} tokens or more; expected 2. "
            "Raise --tokens, or install more packages."
        )
    counts = {
        "files": len(encoded),
        "files_long_enough": len(usable),
        "tokens": int(sum(len(file) for file in encoded)),
        "characters_per_token": float(
            sum(len(text) for text in texts[: len(encoded)]) / sum(len(file) for file in encoded)
        ),
    }
    return tokenizer, training, held_out, counts


def main(
    output_dir: Annotated[Path, typer.Option("--output_dir", help="Folder to write the model to.")],
    steps: Annotated[int, typer.Option("--steps", help="Optimiser steps.")] = RecipeOptions.steps,
    tokens: Annotated[
        int, typer.Option("--tokens", help="Stop collecting text after so many tokens.")
    ] = RecipeOptions.tokens,
    batch_size: Annotated[
        int, typer.Option("--batch_size", help="Sequences of 512 tokens a step.")
    ] = RecipeOptions.batch_size,
    seed: Annotated[int, typer.Option("--seed", help="Of weights and sequences.")] = RecipeOptions.seed,
) -> None:
    """Train a small code LM from the permissively licensed packages installed here."""
    options = RecipeOptions(steps=steps, tokens=tokens, batch_size=batch_size, seed=seed)
    sequences = SequenceOptions()
    torch.manual_seed(seed)
    tokenizer, training, held_out, counts = prepare(options, sequences)
    print("{files} files, {tokens} tokens, {characters_per_token:.2f} characters a token".format(**counts))
    model = new_model(tokenizer.get_vocab_size(), sequences.length)
    began = time.monotonic()
    for step, loss in train(model, training, sequences, options):
        if not math.isfinite(loss):
            raise SystemExit(f"step {step}: the loss is {loss}; try another --seed")
        if step == 1 or step % 50 == 0 or step == steps:
            left = (time.monotonic() - began) / step * (steps - step)
            print(f"step {step}/{steps}  {loss:.3f} nats/token  {left / 60:.0f} min left", flush=True)
    figures = evaluate(model, held_out, sequences.length)
    save(model, tokenizer, output_dir)
    write_json(
        output_dir / "training.json",
        {
            "options": asdict(options),
            "sequences": asdict(sequences),
            "data": counts,
            "nats_per_token": figures,
        },
    )
    print(
        f"held-out {figures['held_out']:.2f} nats/token; a span seen twice {figures['repeated']:.2f}, "
        f"the first time {figures['first']:.2f}. Written to {output_dir}"
    )


if __name__ == "__main__":
    typer.run(main)
