"""A LLaVA computed without the repository's code: its parts by themselves, one prompt at a time, without padding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional


def draw_picture(size: tuple[int, int], mode: str, seed: int = 0) -> Image.Image:
    """Coarse noise, so that every resampling filter gives other pixels."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(1, size[1] // 3), max(1, size[0] // 3), 3), np.uint8)
    picture = Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST)
    if mode in ("RGBA", "LA"):
        picture.putalpha(Image.linear_gradient("L").resize(size))
    return picture.convert(mode)


@dataclass(frozen=True)
class Pixels:
    """Pixel values of a picture, float64 [3, side, side]: made square in one of three ways, bicubic, normalised."""

    side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, picture: Image.Image, mode: str) -> np.ndarray:
        """mode: pad to a square of the mean colour, crop the centre, or squash."""
        picture, side = picture.convert("RGB"), self.side
        width, height = picture.size
        if mode == "pad":
            long = max(width, height)
            square = Image.new("RGB", (long, long), tuple(int(255 * mean) for mean in self.mean))
            square.paste(picture, ((long - width) // 2, (long - height) // 2))
            picture = square.resize((side, side), Image.Resampling.BICUBIC)
        elif mode == "squash":
            picture = picture.resize((side, side), Image.Resampling.BICUBIC)
        else:
            short = min(width, height)
            picture = picture.resize((side * width // short, side * height // short), Image.Resampling.BICUBIC)
            left, top = (picture.width - side) // 2, (picture.height - side) // 2
            picture = picture.crop((left, top, left + side, top + side))
        values = np.asarray(picture, np.float64) / 255
        return ((values - self.mean) / self.std).transpose(2, 0, 1)


class IndependentLlava:
    """A vision tower, two linears and a language model, filled from the tensors by their names on disk.

    look: features of the patches [patches, width], from the tower and pixels [1, 3, side, side]; end: id of the end.
    """

    def __init__(
        self,
        tower: nn.Module,
        language: nn.Module,
        look: Callable[[nn.Module, Tensor], Tensor],
        weights: dict[str, Tensor],
        end: int,
    ):
        self.tower, self.language, self.look, self.weights, self.end = tower.eval(), language.eval(), look, weights, end
        _fill(tower, {_after(name, "vision_tower."): weight for name, weight in weights.items()})
        _fill(language, {_after(name, "language_model."): weight for name, weight in weights.items()})

    def project(self, features: Tensor) -> Tensor:
        for part in ("linear_1", "linear_2"):
            weight, bias = (self.weights[f"multi_modal_projector.{part}.{kind}"] for kind in ("weight", "bias"))
            features = functional.linear(features, weight, bias)
            features = functional.gelu(features) if part == "linear_1" else features
        return features

    @torch.no_grad()
    def logits(self, before: list[int], pixels: np.ndarray | None, after: list[int]) -> Tensor:
        """Scores of the next token [vocabulary]. before, after: ids around the picture's pixels."""
        embed = self.language.get_input_embeddings()
        parts = [embed(torch.tensor(before))]
        if pixels is not None:
            parts.append(self.project(self.look(self.tower, torch.tensor(pixels, dtype=torch.float32)[None])))
        parts.append(embed(torch.tensor(after, dtype=torch.long)))
        return self.language(inputs_embeds=torch.cat(parts)[None]).logits[0, -1]

    def greedy(self, before: list[int], pixels: np.ndarray | None, after: list[int], count: int) -> list[int]:
        """The answer's ids up to the end token."""
        answer: list[int] = []
        while len(answer) < count:
            token = int(self.logits(before, pixels, after + answer).argmax())
            if token == self.end:
                break
            answer.append(token)
        return answer


def _after(name: str, prefix: str) -> str:
    return name.removeprefix(prefix) if name.startswith(prefix) else ""


def _fill(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give every parameter its tensor, by the end of its name: exactly one fits."""
    for name, parameter in model.named_parameters():
        (fits,) = [key for key in weights if key and (key == name or key.endswith(f".{name}"))]
        parameter.data.copy_(weights[fits])
