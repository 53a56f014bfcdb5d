"""PyTorch as the doctor sees it: version, the GPUs that it can and cannot use, how fast matrices are multiplied."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from typing import Any


def look_at_torch() -> dict[str, Any]:
    """The version, the GPUs that it can use, those that it cannot, and how fast matrices are multiplied."""
    found: dict[str, Any] = {"version": None, "cuda": None, "devices": [], "unused": [], "speed": None}
    try:
        import torch
    except Exception as error:
        return {**found, "unused": _list_nvidia(), "error": first_line(error)}
    found |= {"version": torch.__version__, "cuda": torch.version.cuda or torch.version.hip}
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            described = torch.cuda.get_device_properties(index)
            device = {"name": described.name, "memory": total, "free": free, "bf16": described.major >= 8, "speed": 0.0}
            with contextlib.suppress(RuntimeError):  # others may have taken its memory
                device["speed"] = measure_speed(f"cuda:{index}", torch.float16, 8192)
            found["devices"].append(device)
    else:
        found["unused"] = _list_nvidia()
    found["mps"] = torch.backends.mps.is_available()
    found["speed"] = measure_speed("cpu", torch.float32, 1024)
    return found


def measure_speed(device: str, dtype: Any, size: int) -> float:
    """Operations a second of a product of two square matrices, the best of five after one to warm up."""
    import torch

    def wait() -> None:
        if device != "cpu":
            torch.cuda.synchronize(device)

    one = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(6):
        wait()
        started = time.perf_counter()
        torch.matmul(one, one)
        wait()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _list_nvidia() -> list[str]:
    """NVIDIA GPUs by their driver's own tool, for a torch that cannot use them."""
    if shutil.which("nvidia-smi") is None:
        return []
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        asked = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
        ran = subprocess.run(asked, capture_output=True, text=True, timeout=10)
        return [line.strip() for line in ran.stdout.splitlines() if line.strip()] if ran.returncode == 0 else []
    return []


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
