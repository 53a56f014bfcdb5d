"""Configs that conversions write: LLaVA's `config.json`, and adapter configs of peft 0.4 and of current peft."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from robustmerge.formats.llava.names import LINEARS
from robustmerge.formats.names import LANGUAGE_LINEARS

SAVED = "multi_modal_projector"
TOWER = "openai/clip-vit-large-patch14-336"


@dataclass(frozen=True)
class Llava15Size:
    """A published size of LLaVA-1.5. checkpoint: its repository for transformers; original: for LLaVA's code."""

    checkpoint: str
    original: str
    heads: int


LLAVA15 = {  # by (layers, width)
    (32, 4096): Llava15Size("llava-hf/llava-1.5-7b-hf", "liuhaotian/llava-v1.5-7b", 32),
    (40, 5120): Llava15Size("llava-hf/llava-1.5-13b-hf", "liuhaotian/llava-v1.5-13b", 40),
}


def build_targets(linears: Iterable[str]) -> str:
    """A regular expression for the given linears in every layer; for all linears it is that of our own experts."""
    linears = set(linears)
    if linears == set(LINEARS):
        return LANGUAGE_LINEARS
    return rf".*language_model\.layers\.\d+\.({'|'.join(map(re.escape, sorted(linears)))})"


def build_llava_config(size: Llava15Size, sizes: Mapping[str, int]) -> dict[str, Any]:
    """The config.json that LLaVA's code writes after task training of LLaVA-1.5."""
    return {
        "_name_or_path": size.original, "architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava_llama",
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "hidden_act": "silu", "initializer_range": 0.02,
        "hidden_size": sizes["hidden"], "intermediate_size": sizes["inner"], "num_hidden_layers": sizes["layers"],
        "num_attention_heads": size.heads, "num_key_value_heads": size.heads, "max_position_embeddings": 4096,
        "max_length": 4096, "rms_norm_eps": 1e-5, "rope_scaling": None, "rope_theta": 10000.0, "pretraining_tp": 1,
        "attention_bias": False, "attention_dropout": 0.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "use_cache": True, "vocab_size": 32000, "freeze_mm_mlp_adapter": False, "image_aspect_ratio": "pad",
        "mm_hidden_size": sizes.get("picture", 1024), "mm_patch_merge_type": "flat", "mm_projector_lr": 2e-5,
        "mm_projector_type": "mlp2x_gelu", "mm_resampler_type": None, "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False, "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2,
        "mm_vision_tower": TOWER, "tokenizer_model_max_length": 2048, "tokenizer_padding_side": "right",
        "tune_mm_mlp_adapter": False, "unfreeze_mm_vision_tower": False, "use_mm_proj": True,
    }  # fmt: skip


def original_adapter_config(config: Mapping[str, Any], base: str) -> dict[str, Any]:
    """An adapter's config with the keys of peft 0.4 and no other; its targets are the last names of modules."""
    return {
        "auto_mapping": None, "base_model_name_or_path": base, "bias": "none", "fan_in_fan_out": False,
        "inference_mode": True, "init_lora_weights": True, "layers_pattern": None, "layers_to_transform": None,
        "lora_alpha": config["lora_alpha"], "lora_dropout": config.get("lora_dropout", 0.0), "modules_to_save": None,
        "peft_type": "LORA", "r": config["r"], "revision": None,
        "target_modules": sorted(linear.rpartition(".")[2] for linear in LINEARS), "task_type": "CAUSAL_LM",
    }  # fmt: skip


def peft_adapter_config(original: Mapping[str, Any], base: str, with_projector: bool) -> dict[str, Any]:
    """An adapter's config for current peft, with rank, alpha and dropout of the original config."""
    return {
        "alpha_pattern": {}, "auto_mapping": None, "base_model_name_or_path": base, "bias": "none",
        "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True,
        "layers_pattern": None, "layers_to_transform": None, "lora_alpha": original["lora_alpha"],
        "lora_bias": False, "lora_dropout": original.get("lora_dropout", 0.0),
        "modules_to_save": [SAVED] if with_projector else None, "peft_type": "LORA", "r": original["r"],
        "rank_pattern": {}, "revision": None, "target_modules": LANGUAGE_LINEARS, "task_type": None,
        "use_dora": False, "use_rslora": False,
    }  # fmt: skip
