"""CLIP models in folders: loaded whole or refused, and their pictures as pixel values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from llava_ext.adapters import ModelParts
from llava_ext.model import PIXELS, load_weights, read_folder, refusing_faults, require_files
from llava_ext.pixels import PixelReader
from robustmerge.formats.names import CLIP as CLIP_MOVES
from robustmerge.stage.settings import UserError
from robustmerge.stage.text import quote

REMEDY = "take a folder as openai/clip-vit-base-patch32 is one (model.checkpoint)"
TOKENIZERS = ("tokenizer.json", "vocab.json")
CLIP = ModelParts("text_model", "text encoder", CLIP_MOVES)


def open_config(folder: Path | str) -> CLIPConfig:
    """Read the config of a CLIP's folder and check everything in the folder but the weights.

    Raises UserError if it is no CLIP in the Hub's layout, or lacks a tokenizer or an image processor.
    """
    folder, config = Path(folder), read_folder(folder, REMEDY)
    if (kind := config.get("model_type")) != "clip":
        raise UserError(f"{folder} is no CLIP: its config.json says model_type {quote(kind)}, not 'clip'; {REMEDY}")
    require_files(folder, (TOKENIZERS, PIXELS))
    with refusing_faults(f"{folder / 'config.json'} is no config of a CLIP"):
        return CLIPConfig.from_pretrained(folder)


def load_clip(folder: Path | str, dtype: torch.dtype, attention: str | None = None) -> CLIPModel:
    """Load the CLIP in a folder; every weight must come from its files. Raises UserError as `load_weights` does."""
    return load_weights(CLIPModel, "a CLIP", folder, dtype, attention)


def take_image_encoder(clip: CLIPModel) -> CLIPVisionModelWithProjection:
    """The image encoder of a CLIP with its projection, which are not copied; modules keep their names in the CLIP."""
    config = clip.config.vision_config
    config.projection_dim = clip.config.projection_dim
    config._attn_implementation = clip.config._attn_implementation
    with torch.device("meta"):  # takes no memory for what is replaced at once
        encoder = CLIPVisionModelWithProjection(config)
    encoder.vision_model, encoder.visual_projection = clip.vision_model, clip.visual_projection
    return encoder


class Pictures(PixelReader):
    """Converts pictures to the input of a CLIP: scaled to its size by their shorter side, the centre cut out."""

    @classmethod
    def open(cls, folder: Path | str) -> Pictures:
        """Open the image processor of a CLIP's folder. Raises UserError if it does not fit the model."""
        config = open_config(folder)
        with refusing_faults(f"the image processor of {folder} cannot be loaded"):
            reader = cls(CLIPImageProcessorPil.from_pretrained(folder))
        side = config.vision_config.image_size
        if reader.size != (side, side):
            size = f"{reader.size[0]} x {reader.size[1]}"
            raise UserError(f"{folder}: pictures become {size} pixels (crop_size), the encoder takes {side} x {side}")
        return reader

    def resize(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Pictures of the model's size, uint8 [n, height, width, 3]: a quarter of the memory of pixel values."""
        coloured = [picture.convert("RGB") for picture in pictures]
        if all(picture.size == self.size for picture in coloured):
            return self.raw(coloured)
        batch = self.processor(coloured, do_rescale=False, do_normalize=False, return_tensors="pt")
        return batch["pixel_values"].permute(0, 2, 3, 1).contiguous()
