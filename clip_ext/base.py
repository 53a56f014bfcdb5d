"""The base stage of the CLIP family: a small CLIP trained from scratch on pictures with captions.

Pictures and captions of a batch are matched both ways (Radford et al. 2021); equal captions all count as right. The
image encoder also learns to tell all classes of the tasks apart, even those that captions do not name, with heads that
are not kept: this replaces the hundreds of millions of pictures from which the real one learnt to see.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import datasets
import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerBase
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from clip_ext.heads import open_tokenizer
from clip_ext.model import Pictures, load_clip
from clip_ext.settings import ClipBase
from llava_ext.backend import fast_matmul, quiet_libraries
from llava_ext.data import derive_seed
from llava_ext.pixels import read_training_picture
from llava_ext.settings import LOSSES
from llava_ext.small.build import draw_weights
from llava_ext.small.parts import PartRun, format_accuracies, train_in
from llava_ext.small.probe import PICTURES, exact_products, head_entropies, probe
from llava_ext.small.tokenizer import BOS, EOS, build_tokenizer
from robustmerge.stage.address import Address, run_stage
from robustmerge.stage.files import read_json

FIRST_SCALE = 1 / 0.07  # of the logits, before training
LARGEST_SCALE = 100.0
AT_ONCE = 100  # pictures that are measured together; among their captions each one's is looked for


def train_clip(address: Address, settings: ClipBase, corpus: Path, say: Callable[[str], None] = print) -> Path:
    """Train a CLIP on `corpus` (train/, held_out/, heads.json) and save it at `address`.

    The record holds accuracies on held-out pictures: `probe`, of a linear probe on the frozen image encoder for each
    task; `found`, how often a picture's caption is the likeliest of a hundred.
    """

    def work(folder: Path) -> dict:
        return train_in(folder, lambda work: _train(folder, work, settings, corpus, say))

    return run_stage(address, work, say)


def _train(folder: Path, work: Path, settings: ClipBase, corpus: Path, say: Callable[[str], None]) -> dict:
    sizes: dict[str, int] = read_json(corpus / "heads.json", "the numbers of classes")
    train, held_out = (_read_rows(corpus / part, sizes) for part in ("train", "held_out"))
    tokenizer = build_caption_tokenizer([row.caption for row in train], settings)
    model, pictures = build_clip(settings, tokenizer), Pictures(build_image_processor(settings))
    collate = CaptionCollator(pictures, tokenizer, settings.text.longest)
    seed = derive_seed(settings.seed, "learn")
    run = PartRun((1, 1), "model.base.learn", settings.learn, seed, settings.save_steps, work / "learn", say)
    with fast_matmul():
        matching = Matching(model, list(sizes.values()), derive_seed(settings.seed, "heads"))
        run.fit(matching, train, range(len(train)), collate)
        model.eval()
        found = measure_found(matching, held_out, collate)
    with exact_products():
        probed = [row for row in train if max(row.classes) >= 0][:PICTURES]
        linear = probe(read_features(model, probed, collate), read_features(model, held_out, collate), sizes)
    say(f"captions found among {AT_ONCE}, on {len(held_out):,} held-out pictures: {found:.3f}")
    say(f"linear probes on the frozen features, accuracy on the same: {format_accuracies(linear)}")
    save_clip(folder, model, tokenizer, pictures)
    os.replace(work / "learn" / LOSSES, folder / "losses_learn.jsonl")
    size = sum(weight.numel() for weight in model.parameters())
    return {"probe": linear, "found": found, "parameters": size, "vocabulary": len(tokenizer)}


class Row(NamedTuple):
    """A picture as bytes, its caption, and the number of its class in each task, -1 where it is of none."""

    picture: bytes
    caption: str
    classes: tuple[int, ...]


def _read_rows(folder: Path, tasks: Iterable[str]) -> list[Row]:
    table = datasets.load_from_disk(str(folder))
    classes = zip(*(table[task][:] for task in tasks), strict=True)
    return [Row(*row) for row in zip(table["image"][:], table["caption"][:], classes, strict=True)]


def build_caption_tokenizer(captions: Sequence[str], settings: ClipBase) -> PreTrainedTokenizerBase:
    """A tokenizer of the captions' words that puts the tokens of beginning and end around a text, as CLIP's does."""
    tokenizer = build_tokenizer(captions, settings.vocabulary)
    ends = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (BOS, EOS)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{BOS} $A {EOS}", special_tokens=ends)
    tokenizer.model_max_length = settings.text.longest
    return tokenizer


def build_clip(settings: ClipBase, tokenizer: PreTrainedTokenizerBase) -> CLIPModel:
    """The untrained model, a function of the settings and the tokenizer's size; no global seed matters."""
    vision, text = settings.vision, settings.text
    config = CLIPConfig(
        vision_config={
            "hidden_size": vision.width,
            "intermediate_size": vision.mlp,
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "projection_dim": settings.width,
        },
        text_config={
            "hidden_size": text.width,
            "intermediate_size": text.mlp,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "max_position_embeddings": text.longest,
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "projection_dim": settings.width,
        },
        projection_dim=settings.width,
    )
    config._attn_implementation = "eager"  # with `fast_matmul` twice as fast as the fused CPU kernel
    model = CLIPModel(config).float()
    draw_weights(model, settings.seed)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(FIRST_SCALE))
    return model


