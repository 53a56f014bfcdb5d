"""The work whose cost the benchmark of merging measures, each in a process of its own (child.py)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from robustmerge.merging import merge_folders, write_merged
from robustmerge.method import read_method


def do_nothing() -> dict[str, Any]:
    """Do nothing: measures the cost of a process itself."""
    return {}


def sum_files(experts: Sequence[str]) -> dict[str, Any]:
    """The lower bound of any merge: read every tensor once and add up in float32; nothing is written."""
    files = [safe_open(Path(folder) / "adapter_model.safetensors", framework="pt") for folder in experts]
    for name in files[0].keys():  # noqa: SIM118  (a file of tensors is no mapping)
        total = files[0].get_tensor(name).float()
        for file in files[1:]:
            total += file.get_tensor(name)
    return {}


def merge(
    experts: Sequence[str], method: str, changes: dict[str, Any], workers: int, out: str, as_stage: bool = False
) -> dict[str, Any]:
    """The library on whole folders, its result written to `out`; as a stage, with the sha256 of all files."""
    chosen = read_method(method, **changes)
    if as_stage:
        merge_folders(experts, chosen, out, workers, say=lambda text: None)
    else:
        write_merged(Path(out), chosen, {Path(e).name: Path(e) for e in experts}, lambda text: None, workers)
    return {}


def merge_with_peft(
    experts: Sequence[str], kind: str, modules: Sequence[tuple[str, int]], rank: int, repeats: int
) -> dict[str, Any]:
    """peft.add_weighted_adapter on one module of each size. modules: (its name, how many there are).

    Returns the CPU and wall seconds of all modules: the median of the repeats, times the count, summed.
    """
    total = {"cpu": 0.0, "wall": 0.0}
    for module, count in modules:
        runs = _time_peft([_factors(folder, module) for folder in experts], kind, rank, repeats)
        for clock, seconds in runs.items():
            total[clock] += count * statistics.median(seconds)
    return total


def _factors(folder: str, module: str) -> tuple[torch.Tensor, torch.Tensor]:
    tensors = load_file(Path(folder) / "adapter_model.safetensors")
    A, B = (tensors[f"base_model.model.{module}.lora_{part}.weight"] for part in "AB")
    return A.clone(), B.clone()


def _time_peft(
    factors: Sequence[tuple[torch.Tensor, torch.Tensor]], kind: str, rank: int, repeats: int
) -> dict[str, list[float]]:
    """peft's svd has no half precision on a CPU, so that it gets float32; the others get what the files hold."""
    from peft import LoraConfig, get_peft_model

    A, B = factors[0]
    dtype = torch.float32 if kind == "svd" else A.dtype
    base = torch.nn.ModuleDict({"linear": torch.nn.Linear(A.shape[1], B.shape[0], bias=False, dtype=dtype)})
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["linear"])
    model = get_peft_model(base, config, adapter_name="0", autocast_adapter_dtype=False)
    for n, (A, B) in enumerate(factors):
        if n > 0:
            model.add_adapter(str(n), config, autocast_adapter_dtype=False)
        layer = model.base_model.model["linear"]
        layer.lora_A[str(n)].weight.data = A.to(dtype)
        layer.lora_B[str(n)].weight.data = B.to(dtype)
    names = [str(n) for n in range(len(factors))]
    options = {} if kind in ("svd", "cat", "linear") else {"density": 0.2}
    times: dict[str, list[float]] = {"cpu": [], "wall": []}
    for n in range(repeats):
        cpu, wall = time.process_time(), time.perf_counter()
        model.base_model.add_weighted_adapter(names, [1.0] * len(names), f"merged{n}", kind, **options)
        times["cpu"].append(time.process_time() - cpu)
        times["wall"].append(time.perf_counter() - wall)
        model.delete_adapter(f"merged{n}")
    return times
