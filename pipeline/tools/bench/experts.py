"""Synthetic experts for the benchmark: adapter folders of the shape of LLaVA-1.5-7B, written once and kept."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
WIDENING, NARROWING = ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",)


@dataclass(frozen=True)
class Shape:
    """Seven linear modules a layer, as in Llama; the defaults are those of LLaVA-1.5-7B with rank 16."""

    layers: int = 32
    hidden: int = 4096
    wide: int = 11008
    rank: int = 16
    experts: int = 8

    def modules(self) -> dict[str, tuple[int, int]]:
        """Module -> (d_out, d_in), all layers."""
        sizes = dict.fromkeys(ATTENTION, (self.hidden, self.hidden))
        sizes |= dict.fromkeys(WIDENING, (self.wide, self.hidden))
        sizes |= dict.fromkeys(NARROWING, (self.hidden, self.wide))
        return {
            f"model.language_model.layers.{layer}.{name}": size
            for layer in range(self.layers)
            for name, size in sizes.items()
        }

    def one_of_each(self) -> dict[tuple[int, int], tuple[str, int]]:
        """Size -> (a module of that size, how many there are)."""
        modules: dict[tuple[int, int], tuple[str, int]] = {}
        for name, size in self.modules().items():
            first, count = modules.get(size, (name, 0))
            modules[size] = (first, count + 1)
        return modules


def find_experts(root: Path, shape: Shape) -> list[Path]:
    """The folders of the experts, each written if it is not there yet."""
    of_shape = root / "-".join(["experts", *map(str, asdict(shape).values())])
    folders = [of_shape / f"expert{n}" for n in range(shape.experts)]
    for number, folder in enumerate(folders):
        if not (folder / "adapter_config.json").exists():
            _write_expert(folder, shape, seed=number)
    return folders


def _write_expert(folder: Path, shape: Shape, seed: int) -> None:
    """The config is written last: a folder that has it is whole."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(_tensors(shape, seed)), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "llava-hf/llava-1.5-7b-hf",
        "r": shape.rank,
        "lora_alpha": 2 * shape.rank,
        "target_modules": sorted(name.rpartition(".")[2] for name in ATTENTION + WIDENING + NARROWING),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))


def _tensors(shape: Shape, seed: int) -> Iterator[tuple[str, object]]:
    """A: peft's initial values, the same for all experts, moved a little; B: normal. float16."""
    import torch

    common, of_expert = torch.Generator().manual_seed(1000), torch.Generator().manual_seed(seed)
    for module, (d_out, d_in) in shape.modules().items():
        bound = 1 / math.sqrt(d_in)
        start = torch.empty(shape.rank, d_in).uniform_(-bound, bound, generator=common)
        A = start + 0.2 * bound * torch.randn(shape.rank, d_in, generator=of_expert)
        B = 0.01 * torch.randn(d_out, shape.rank, generator=of_expert)
        yield f"base_model.model.{module}.lora_A.weight", A.half()
        yield f"base_model.model.{module}.lora_B.weight", B.half()
