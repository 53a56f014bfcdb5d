"""How this machine computes: quick products on CPUs for training, and quiet libraries."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import transformers

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def fast_matmul() -> Iterator[None]:
    """Let PyTorch give float32 products to oneDNN, on CPUs of AMD more than twice as fast as MKL.

    The switch also permits bfloat16 inside products where the CPU has units for it: enough for training; answers are
    made so only where the model's `products` say fast. Wants eager attention: the fused CPU kernel is slow with it.
    """
    # oneDNN keeps compiled kernels and their memory per shape; a thousand shapes of sequences are gigabytes.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def quiet_libraries() -> None:
    """Keep the progress bars and notices of transformers to themselves; their errors still show."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed looks for one as soon as it is imported, aloud
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(transformers|peft|accelerate|torch)(\..*)?")