def build_image_processor(settings: ClipBase) -> CLIPImageProcessorPil:
    """The image processor of the model, by class: torchvision resizes with other code and gives other pixels."""
    side = settings.vision.image_size
    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


class CaptionCollator:
    """Makes a batch of rows."""

    def __init__(self, pictures: Pictures, tokenizer: PreTrainedTokenizerBase, longest: int):
        self.pictures, self.tokenizer, self.longest = pictures, tokenizer, longest

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        captions = [row.caption for row in rows]
        tokens = self.tokenizer(captions, padding=True, truncation=True, max_length=self.longest, return_tensors="pt")
        return {
            "pixel_values": self.pixels(rows),
            "input_ids": tokens["input_ids"],
            "attention_mask": tokens["attention_mask"],
            "captions": torch.tensor([captions.index(caption) for caption in captions]),
            "classes": torch.tensor([row.classes for row in rows]),
        }

    def pixels(self, rows: Sequence[Row]) -> Tensor:
        """Pixel values of the pictures, float32 [n, 3, height, width]."""
        return self.pictures.normalise(self.pictures.resize([read_training_picture(row.picture) for row in rows]))


class Matching(nn.Module):
    """A CLIP with its loss over a batch, as the Trainer of transformers expects of a model.

    sizes: number of classes of every task, each of which has a linear head on the image encoder's features.
    """

    def __init__(self, clip: CLIPModel, sizes: Sequence[int], seed: int):
        super().__init__()
        self.clip, self.sizes = clip, tuple(sizes)
        width = clip.config.vision_config.hidden_size
        self.heads = nn.Linear(width, sum(sizes))
        with torch.no_grad():
            self.heads.weight.normal_(std=width**-0.5, generator=torch.Generator().manual_seed(seed))
            self.heads.bias.zero_()

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, captions: Tensor, classes: Tensor
    ) -> dict[str, Tensor]:
        """The loss on pictures with captions.

        captions: [n], equal for pictures with equal captions, which all count as right; classes: [n, tasks], -1 where a
        picture is none of the task's.
        """
        with torch.no_grad():
            self.clip.logit_scale.clamp_(max=math.log(LARGEST_SCALE))
        outputs = self.clip(input_ids=input_ids, pixel_values=pixel_values, attention_mask=attention_mask)
        same = (captions[:, None] == captions[None, :]).float()
        targets, logits = same / same.sum(dim=1, keepdim=True), outputs.logits_per_image.float()
        matched = (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2
        seen = self.clip.vision_model.post_layernorm(outputs.vision_model_output.last_hidden_state[:, 0])
        told_apart = self.heads(seen).split(self.sizes, dim=1)
        return {"loss": matched + head_entropies(told_apart, classes).mean(), "logits": logits}


@torch.no_grad()
def measure_found(matching: Matching, rows: Sequence[Row], collate: CaptionCollator) -> float:
    """How often the likeliest of a hundred captions is a picture's own, or says the same."""
    right = 0
    for start in range(0, len(rows), AT_ONCE):
        batch = collate(rows[start : start + AT_ONCE])
        chosen = matching(**batch)["logits"].argmax(dim=1)
        right += int((batch["captions"][chosen] == batch["captions"]).sum())
    return right / len(rows)


@torch.no_grad()
def read_features(model: CLIPModel, rows: Sequence[Row], collate: CaptionCollator) -> tuple[Tensor, Tensor]:
    """The image encoder's features before its projection [rows, width], and the classes [rows, tasks]."""
    batches = [rows[start : start + AT_ONCE] for start in range(0, len(rows), AT_ONCE)]
    features = [model.vision_model(pixel_values=collate.pixels(batch)).pooler_output for batch in batches]
    return torch.cat(features), torch.tensor([row.classes for row in rows])


def save_clip(folder: Path, model: CLIPModel, tokenizer: PreTrainedTokenizerBase, pictures: Pictures) -> None:
    """Write a CLIP with what reads its captions and pictures, as `from_pretrained` finds them."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pictures.processor.save_pretrained(folder)


def save_rounded(base: Path, folder: Path) -> None:
    """Save the CLIP in `base` with its weights rounded to bfloat16 into the new folder `folder`, as it is shipped."""
    quiet_libraries()
    save_clip(folder, load_clip(base, torch.bfloat16), open_tokenizer(base), Pictures.open(base))
