"""What the merge tests share: golden cases, expert folders, methods from the config files, a tiny model for peft."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from robustmerge.formats.adapter import PREFIX, LoraPair
from robustmerge.formats.adapter_config import CONFIG, WEIGHTS
from robustmerge.method import Method, read_method
from robustmerge.stage.address import Address, address_folder, address_foreign

REPOSITORY = Path(__file__).resolve().parent.parent
GOLDEN = REPOSITORY / "tests" / "golden" / "merging"
QUIET = {"say": lambda text: None}
method_of = read_method


class Case:
    """One golden case: tensors and the JSON beside them."""

    def __init__(self, path: Path):
        self.about = json.loads(path.with_suffix(".json").read_text())
        self.tensors = load_file(path)
        self.modules = list(self.about["modules"])
        self.experts = [f"expert{n}" for n in range(self.about["n_experts"])]

    def group(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors whose names begin with the prefix, without it."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def pair(self, expert: str, module: str) -> LoraPair:
        found = self.group(f"input.{expert}.{module}.")
        return LoraPair(found["lora_A"], found["lora_B"])


def cases(folder: str) -> list[Path]:
    return sorted((GOLDEN / folder).glob("*.safetensors"))


def assert_within(found: torch.Tensor, reference: torch.Tensor, tolerance: Mapping[str, float], what: str) -> None:
    """|x - ref| <= rtol |ref| + atol_rel_to_max max|ref|, element by element."""
    found, reference = found.float(), reference.float()
    allowed = tolerance["rtol"] * reference.abs() + tolerance["atol_rel_to_max"] * reference.abs().max()
    off = ((found - reference).abs() > allowed).sum().item()
    assert found.shape == reference.shape, what
    assert off == 0, f"{what}: {off} of {reference.numel()} elements off"


def write_expert(
    folder: Path,
    pairs: Mapping[str, LoraPair],
    extras: Mapping[str, torch.Tensor] | None = None,
    bin_file: bool = False,
    **config: Any,
) -> Path:
    """An adapter folder as peft writes it. extras: full names of modules_to_save tensors."""
    folder.mkdir(parents=True)
    tensors = {f"{PREFIX}{m}.lora_{part}.weight": getattr(p, part).clone() for m, p in pairs.items() for part in "AB"}
    tensors |= {name: x.clone() for name, x in (extras or {}).items()}
    if bin_file:
        torch.save(tensors, folder / "adapter_model.bin")
    else:
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    rank = next(iter(pairs.values())).rank
    values = {
        "peft_type": "LORA", "r": rank, "lora_alpha": rank, "base_model_name_or_path": "tiny",
        "target_modules": sorted({m.rpartition(".")[2] for m in pairs}), "modules_to_save": None, **config,
    }  # fmt: skip
    (folder / CONFIG).write_text(json.dumps(values))
    return folder


def address_of(root: Path, method: Method, experts: Mapping[str, Path]) -> Address:
    inputs = {name: address_foreign(path, root) for name, path in experts.items()}
    return address_folder(root, "merged", method.name, "merge", 1, method, inputs)


def read_back(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of an adapter folder, names without peft's prefix."""
    return {k.removeprefix(PREFIX): v for k, v in load_file(folder / WEIGHTS).items()}


def random_experts(
    names: str = "abc", modules: tuple[str, ...] = ("layers.0.q", "layers.1.q"), rank: int = 4, seed: int = 0
) -> dict[str, dict[str, LoraPair]]:
    """Expert -> module -> pair, all of the same shapes."""
    draw = torch.Generator().manual_seed(seed)
    return {
        name: {
            m: LoraPair(torch.randn(rank, 10, generator=draw), torch.randn(7, rank, generator=draw)) for m in modules
        }
        for name in names
    }


def keep_largest(x: torch.Tensor, density: float) -> torch.Tensor:
    """x, pruned by sorting: the k-th smallest magnitude is the threshold, k = int(n (1 - density))."""
    kept = x.abs() >= x.abs().flatten().sort().values[int(x.numel() * (1 - density)) - 1]
    return x * kept


class Tiny(nn.Module):
    """Two blocks of two linears and a projector: enough for targets, patterns and modules_to_save."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.projector = nn.Linear(6, 6)
        self.layers = nn.ModuleList(nn.ModuleDict({"q": nn.Linear(6, 6), "v": nn.Linear(6, 6)}) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.projector(x)
        for layer in self.layers:
            x = x + torch.tanh(layer["q"](x)) * layer["v"](x)
        return x


INPUT = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


class TinyConv1D(nn.Module):
    """Two layers that keep their weight as [d_in, d_out] (fan_in_fan_out), as GPT-2 does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.v = Conv1D(4, 6), Conv1D(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.v(torch.tanh(self.q(x)))


def save_expert(
    folder: Path,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    base: type[nn.Module] = Tiny,
    **config: object,
) -> torch.Tensor:
    """Save a random adapter of `base` with peft, and return what the adapted model gives for INPUT."""
    values = {"r": 3, "lora_alpha": 6, "target_modules": ["q", "v"], **config}
    model = get_peft_model(base(), LoraConfig(**values))
    torch.manual_seed(seed + 1)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            start = 1.0 if "magnitude" in name else 0.0
            nn.init.normal_(parameter, mean=start, std=0.5)
            parameter.data = parameter.data.to(dtype).float()
    model.save_pretrained(folder)
    with torch.no_grad():
        return model.eval()(INPUT)


def rewrite_tensors(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], bin_file: bool = False
) -> None:
    """Put other tensors into an adapter folder: `change` of those that are there."""
    tensors = change(load_file(folder / WEIGHTS))
    if bin_file:
        (folder / WEIGHTS).unlink()
        torch.save(tensors, folder / "adapter_model.bin")
    else:
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def load_with_peft(folder: Path, base: type[nn.Module] = Tiny) -> torch.Tensor:
    """Load an adapter, see that every tensor of the file arrived and none lacks, return what INPUT gives."""
    model = PeftModel.from_pretrained(base(), folder).eval()
    arrived, written = get_peft_model_state_dict(model), load_file(folder / WEIGHTS)
    assert set(arrived) == set(written)
    assert all(torch.equal(arrived[name], x.float()) for name, x in written.items())
    with torch.no_grad():
        return model(INPUT)
