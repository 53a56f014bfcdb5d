"""Library settings: fast matrix products on CPUs, dtypes by name, no progress bars or notices."""

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
    """Context manager: oneDNN computes float32 products, on AMD CPUs more than twice as fast as MKL.

    It also permits bfloat16 inside products where the CPU has units for it: enough for training, but used for answers
    only if the model's `products` is fast. Use eager attention with it: the fused CPU kernel is slow then.
    """
    # oneDNN keeps compiled kernels and their memory for each shape: gigabytes for a thousand lengths of sequences.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def quiet_libraries() -> None:
    """Switch off the progress bars and notices of transformers, DeepSpeed and their like; errors still show."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed searches for one on import and logs it
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(transformers|peft|accelerate|torch)(\..*)?")
