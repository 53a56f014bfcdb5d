"""Classification of pictures by a CLIP with the adapter of a source; text heads and pixels serve all sources."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPVisionModelWithProjection

from clip_ext.heads import build_head, open_tokenizer, read_classes
from clip_ext.model import CLIP, Pictures, load_clip, take_image_encoder
from llava_ext.backend import fast_matmul, quiet_libraries
from llava_ext.sources import SourceModel
from robustmerge.stage.pictures import read_picture
from robustmerge.stage.records import Example
from robustmerge.stage.settings import UserError

NAMED = 5  # classes in an answer, the likeliest first
PIXEL_BUDGET = 8 * 2**30  # bytes of decoded pictures that are kept for the next source


class Classifier(SourceModel):
    """Names the likeliest classes of pictures: a base CLIP alone, or with the adapter or dense deltas of a source.

    The text encoder is never changed, so that heads are computed once; pictures are decoded and resized once for all
    sources that answer the same questions one after the other.
    fast: on a CPU, multiply with `fast_matmul`; a near tie may fall the other way.
    """

    def __init__(self, base: Path | str, device: str = "cpu", dtype: torch.dtype = torch.float32, fast: bool = False):
        quiet_libraries()
        self.base, self.device, self.dtype, self.fast = base, device, dtype, fast and device == "cpu"
        self.pictures, self.tokenizer = Pictures.open(base), open_tokenizer(base)
        super().__init__(CLIP)
        self.head = cache(self._build_head)
        self.folder = Path()  # of the pictures in `pixels`
        self.pixels: dict[tuple[Path, ...], Future[Tensor]] = {}
        self.thread = ThreadPoolExecutor(1)

    def load(self) -> CLIPVisionModelWithProjection:
        clip = load_clip(self.base, self.dtype, "eager" if self.fast else None)
        self.clip = clip.to(self.device).eval().requires_grad_(False)
        return take_image_encoder(self.clip)

    def __call__(
        self, examples: Sequence[Example], image_root: Path, max_new_tokens: int = 0, image: str = "crop"
    ) -> list[str]:
        """Name the likeliest classes of every picture, one a line; the examples' text is the prompt ensemble.

        Raises PictureError for a picture that cannot be read.
        """
        if not examples:
            return []
        return self.name([(examples[0].text, image_root)], examples, image_root)

    def among(self, tasks: Sequence[tuple[str, Path]]) -> JointClassifier:
        """The same model, naming any class of several tasks, each given by its prompt and the folder of its data."""
        return JointClassifier(self, tasks)

    def name(self, tasks: Sequence[tuple[str, Path]], examples: Sequence[Example], image_root: Path) -> list[str]:
        """Name the likeliest classes of these tasks for every picture; one that several tasks have is named once."""
        heads = [self.head(prompt, folder) for prompt, folder in tasks]
        classes = [name for names, _ in heads for name in names]
        head = torch.cat([rows for _, rows in heads])
        with torch.inference_mode(), fast_matmul() if self.fast else nullcontext():
            pixels = self.pictures.normalise(self._read(examples, image_root).to(self.device)).to(self.dtype)
            embeddings = normalize(self.model(pixel_values=pixels).image_embeds.float(), dim=-1)
            logits = embeddings @ head.T
        if not torch.isfinite(logits).all():
            raise UserError("the source gives logits that are not finite")
        ranked = logits.argsort(dim=1, descending=True, stable=True)[:, : NAMED * len(tasks)]
        named = (list(dict.fromkeys(classes[index] for index in row)) for row in ranked.tolist())
        return ["\n".join(names[:NAMED]) for names in named]

    def prefetch(self, examples: Sequence[Example], image_root: Path, image: str = "crop") -> None:
        """Start to read the pictures of the next batch while the GPU works on the current one."""
        if torch.device(self.device).type != "cpu":  # there the encoder itself needs the cores
            self._submit(examples, image_root)

    def _build_head(self, prompt: str, folder: Path) -> tuple[tuple[str, ...], Tensor]:
        classes = read_classes(folder)
        return classes, build_head(self.clip, self.tokenizer, prompt, classes)

    def _read(self, examples: Sequence[Example], image_root: Path) -> Tensor:
        key = self._submit(examples, image_root)
        try:
            return self.pixels[key].result()
        except BaseException:
            del self.pixels[key]
            raise

    def _submit(self, examples: Sequence[Example], image_root: Path) -> tuple[Path, ...]:
        """Have the pictures of a batch read, unless they are; returns their key in `pixels`."""
        if without := next((example for example in examples if example.image is None), None):
            raise UserError(f"question {without.question_id} has no picture to classify")
        key = tuple(image_root / str(example.image) for example in examples)
        if key not in self.pixels:
            held, (width, height) = sum(len(paths) for paths in self.pixels), self.pictures.size
            if image_root != self.folder or (held + len(key)) * width * height * 3 > PIXEL_BUDGET:
                self.pixels.clear()
                self.folder = image_root
            self.pixels[key] = self.thread.submit(lambda: self.pictures.resize([read_picture(path) for path in key]))
        return key


@dataclass(frozen=True)
class JointClassifier:
    """A classifier that names the likeliest of the classes of several tasks: the joint setting of KnOTS."""

    classifier: Classifier
    tasks: Sequence[tuple[str, Path]]

    def __call__(
        self, examples: Sequence[Example], image_root: Path, max_new_tokens: int = 0, image: str = "crop"
    ) -> list[str]:
        """Name the likeliest classes of every picture, one a line."""
        return self.classifier.name(self.tasks, examples, image_root) if examples else []

    def prefetch(self, examples: Sequence[Example], image_root: Path, image: str = "crop") -> None:
        """Start to read the pictures of the next batch."""
        self.classifier.prefetch(examples, image_root, image)
