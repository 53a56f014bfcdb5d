"""What training a LLaVA takes, by arithmetic: parameters, floating-point operations, the memory of a device by part.

The parameters are exact: the model is built without memory. What autograd keeps of a layer is what PyTorch keeps of
transformers' Llama under PEFT's LoRA, as a test counts it. Left out: CUDA's own memory, some 1 GB, and gaps in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from llava_ext.adapters import add_adapter
from llava_ext.model import count_image_tokens, open_config
from llava_ext.settings import Peft, Trainer

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
PACKED = {"8bit": 1.0, "4bit": 0.516}  # bytes of a quantised number; 4.127 bits as QLoRA's paper has it (2305.14314)
ADAM = 8  # bytes of the two float32 moments of a trained number
GATHERED = 10**9  # most numbers that ZeRO-3 gathers at a time (stage3_max_live_parameters)
COLUMNS = 128  # positions of a batch at which logits are computed: those of answers, which are short
LOGIT = 10  # bytes of a logit: in bf16, in float32, and its softmax

# The shapes of checkpoints of the Hub, of which planning needs no file.
KNOWN = {
    "llava-hf/llava-1.5-7b-hf": {"hidden_size": 4096, "intermediate_size": 11008, "layers": 32, "heads": 32},
    "llava-hf/llava-1.5-13b-hf": {"hidden_size": 5120, "intermediate_size": 13824, "layers": 40, "heads": 40},
}


def find_config(base: str | Path) -> LlavaConfig | None:
    """The config of a base: of a folder, or of a checkpoint of the Hub whose shape is known here; asks no network."""
    if Path(base).is_dir():
        return open_config(base)
    known = KNOWN.get(str(base).partition("@")[0])
    return build_llava15_config(**known) if known else None


def build_llava15_config(hidden_size: int, intermediate_size: int, layers: int, heads: int) -> LlavaConfig:
    """The config of a LLaVA-1.5: CLIP-L/14 at 336 pixels before a Vicuna of these sizes."""
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
            patch_size=14, projection_dim=768,
        ),
        text_config=LlamaConfig(
            vocab_size=32064, hidden_size=hidden_size, intermediate_size=intermediate_size, num_hidden_layers=layers,
            num_attention_heads=heads, max_position_embeddings=4096,
        ),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters, and the sizes of the language model.

    base: in the base as it is; lora, whole: trained, in LoRA and in copies of modules that are trained whole. used: in
    the matrices of the language model's layers; vision: in the tower. key_width: of all heads' keys, and of their
    values. picture: its tokens; seen: numbers that the projector keeps of its features for the backward pass.
    """

    base: int
    lora: int
    whole: int
    used: int
    layers: int
    width: int
    mlp: int
    heads: int
    key_width: int
    vocabulary: int
    picture: int
    seen: int
    vision: int

    @property
    def trained(self) -> int:
        return self.lora + self.whole


def measure(config: LlavaConfig, peft: Peft) -> Sizes:
    """The sizes of a model and of the adapter that PEFT puts on it. Raises UserError if the targets match nothing."""
    with torch.device("meta"):  # shapes without memory
        model = LlavaForConditionalGeneration(config)
        base = sum(weight.numel() for weight in model.parameters())
        text, tower = config.text_config, model.model.vision_tower.parameters()
        linears = sum(weight.numel() for weight in model.model.language_model.layers.parameters() if weight.dim() == 2)
        adapted = add_adapter(model, peft, "base", 0, "task")
    trained = {name: weight.numel() for name, weight in adapted.named_parameters() if weight.requires_grad}
    lora = sum(count for name, count in trained.items() if ".lora_" in name)
    picture = count_image_tokens(config)
    return Sizes(
        base=base,
        lora=lora,
        whole=sum(trained.values()) - lora,
        used=linears,
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        mlp=text.intermediate_size,
        heads=text.num_attention_heads,
        key_width=text.hidden_size // text.num_attention_heads * text.num_key_value_heads,
        vocabulary=text.vocab_size,
        picture=picture,
        seen=picture * (config.vision_config.hidden_size + 2 * text.hidden_size),
        vision=sum(weight.numel() for weight in tower),
    )


