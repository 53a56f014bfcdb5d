"""Conversion of pictures to pixel values for the vision tower."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from robustmerge.stage.pictures import PictureError, read_picture
from robustmerge.stage.settings import UserError


class PixelReader:
    """Converts pictures to normalised pixel values with the image processor of a model.

    Pictures that already have the model's size need no padding, resizing or cropping; their batch is computed at once
    with the same arithmetic. Nearly all pictures of the small models are such.
    """

    def __init__(self, processor: BaseImageProcessor):
        self.processor = processor
        crop = processor.crop_size
        self.size = (int(crop["width"]), int(crop["height"]))
        shape = (1, 3, 1, 1)
        self.mean = torch.tensor(processor.image_mean, dtype=torch.float32).reshape(shape)
        self.std = torch.tensor(processor.image_std, dtype=torch.float32).reshape(shape)

    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Pixel values, float32 [n, 3, height, width]."""
        if all(picture.mode == "RGB" and picture.size == self.size for picture in pictures):
            return self.normalise(torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])))
        coloured = [picture if picture.mode == "RGB" else picture.convert("RGB") for picture in pictures]
        batch = self.processor(coloured, return_tensors="pt")
        return batch["pixel_values"].float()

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixel values, float32 [n, 3, height, width], of pictures of the model's size, uint8 [n, height, width, 3]."""
        mean, std = self.mean.to(pixels.device), self.std.to(pixels.device)
        return (pixels.permute(0, 3, 1, 2).float() / 255.0 - mean) / std

    def raw(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Pictures of the model's size as uint8 [n, height, width, 3]. Raises UserError for another size."""
        for picture in pictures:
            if picture.size != self.size:
                raise UserError(f"a picture of the base corpus is {picture.size}, the model's are {self.size}")
        return torch.from_numpy(np.stack([np.asarray(picture.convert("RGB")) for picture in pictures]))


def open_image_processor(folder: Path | str, pads: bool) -> LlavaImageProcessorPil:
    """Load the image processor of a model's folder. pads: pictures to a square with the mean colour, first of all.

    It is always Pillow's, since torchvision's resizes differently. A processor that resizes to a width and a height, as
    SigLIP's, has nothing to crop.
    """
    processor = LlavaImageProcessorPil.from_pretrained(folder, do_pad=pads)
    if processor.size.height is not None:
        processor.do_center_crop, processor.crop_size = False, processor.size
    return processor


def read_training_picture(source: Path | bytes | Image.Image, row: str = "") -> Image.Image:
    """Read a picture for training, which needs every one, unless it is read already. row: its name in messages.

    Raises UserError where `read_picture` raises PictureError.
    """
    try:
        return source if isinstance(source, Image.Image) else read_picture(source)
    except PictureError as error:
        raise UserError(": ".join(filter(None, (row, str(error))))) from error
