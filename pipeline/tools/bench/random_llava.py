"""A LLaVA of a real one's shape with random weights, questions with pictures for it, and two ways to answer them.

Needs no file, no download and no configuration: torch, transformers, peft and this repository.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration, PreTrainedTokenizerBase

from eval.predict import predict
from eval.settings import Generation
from llava_ext.adapters import add_adapter, save_adapter
from llava_ext.data import Reader, encode_prompt
from llava_ext.generate import Generator
from llava_ext.settings import Language, Peft, Pretraining, Vision
from llava_ext.small.build import build_config, build_processor
from llava_ext.small.tokenizer import SPECIAL, build_tokenizer
from robustmerge.stage.address import Address
from robustmerge.stage.pictures import read_picture
from robustmerge.stage.records import Example, read_predictions, write_examples

TEMPLATE = "vicuna_v1"
SHAPES = {
    "7b": Pretraining(
        vision=Vision(layers=24, width=1024, mlp=4096, heads=16, image_size=336, patch_size=14),
        language=Language(layers=32, width=4096, mlp=11008, heads=32),
        vocabulary=32000,
    ),
    "tiny": Pretraining(
        vision=Vision(layers=2, width=32, mlp=64, heads=2, image_size=56, patch_size=14),
        language=Language(layers=2, width=64, mlp=96, heads=2),
        vocabulary=600,
    ),
}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SHARPNESS = 12  # a picture is drawn from so many random colours a side: photographs compress about as well


class RandomGenerator(Generator):
    """A Generator whose model is drawn on the device instead of being read from the folder, which has the rest."""

    def __init__(self, folder: Path, shape: str, device: str, dtype: torch.dtype):
        self.shape = SHAPES[shape]
        write_layout(folder, self.shape)
        super().__init__(folder, TEMPLATE, device, dtype)

    def load(self) -> LlavaForConditionalGeneration:
        return draw_model(self.shape, self.reader.tokenizer, self.device, self.dtype)


def write_layout(folder: Path, shape: Pretraining) -> PreTrainedTokenizerBase:
    """Write all files of a base of this shape but its weights. Returns its tokenizer."""
    tokenizer = build_tokenizer([" ".join(make_words(shape.vocabulary))], shape.vocabulary)
    build_processor(shape.vision, tokenizer).save_pretrained(folder)
    build_config(shape, tokenizer).save_pretrained(folder)
    return tokenizer


def draw_model(
    shape: Pretraining, tokenizer: PreTrainedTokenizerBase, device: str, dtype: torch.dtype
) -> LlavaForConditionalGeneration:
    """Weights from the library's own initialisation, made on the device.

    The output rows of special tokens are zero: none of them is ever the likeliest, so every answer has all its tokens
    and both ways of answering do the same work.
    """
    config = build_config(shape, tokenizer)
    config.vision_feature_layer = -2  # as LLaVA-1.5 has it
    torch.manual_seed(0)
    with torch.device(device), torch.no_grad():
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
        model.lm_head.weight[tokenizer.convert_tokens_to_ids(list(SPECIAL))] = 0
    return model.to(device).eval().requires_grad_(False)


def draw_adapter(folder: Path, model: nn.Module, seed: int) -> Path:
    """Write an adapter of rank 4 with random factors, small beside the weights. The model stays as it is."""
    adapted = add_adapter(model, Peft(r=4, alpha=8, modules_to_save=()), "random", seed, "bench", float32=False)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if ".lora_B." in name:
                weight.normal_(0.0, 0.01)
    folder.mkdir()
    save_adapter(adapted, folder)
    adapted.unload()
    return folder


def make_words(count: int) -> list[str]:
    """Words of three letters and more, all different."""
    return [LETTERS[n // 676 % 26] + LETTERS[n // 26 % 26] + LETTERS[n % 26] * (1 + n // 17576) for n in range(count)]


def draw_questions(folder: Path, count: int, size: tuple[int, int], vocabulary: int, seed: int = 0) -> Path:
    """A question file, each question of 6 to 30 words with a JPEG of its own; size: width and height in pixels.

    vocabulary: of the tokenizer, which knows the first quarter of its words for certain.
    """
    texts, colours = random.Random(seed), np.random.default_rng(seed)
    vocabulary_words = make_words(vocabulary // 4)
    (folder / "images").mkdir(parents=True)
    examples = []
    for index in range(count):
        name = f"images/{index:05d}.jpg"
        rough = Image.fromarray(colours.integers(0, 256, (SHARPNESS, SHARPNESS, 3), dtype=np.uint8))
        rough.resize(size, Image.Resampling.BICUBIC).save(folder / name, quality=90)
        text = " ".join(texts.choices(vocabulary_words, k=texts.randint(6, 30))) + "?"
        examples.append(Example(f"q{index}", text, "", image=name))
    write_examples(folder / "test.jsonl", examples)
    return folder / "test.jsonl"


def answer_in_batches(generator: Generator, questions: Path, tokens: int, batch: int, work: Path) -> list[str]:
    """The predict stage as the pipeline runs it, with nothing kept of earlier pictures. work: a folder for its file."""
    generator.features.clear()
    settings = Generation("bench", "{text}", generator.reader.template, tokens, batch)
    file = work / f"answers-{time.monotonic_ns()}.jsonl"
    address = Address(work, file, {"stage": "bench"})
    predict(address, settings, questions, generator, lambda text: None, progress=False)
    return [prediction.text for prediction in read_predictions(file)]


def _picture(folder: Path, example: Example) -> Path:
    """The picture that `draw_questions` gave a question."""
    return folder / (example.image or "")


@torch.inference_mode()
def answer_one_by_one(generator: Generator, examples: Sequence[Example], folder: Path, tokens: int) -> list[str]:
    """The plain loop of evaluation scripts: a picture, a prompt, `model.generate`, a question at a time."""
    model, reader = generator.model, generator.reader
    tokenizer, answers = reader.tokenizer, []
    for example in examples:
        ids = torch.tensor([encode_prompt(reader, example)], device=model.device)
        pixels = reader.pixels([read_picture(_picture(folder, example))]).to(model.device, model.dtype)
        output = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, do_sample=False,
            max_new_tokens=tokens, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        answers.append(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip())
    return answers


@dataclass(frozen=True)
class Parts:
    """Seconds of one batch: reading pictures, the vision tower, the rest of the prompt, one further token."""

    read: float
    look: float
    prompt: float
    token: float


def time_parts(generator: Generator, examples: Sequence[Example], folder: Path, tokens: int) -> Parts:
    """The parts of one batch, from the differences of calls; each is made twice, and the shorter time counts."""
    reader: Reader = generator.reader

    def shorter(action: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
        return min((before(), time_action(action))[1] for _ in range(2))

    read = shorter(lambda: reader.pixels([read_picture(_picture(folder, example)) for example in examples]))
    all_of_one = shorter(lambda: generator(examples, folder, 1), generator.features.clear)
    prompt = shorter(lambda: generator(examples, folder, 1))  # features of the pictures are kept
    token = (shorter(lambda: generator(examples, folder, tokens)) - prompt) / max(1, tokens - 1)
    return Parts(read, max(0.0, all_of_one - prompt - read), prompt, token)


def time_action(action: Callable[[], object]) -> float:
    """Seconds that `action` takes. It must end with its results on the CPU."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def reset_peak_memory() -> None:
    """Begin a new count of the GPU's memory."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> float | None:
    """The most GB that the GPU has held since the last `reset_peak_memory`; None without a GPU."""
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None