def count_operations(sizes: Sizes, tokens: int, pictures: int, length: float, logits: int) -> float:
    """Floating-point operations of training on so many tokens in rows of this mean length; recomputation not counted.

    Per token, 4 for each frozen number of the language model: a product forward, and one backward for the gradient of
    its input. 6 for each trained number, 2 for the frozen tower. Attention: two products of length x width per token
    and layer forward, half of which a causal mask leaves out, and twice that backward.
    """
    frozen = 4.0 * sizes.used * tokens + 4.0 * sizes.vocabulary * sizes.width * logits
    attention = 6.0 * sizes.layers * sizes.width * length * tokens
    projector = 6.0 * sizes.whole * pictures * sizes.picture
    return frozen + attention + 6.0 * sizes.lora * tokens + projector + 2.0 * sizes.vision * pictures * sizes.picture


def count_layer_bytes(sizes: Sizes, peft: Peft, attention: str, length: int, mask: int = 1) -> float:
    """Bytes that autograd keeps of one decoder layer a token, in 16 bits. length: of the row; mask: of a dropout mask.

    Both norms keep their input in float32; attention its queries, keys, values and result, and the eager kernel all
    probabilities; the MLP its gate, its activation and its product. Each LoRA keeps the input of A, after dropout.
    """
    width, keys, mlp = sizes.width, sizes.key_width, sizes.mlp
    norms, gates = 2 * 4 * width, 3 * 2 * mlp
    kernel = 2 * (2 * width + 2 * keys)
    if attention == "eager":
        kernel += 6 * sizes.heads * length - (2 * width if peft.dropout else 0)
    inputs = (2 + mask) * (6 * width + mlp) if peft.dropout else 2 * (2 * width + mlp)
    return norms + gates + kernel + inputs + 7 * 2 * peft.r


def count_activation_bytes(sizes: Sizes, peft: Peft, trainer: Trainer, rows: int, length: int) -> float:
    """Bytes of activations while so many rows of this length are computed together, with a picture each.

    With gradient checkpointing a layer's input is kept of every layer, and all else of one layer at a time.
    """
    layer = count_layer_bytes(sizes, peft, trainer.kernel, length)
    kept = 2 * sizes.width * sizes.layers + layer if trainer.gradient_checkpointing else layer * sizes.layers
    in_sixteen_bits = rows * (length * kept + 2 * sizes.seen)
    return in_sixteen_bits * BYTES[trainer.precision] / 2 + rows * COLUMNS * sizes.vocabulary * LOGIT


def list_memory(
    sizes: Sizes, peft: Peft, trainer: Trainer, rows: int, length: int, quantize: str | None = None
) -> dict[str, float]:
    """Bytes on each device by part; `host`: in each machine's memory.

    quantize: packs the matrices of the language model's layers.
    Without DeepSpeed the adapter and its gradients are float32, and with several processes DDP's buckets hold the
    gradients a second time. DeepSpeed keeps both in the precision of training, and float32 copies of its share.
    """
    number, world = BYTES[trainer.precision], trainer.world
    trained, shared, host = float(sizes.trained), 1.0, 0.0
    if trainer.uses_deepspeed:
        weights, gradients, states = number * trained, number * trained / world, (4 + 4 + ADAM) * trained / world
    else:
        weights, gradients, states = 4 * trained, 4 * trained * (2 if world > 1 else 1), ADAM * trained
    packed = number if quantize is None else PACKED[quantize]
    frozen = number * float(sizes.base - sizes.used) + packed * sizes.used
    if trainer.engine.startswith("zero3") and trainer.uses_deepspeed:
        whole = min(1.0, GATHERED / (sizes.base + trained))  # the share of the weights that is gathered at a time
        shared = 1 / world + (1 - 1 / world) * whole
        if "offload" in trainer.engine:
            host = (frozen + weights + states * world) / trainer.nodes
            shared, states = whole, 0.0
    return {
        "base": frozen * shared,
        "adapter": weights * shared,
        "gradients": gradients,
        "optimizer": states,
        "activations": count_activation_bytes(sizes, peft, trainer, rows, length),
        "host": host,
    }


def sum_memory(parts: Mapping[str, float]) -> float:
    """Bytes on a device."""
    return sum(size for name, size in parts.items() if name != "host")
