"""A LLaVA-interleave in the layout and with the settings in which the Hub keeps it, scaled down; shared by tests.

It is like `tests/hub_layout.py` but for the language model, a Qwen with biases in its attention and one matrix for both
embeddings, the vision tower, a SigLIP without a class token, and the tokenizer, of bytes and without a beginning token.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests import hub_layout
from tests.hub_layout import PATCH, SIDE, draw_weights, write_weights

LANGUAGE = {**hub_layout.LANGUAGE, "vocab_size": 640, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0}
TOWER = {key: value for key, value in hub_layout.TOWER.items() if key != "projection_dim"}
TOWER |= {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "vision_use_head": False}
MEAN = STD = (0.5, 0.5, 0.5)
PIECES = 320
END_OF_TEXT, START, END, IMAGE = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>")
SPECIAL = {name: PIECES + place for place, name in enumerate((END_OF_TEXT, START, END, IMAGE))}
WORDS = """<|im_start|>system You are a helpful assistant. user assistant What is the object in the image? Colour?
Answer with the letter: A. red B. dark blue, 1930 to [0.25, 0.5]. It's a square, isn't it? Name the colour of this."""
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + content['text'] }}"
    "{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ '\n' + content['text'] }}{% endgeneration %}{% endfor %}{% endif %}{{'<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

SETTINGS = {
    "config.json": {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": SPECIAL[IMAGE],
        "model_type": "llava",
        "projector_hidden_act": "gelu",
        "text_config": {
            **LANGUAGE,
            "architectures": ["Qwen2ForCausalLM"],
            "bos_token_id": SPECIAL[END_OF_TEXT],
            "eos_token_id": SPECIAL[END],
            "model_type": "qwen2",
            "sliding_window": 4096,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "use_sliding_window": False,
        },
        "torch_dtype": "bfloat16",
        "transformers_version": "4.43.0.dev0",
        "vision_config": {"model_type": "siglip_vision_model", **TOWER},
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    },
    "preprocessor_config.json": {
        "do_convert_rgb": None,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": MEAN,
        "image_processor_type": "SiglipImageProcessor",
        "image_std": STD,
        "processor_class": "LlavaProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": SIDE, "width": SIDE},
    },
    "processor_config.json": {
        "image_token": IMAGE,
        "num_additional_image_tokens": 0,
        "patch_size": PATCH,
        "processor_class": "LlavaProcessor",
        "vision_feature_select_strategy": "full",
    },
    "generation_config.json": {
        "_from_model_config": True,
        "bos_token_id": SPECIAL[END_OF_TEXT],
        "eos_token_id": SPECIAL[END],
        "transformers_version": "4.43.0.dev0",
    },
    "chat_template.json": {"chat_template": CHAT_TEMPLATE},
    "added_tokens.json": SPECIAL,
    "special_tokens_map.json": {
        "additional_special_tokens": [START, END],
        "eos_token": {"content": END, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False},
        "pad_token": {
            "content": END_OF_TEXT, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
        },
    },
    "tokenizer_config.json": {
        "add_prefix_space": False,
        "additional_special_tokens": [START, END],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "errors": "replace",
        "model_max_length": 32768,
        "pad_token": END_OF_TEXT,
        "padding_side": "right",
        "processor_class": "LlavaProcessor",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    },
}  # fmt: skip


def write_checkpoint(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """The checkpoint as the Hub has it: of the two tied matrices, the file holds the input embeddings."""
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder, draw_interleave(), dtype, shards=1)
    build_tokenizer().save(str(folder / "tokenizer.json"))
    for name, content in SETTINGS.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def draw_interleave() -> dict[str, torch.Tensor]:
    """Random weights, float32, under the names of the Hub's files."""
    return draw_weights(of=shapes())


def shapes() -> dict[str, tuple[int, ...]]:
    """Name on disk -> shape of every weight."""
    weights, tower = hub_layout.shapes(LANGUAGE, TOWER), "vision_tower.vision_model"
    for name in ("embeddings.class_embedding", "pre_layrnorm.weight", "pre_layrnorm.bias"):
        del weights[f"{tower}.{name}"]
    del weights["language_model.lm_head.weight"]
    weights[f"{tower}.embeddings.patch_embedding.bias"] = (TOWER["hidden_size"],)
    weights[f"{tower}.embeddings.position_embedding.weight"] = ((SIDE // PATCH) ** 2, TOWER["hidden_size"])
    for layer in range(LANGUAGE["num_hidden_layers"]):
        at = f"language_model.model.layers.{layer}.self_attn"
        weights |= {f"{at}.{part}_proj.bias": (LANGUAGE["hidden_size"],) for part in "qkv"}
    return weights


def build_tokenizer(special: Iterable[str] = tuple(SPECIAL)) -> Tokenizer:
    """A small tokenizer of Qwen's kind: the bytes and some words, and the special tokens behind them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLIT), "isolated"), bytes_alone])
    tokenizer.decoder, tokenizer.post_processor = decoders.ByteLevel(), processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=PIECES, initial_alphabet=sorted(alphabet), show_progress=False)
    tokenizer.train_from_iterator(WORDS.splitlines() * 9, trainer)
    assert tokenizer.get_vocab_size() == PIECES
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in special])
    return tokenizer
