"""A small LLaVA with random weights: config, `LlavaForConditionalGeneration` and processor."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from llava_ext.data import derive_seed
from llava_ext.settings import Pretraining, Vision
from llava_ext.small.tokenizer import IMAGE


def build_config(settings: Pretraining, tokenizer: PreTrainedTokenizerBase) -> LlavaConfig:
    """The config of a LLaVA of the settings' sizes."""
    vision, language = settings.vision, settings.language
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=vision.width,
            intermediate_size=vision.mlp,
            num_hidden_layers=vision.layers,
            num_attention_heads=vision.heads,
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            projection_dim=vision.width,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=language.width,
            intermediate_size=language.mlp,
            num_hidden_layers=language.layers,
            num_attention_heads=language.heads,
            num_key_value_heads=language.heads,
            max_position_embeddings=2048,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )


def build_model(settings: Pretraining, tokenizer: PreTrainedTokenizerBase) -> LlavaForConditionalGeneration:
    """The untrained model, a function of the settings and the tokenizer's size; no global seed matters."""
    model = LlavaForConditionalGeneration(build_config(settings, tokenizer)).float()
    draw_weights(model, settings.seed)
    with torch.no_grad():  # a word that is read can be said from the start
        model.lm_head.weight.copy_(model.get_input_embeddings().weight)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    return model


@torch.no_grad()
def draw_weights(model: nn.Module, seed: int) -> None:
    """Draw every matrix from N(0, 1/fan_in), embeddings by their width; set biases to zero and norms to one.

    At widths near 128 the usual 0.02 is too small: activations die out and training stalls for hundreds of steps.
    Each weight has a seed of its own, so that the vision tower is the same whatever language model stands behind it.
    """
    for name, weight in model.named_parameters():
        generator = torch.Generator().manual_seed(derive_seed(seed, name))
        if weight.dim() > 1:
            weight.normal_(0.0, 1.0 / math.sqrt(weight[0].numel()), generator=generator)
        elif name.endswith("class_embedding"):
            weight.normal_(0.0, 1.0 / math.sqrt(weight.numel()), generator=generator)
        else:
            weight.fill_(0.0 if name.endswith("bias") else 1.0)


def build_processor(vision: Vision | CLIPVisionConfig, tokenizer: PreTrainedTokenizerBase) -> LlavaProcessor:
    """The processor of a model with a vision tower of these sizes.

    It pads pictures to a square with the mean colour and never crops.
    The Pillow backend is pinned by class: torchvision resizes with other code and gives other pixels.
    """
    side = vision.image_size
    images = LlavaImageProcessorPil(
        do_pad=True, size={"shortest_edge": side}, crop_size={"height": side, "width": side}, do_convert_rgb=True
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def save_base(folder: Path, model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    """Write model and processor as `from_pretrained` and `AutoProcessor` read them."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
