"""The device that a merge computes on: whether torch has it, and full float32 precision there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from robustmerge.stage.settings import UserError
from robustmerge.stage.text import quote


def require_device(device: str | torch.device, dtype: torch.dtype = torch.float32) -> None:
    """Raises UserError unless torch decomposes a matrix of this dtype on the device.

    The trial also loads CUDA's linear algebra, which must not happen in several threads at once
    (https://github.com/pytorch/pytorch/issues/90613).
    """
    try:
        torch.device(device)
    except RuntimeError as error:
        raise UserError(
            f"there is no device {quote(str(device))} here: it is called cpu, cuda, cuda:1 or as torch calls another; "
            "the default is cpu (device)"
        ) from error
    try:
        torch.linalg.svdvals(torch.eye(2, dtype=dtype, device=device)).tolist()
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"there is no device {quote(str(device))} here: {reason}; the default is cpu (device)"
        ) from error


@contextmanager
def computing_on(device: str | torch.device) -> Iterator[None]:
    """Context manager: products of float32 matrices on the device are not rounded to TF32, whatever was set.

    Raises UserError as `require_device` does for float64, in which bases of updates are computed.
    """
    if str(device) == "cpu":
        yield
        return
    require_device(device, torch.float64)
    matmul = torch.backends.cuda.matmul
    key, full = ("fp32_precision", "ieee") if hasattr(matmul, "fp32_precision") else ("allow_tf32", False)
    before = getattr(matmul, key)
    setattr(matmul, key, full)
    try:
        yield
    finally:
        setattr(matmul, key, before)
