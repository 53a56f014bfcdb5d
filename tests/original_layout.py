"""Small adapters in the exact format of LLaVA's own training: files, names, dtypes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.tiny_model import SMALL

LAYERS, WIDTH, INNER = SMALL.language.layers, SMALL.language.width, SMALL.language.mlp
SEEN = SMALL.vision.width
SHAPES = {  # linear -> (out, in)
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (WIDTH, WIDTH),
    "self_attn.v_proj": (WIDTH, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (INNER, WIDTH),
    "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
}
RANK, ALPHA = 4, 8
STEM = "base_model.model.model."
FIRST = f"{STEM}layers.0.self_attn.q_proj.lora_"
PROJECTOR_SHAPES = {"0.weight": (WIDTH, SEEN), "0.bias": (WIDTH,), "2.weight": (WIDTH, WIDTH), "2.bias": (WIDTH,)}
# peft 0.4 writes the targets of a set, in an order that changes from run to run.
ADAPTER_CONFIG = {
    "auto_mapping": None,
    "base_model_name_or_path": "liuhaotian/llava-v1.5-7b",
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layers_pattern": None,
    "layers_to_transform": None,
    "lora_alpha": ALPHA,
    "lora_dropout": 0.05,
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": RANK,
    "revision": None,
    "target_modules": ["up_proj", "q_proj", "down_proj", "k_proj", "o_proj", "gate_proj", "v_proj"],
    "task_type": "CAUSAL_LM",
}
LLAVA_CONFIG = {
    "_name_or_path": "liuhaotian/llava-v1.5-7b",
    "architectures": ["LlavaLlamaForCausalLM"],
    "model_type": "llava_llama",
    "hidden_size": WIDTH,
    "image_aspect_ratio": "pad",
    "intermediate_size": INNER,
    "mm_hidden_size": SEEN,
    "mm_patch_merge_type": "flat",
    "mm_projector_lr": 2e-05,
    "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "/private/models/clip-vit-large-patch14-336",
    "num_attention_heads": SMALL.language.heads,
    "num_hidden_layers": LAYERS,
    "tokenizer_model_max_length": 2048,
    "use_mm_proj": True,
    "vocab_size": 32000,
}

Change = Callable[[dict[str, Any]], dict[str, Any]]


def draw_lora(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """LoRA of every linear of every layer, A before B."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(LAYERS):
        for linear, (d_out, d_in) in SHAPES.items():
            for part, shape in (("A", (RANK, d_in)), ("B", (d_out, RANK))):
                x = torch.randn(shape, generator=generator) * 0.2
                tensors[f"{STEM}layers.{layer}.{linear}.lora_{part}.weight"] = x.to(dtype)
    return tensors


def draw_projector(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1000 + seed)
    return {
        f"{STEM}mm_projector.{part}": (torch.randn(shape, generator=generator) * 0.1).to(dtype)
        for part, shape in PROJECTOR_SHAPES.items()
    }


def write_original(
    folder: Path,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    lora: Change = dict,
    projector: Change | None = dict,
    config: Change = dict,
    llava: Change | None = dict,
) -> Path:
    """Write a folder; each part is changed before it is written, and None leaves its file out."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(lora(draw_lora(seed, dtype)), folder / "adapter_model.bin")
    if projector is not None:
        torch.save(projector(draw_projector(seed, dtype)), folder / "non_lora_trainables.bin")
    (folder / "adapter_config.json").write_text(json.dumps(config(ADAPTER_CONFIG), indent=2))
    if llava is not None:
        (folder / "config.json").write_text(json.dumps(llava(LLAVA_CONFIG), indent=2))
    (folder / "README.md").write_text("---\nlibrary_name: peft\n---\n")
    (folder / "trainer_state.json").write_text("{}")
    return folder


def read_original(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, by name, as LLaVA's own loader reads them."""
    tensors: dict[str, Tensor] = {}
    for file in ("adapter_model.bin", "non_lora_trainables.bin"):
        tensors |= torch.load(folder / file, weights_only=True)
    return tensors


def edit_config(folder: Path, **values: object) -> Path:
    """Change values of an adapter's config."""
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **values}))
    return folder
