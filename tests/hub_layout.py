"""A LLaVA-1.5 in the layout and with the settings in which the Hub keeps it, scaled down; shared by tests.

On disk it has what the real one has and `tests/tiny_model.py` has not: older names of the weights, an image processor
of CLIP that crops and knows no padding, a generation config that samples, a chat template without a system sentence,
64 rows of embeddings that no token has, and Llama's tokenizer (the pieces that the prompts of golden/llava15 need,
under their own ids).
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden" / "llava15"
IMAGE, PAD = 32000, 32001
SIDE, PATCH, WIDTH, VISION = 42, 14, 32, 24
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
LANGUAGE = {
    "vocab_size": 32064,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
TOWER = {
    "hidden_size": VISION,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
    "projection_dim": 16,
}


def write_checkpoint(folder: Path, dtype: torch.dtype = torch.float32, shards: int = 1, legacy: bool = False) -> Path:
    """The checkpoint as the Hub has it; `legacy` is the tokenizer's flag."""
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder, draw_weights(), dtype, shards)
    write_tokenizer(folder, legacy)
    for name, content in SETTINGS.items():
        (folder / name).write_text(json.dumps(content))
    return folder


SETTINGS = {
    "config.json": {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": IMAGE,
        "model_type": "llava",
        "pad_token_id": PAD,
        "projector_hidden_act": "gelu",
        "text_config": {"model_type": "llama", "torch_dtype": "float16", **LANGUAGE},
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.36.0.dev0",
        "vision_config": {"model_type": "clip_vision_model", "vocab_size": 32000, **TOWER},
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vocab_size": 32064,
    },
    "preprocessor_config.json": {
        "crop_size": {"height": SIDE, "width": SIDE},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": MEAN,
        "image_processor_type": "CLIPImageProcessor",
        "image_std": STD,
        "processor_class": "LlavaProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": SIDE},
    },
    "processor_config.json": {
        "image_token": "<image>",
        "num_additional_image_tokens": 1,
        "patch_size": PATCH,
        "processor_class": "LlavaProcessor",
        "vision_feature_select_strategy": "default",
    },
    "generation_config.json": {
        "do_sample": True,
        "temperature": 5.0,
        "top_p": 0.6,
        "num_beams": 2,
        "pad_token_id": PAD,
    },
    "chat_template.json": {
        "chat_template": "{% for message in messages %}USER: <image>\n{{ message['content'] }} ASSISTANT:{% endfor %}"
    },
}


def write_weights(folder: Path, weights: dict[str, Tensor], dtype: torch.dtype, shards: int) -> None:
    """As model.safetensors, or in several files with an index."""
    weights = {name: weight.to(dtype).contiguous() for name, weight in weights.items()}
    if shards == 1:
        return save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    where = {
        name: f"model-{1 + index % shards:05d}-of-{shards:05d}.safetensors"
        for index, name in enumerate(sorted(weights))
    }
    for file in set(where.values()):
        part = {name: weights[name] for name in weights if where[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return None


def draw_weights(seed: int = 0, of: dict[str, tuple[int, ...]] | None = None) -> dict[str, Tensor]:
    """Random weights of some shapes, float32, by their names in the Hub's files; large enough that answers differ."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 1 + 0.1 * torch.randn(shape, generator=generator)
        if "norm" in name and name.endswith("weight")
        else torch.randn(shape, generator=generator) * (0.1 if len(shape) == 1 else 1.5 / shape[-1] ** 0.5)
        for name, shape in (of or shapes()).items()
    }


def shapes(language: dict = LANGUAGE, vision: dict = TOWER) -> dict[str, tuple[int, ...]]:
    """Name on disk -> shape of every weight of a Llama with the image encoder of CLIP."""
    text, tower, inner, wide = "language_model.model", "vision_tower.vision_model", language["intermediate_size"], WIDTH
    across, patch, side = vision["hidden_size"], vision["patch_size"], vision["image_size"] // vision["patch_size"]
    weights = {
        f"{text}.embed_tokens.weight": (language["vocab_size"], wide),
        f"{text}.norm.weight": (wide,),
        "language_model.lm_head.weight": (language["vocab_size"], wide),
        "multi_modal_projector.linear_1.weight": (wide, across),
        "multi_modal_projector.linear_1.bias": (wide,),
        "multi_modal_projector.linear_2.weight": (wide, wide),
        "multi_modal_projector.linear_2.bias": (wide,),
        f"{tower}.embeddings.class_embedding": (across,),
        f"{tower}.embeddings.patch_embedding.weight": (across, 3, patch, patch),
        f"{tower}.embeddings.position_embedding.weight": (side**2 + 1, across),
    }
    for name in ("pre_layrnorm", "post_layernorm"):
        weights |= {f"{tower}.{name}.weight": (across,), f"{tower}.{name}.bias": (across,)}
    for layer in range(language["num_hidden_layers"]):
        at = f"{text}.layers.{layer}"
        weights |= {f"{at}.self_attn.{part}_proj.weight": (wide, wide) for part in "qkvo"}
        weights |= {f"{at}.mlp.{part}_proj.weight": (inner, wide) for part in ("gate", "up")}
        weights |= {f"{at}.mlp.down_proj.weight": (wide, inner)}
        weights |= {f"{at}.{part}_layernorm.weight": (wide,) for part in ("input", "post_attention")}
    for layer in range(vision["num_hidden_layers"]):
        at, inside = f"{tower}.encoder.layers.{layer}", vision["intermediate_size"]
        linears = {f"self_attn.{part}": (across, across) for part in ("q_proj", "k_proj", "v_proj", "out_proj")}
        linears |= {"mlp.fc1": (inside, across), "mlp.fc2": (across, inside)}
        weights |= {f"{at}.{name}.weight": shape for name, shape in linears.items()}
        weights |= {f"{at}.{name}.bias": shape[:1] for name, shape in linears.items()}
        for name in ("layer_norm1", "layer_norm2"):
            weights |= {f"{at}.{name}.weight": (across,), f"{at}.{name}.bias": (across,)}
    return weights


def write_tokenizer(folder: Path, legacy: bool) -> None:
    """Llama's tokenizer with `<image>` and `<pad>` behind its 32,000 pieces, as both versions of it are written.

    Pieces that no prompt of golden/llava15 can reach are fillers: the merges that are left out never apply.
    """
    golden = json.loads((GOLDEN / "vocabulary.json").read_text())
    texts = {number: piece for piece, number in golden["vocabulary"].items()}
    pieces = {texts.get(number, f"<filler_{number}>"): number for number in range(IMAGE)}
    added = [(0, "<unk>"), (1, "<s>"), (2, "</s>"), (IMAGE, "<image>"), (PAD, "<pad>")]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    before = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    first = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    begin = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    after = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": name, **flags} for number, name in added],
        "normalizer": {"type": "Sequence", "normalizers": before} if legacy else None,
        "pre_tokenizer": None if legacy else first,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": begin,
            "pair": [*begin, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [*after, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": pieces,
            "merges": golden["merges"],
        },
    }
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {str(number): {"content": name, **flags} for number, name in added},
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "legacy": legacy,
        "model_max_length": 1000000000000000019884624838656,
        "pad_token": "<pad>",
        "padding_side": "left",
        "processor_class": "LlavaProcessor",
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
