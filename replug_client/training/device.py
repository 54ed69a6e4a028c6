"""The one device of a run in one process."""

from __future__ import annotations

import torch
from transformers import TrainingArguments


def stay_on(args: TrainingArguments, device: torch.device) -> None:
    """Have ``args`` say the device that the model is on, and no other.

    transformers takes ``cuda:0`` whatever the model is on, and on a machine with several GPUs spreads a batch over
    all of them by DataParallel, which knows nothing of a batch's columns. It keeps the device in a cached property,
    and has no option for it.

    Args:
        args: Changed in place; nothing happens to those of several processes, which have a GPU each.
        device: The model's.
    """
    if device.type != "cuda" or args.world_size > 1:
        return
    torch.cuda.set_device(device)  # accelerate takes the current one
    vars(args)["_setup_devices"] = device
    args._n_gpu = 1
