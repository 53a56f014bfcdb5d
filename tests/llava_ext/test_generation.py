"""Answers by batched generation: batches, sources, adapters."""

from __future__ import annotations

import dataclasses
import json
import shutil
import struct
import warnings
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.image_utils import OPENAI_CLIP_MEAN

from eval.predict import predict
from eval.questions import read_prompts
from eval.settings import Generation
from llava_ext.generate import Generator
from llava_ext.settings import Expert, Peft, Recipe
from llava_ext.train import LLAVA_TRAINING, train_expert
from robustmerge.formats.adapter_config import CONFIG, WEIGHTS
from robustmerge.stage.address import REPOSITORY, Address
from robustmerge.stage.records import Example, Prediction, read_predictions, write_examples
from robustmerge.stage.settings import UserError
from tests.tiny_model import TEMPLATE, draw_examples, write_base, write_task


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A base, two experts of other seeds, and questions with and without pictures, of several lengths."""
    root = tmp_path_factory.mktemp("ground")
    base, task = write_base(root / "base"), write_task(root / "task")
    recipe = Recipe(learning_rate=2e-2, projector_learning_rate=2e-2, global_batch=8, max_steps=12, save_steps=0)
    experts = []
    for seed in (0, 1):
        settings = Expert(tasks=("task",), recipe=recipe, template=TEMPLATE, peft=Peft(r=4, dropout=0.0), seed=seed)
        address = Address(root, root / f"expert{seed}", {"stage": "train", "seed": seed})
        experts.append(train_expert(address, settings, base, {"task": task}, LLAVA_TRAINING, lambda _: None))
    return base, experts, task, draw_examples(root / "task", 14, seed=7)


def test_a_batch_gives_the_answers_of_its_questions_one_by_one(ground):
    base, experts, task, examples = ground
    assert {example.image is None for example in examples} == {True, False}
    generate = Generator(base, TEMPLATE)
    for source in (None, experts[0]):
        generate.use(source)
        together = generate(examples, task, 8)
        assert together == [generate([example], task, 8)[0] for example in examples]
        assert together == generate(examples[::-1], task, 8)[::-1]


def test_fast_products_repeat_their_answers_and_are_switched_off_after_them(ground):
    base, experts, task, examples = ground
    generate, exact = Generator(base, TEMPLATE, fast=True), Generator(base, TEMPLATE)
    for source in (experts[0], None):
        generate.use(source)
        exact.use(source)
        fast_answers = generate(examples, task, 8)
        assert torch.get_float32_matmul_precision() == "highest"
        assert fast_answers == generate(examples, task, 8)
    assert all(torch.equal(one, other) for one, other in zip(*map(_weights, (generate, exact)), strict=True))


def _weights(generate: Generator) -> list[torch.Tensor]:
    return [weight for _, weight in sorted(generate.model.state_dict().items())]


def test_the_order_of_sources_does_not_change_answers_or_weights(ground):
    base, experts, task, examples = ground
    generate = Generator(base, TEMPLATE)
    clean = {name: weight.clone() for name, weight in generate.model.state_dict().items()}
    alone = {}
    for source in (None, *experts):
        fresh = Generator(base, TEMPLATE)
        fresh.use(source)
        alone[source] = fresh(examples, task, 8)
    assert alone[experts[0]] != alone[None]
    for source in (experts[1], None, experts[0], experts[1], experts[0], None):
        generate.use(source)
        assert generate(examples, task, 8) == alone[source]
    assert generate.model.state_dict().keys() == clean.keys()
    assert all(torch.equal(weight, clean[name]) for name, weight in generate.model.state_dict().items())


def test_merged_weights_answer_as_the_adapter_does(ground):
    base, experts, task, _ = ground
    from llava_ext.adapters import load_adapter

    generate = Generator(base, TEMPLATE)
    ids = torch.arange(10, 40).reshape(2, 15)
    generate.use(experts[0])
    merged = generate.model(input_ids=ids).logits
    plain = load_adapter(Generator(base, TEMPLATE).model, experts[0]).eval()
    assert torch.allclose(merged, plain(input_ids=ids).logits, atol=1e-4)


def test_the_output_matrix_is_multiplied_by_one_whole_matrix_a_step(ground):
    """With gaps between the rows, PyTorch multiplies row by row and copies the output matrix for each."""
    base, _, task, examples = ground
    generate, whole = Generator(base, TEMPLATE), []
    generate.model.lm_head.register_forward_pre_hook(lambda _, inputs: whole.append(inputs[0].is_contiguous()))
    generate(examples, task, 4)
    assert whole and all(whole)


def test_questions_of_text_alone_are_answered(ground):
    base, _, task, _ = ground
    answers = Generator(base, TEMPLATE)([Example("a", "Colour?", ""), Example("b", "Name it please", "")], task, 4)
    assert len(answers) == 2
    assert Generator(base, TEMPLATE)([], task, 4) == []


def test_an_adapter_with_a_missing_key_is_refused_and_the_base_stays_whole(ground, tmp_path):
    base, experts, task, examples = ground
    broken = change_weights(
        experts[0], tmp_path / "broken", lambda tensors: tensors.pop(next(name for name in tensors if "lora_B" in name))
    )
    generate = Generator(base, TEMPLATE)
    before = generate(examples, task, 4)
    with pytest.raises(UserError, match="has lora_A.weight but no lora_B.weight"):
        generate.use(broken)
    assert generate(examples, task, 4) == before
    with pytest.raises(UserError, match="no adapter folder"):
        generate.use(tmp_path)
    assert generate(examples, task, 4) == before


def change_weights(expert: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of an expert with other tensors."""
    shutil.copytree(expert, folder)
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    return folder


def add_to_the_tower(tensors: dict[str, torch.Tensor]) -> None:
    place = "base_model.model.model.vision_tower.encoder.layers.0.self_attn.q_proj"
    tensors[f"{place}.lora_A.weight"], tensors[f"{place}.lora_B.weight"] = torch.ones(4, 32), torch.ones(32, 4)


def fill(part: str, value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: [tensor.fill_(value) for name, tensor in tensors.items() if part in name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add_to_the_tower, r"must leave the vision tower alone, but holds base_model.*q_proj\.lora_A\.weight"),
        (fill("lora_B", float("nan")), "holds numbers that are not finite"),
        (fill("projector", float("inf")), "holds numbers that are not finite"),
        (fill("lora_", 1e30), "cannot be merged into the base: NaNs detected"),
    ],
    ids=["vision tower", "nan", "projector", "overflow"],
)
def test_an_adapter_that_would_spoil_the_base_is_refused(ground, tmp_path, change, message):
    base, experts, task, examples = ground
    folder = change_weights(experts[0], tmp_path / "spoilt", change)
    config = json.loads((folder / CONFIG).read_text())
    config["target_modules"] = r".*(language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj|vision_tower.*q_proj)"
    if change is add_to_the_tower:  # so that peft itself takes it
        (folder / CONFIG).write_text(json.dumps(config))
    generate = Generator(base, TEMPLATE)
    before = generate(examples, task, 4)
    with pytest.raises(UserError, match=message):
        generate.use(folder)
    assert generate(examples, task, 4) == before


def test_only_the_weights_that_an_adapter_changes_are_copied(ground):
    base, experts, _, _ = ground
    generate = Generator(base, TEMPLATE)
    generate.use(experts[0])
    parts = {name.split("layers.")[-1].split(".", 1)[-1] for name in generate.originals if "language_model" in name}
    assert parts == {f"self_attn.{part}_proj.weight" for part in "qkvo"} | {
        f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")
    }
    others = {name for name in generate.originals if "language_model" not in name}
    assert len(others) == 4 and all("multi_modal_projector" in name for name in others)


def test_an_adapter_in_a_bin_file_answers_as_it_does_in_safetensors(ground, tmp_path):
    base, experts, task, examples = ground
    folder = tmp_path / "bin"
    shutil.copytree(experts[0], folder)
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()
    generate = Generator(base, TEMPLATE)
    generate.use(experts[0])
    expected = generate(examples, task, 8)
    generate.use(folder)
    assert generate(examples, task, 8) == expected
    torch.save({"a": Path("not a tensor")}, folder / "adapter_model.bin")
    with pytest.raises(UserError, match="cannot read"):
        generate.use(folder)


def break_picture(kind: str, path: Path) -> None:
    """Nothing, or a file that makes Pillow raise OSError, UnidentifiedImageError, SyntaxError or a bomb error."""
    whole = BytesIO()
    Image.effect_noise((64, 64), 50.0).save(whole, "png")
    header, rest = whole.getvalue()[:16], whole.getvalue()[33:]  # the first chunk: size, depth, checksum
    size = struct.pack(">IIBBBBB", 40000, 40000, 8, 0, 0, 0, 0)
    broken = {
        "cut": whole.getvalue()[:-200],
        "no picture": b"hello",
        "damaged": whole.getvalue()[:33] + b"\0\0\0\4" + rest[4:],
        "bomb": header + size + struct.pack(">I", zlib.crc32(header[12:] + size)) + rest,
    }
    path.unlink()
    if kind != "missing":
        path.write_bytes(broken[kind])


@pytest.mark.parametrize("kind", ["missing", "cut", "no picture", "damaged", "bomb"])
def test_an_unreadable_picture_fails_its_question_alone(ground, tmp_path, kind):
    base, _, _, _ = ground
    examples = draw_examples(tmp_path, 5)
    write_examples(tmp_path / "test.jsonl", examples)
    settings = Generation("task", "{text}", TEMPLATE, max_new_tokens=4, batch_size=3)
    generate = Generator(base, TEMPLATE)

    def answer(name: str) -> dict[str, Prediction]:
        address = Address(tmp_path, tmp_path / name, {"stage": "predict"})
        path = predict(address, settings, tmp_path / "test.jsonl", generate, lambda _: None, progress=False)
        return {answer.question_id: answer for answer in read_predictions(path)}

    whole = answer("whole.jsonl")
    break_picture(kind, tmp_path / examples[0].image)
    generate.features.clear()
    others = answer("broken.jsonl")
    bad = others.pop(examples[0].question_id)
    assert bad.error.startswith("PictureError: ") and str(tmp_path / examples[0].image) in bad.error
    assert others == {name: whole[name] for name in others}


def test_generation_is_silent_and_greedy(ground, capfd):
    base, experts, task, examples = ground
    generate = Generator(base, TEMPLATE)
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate.use(experts[0])
        first = generate(examples, task, 4)
    assert first == generate(examples, task, 4)
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""
    assert json.loads((experts[0] / "adapter_config.json").read_text())["inference_mode"] is True


def test_on_a_trained_model_a_batch_of_all_lengths_gives_the_answers_of_its_questions_one_by_one(smoke):
    """Questions of four tasks, long and short, a third of them without their picture, by the multi-task model."""
    examples, folders = [], {}
    for task in ("vqav2", "rec", "vizwiz", "scienceqa"):
        (folder,) = (smoke.root / "data").glob(f"{task}-*")
        for number, example in enumerate(read_prompts(folder / "test.jsonl", "{text}")[:6]):
            image = None if number % 3 == 2 else str(folder / example.image)
            text = example.text * (1 + number % 4)
            examples.append(dataclasses.replace(example, text=text, image=image))
            folders[task] = folder
    base = REPOSITORY / "bases/tiny-paper"
    (expert,) = (smoke.root / "experts").glob("multi_task-*")
    generate = Generator(base, TEMPLATE)
    generate.use(expert)
    together = generate(examples, Path("/"), 24)
    assert together == [generate([example], Path("/"), 24)[0] for example in examples]
    assert len(set(together)) > 3
    assert max(map(len, together)) > 3 * min(len(text) for text in together if text)


def test_a_picture_is_padded_or_cropped_as_its_protocol_says(ground, tmp_path):
    base, experts, _, _ = ground
    picture = Image.new("RGB", (48, 24), "red")
    picture.paste("blue", (12, 0, 36, 24))
    picture.save(tmp_path / "wide.png")
    Image.new("RGB", (24, 24), "blue").save(tmp_path / "centre.png")
    padded = Image.new("RGB", (48, 48), tuple(int(255 * mean) for mean in OPENAI_CLIP_MEAN))
    padded.paste(picture, (0, 12))
    padded.save(tmp_path / "padded.png")
    generate = Generator(base, TEMPLATE)

    def see(name: str, image: str) -> torch.Tensor:
        return generate._tower_features([tmp_path / name], image)

    assert torch.equal(see("wide.png", "crop"), see("centre.png", "pad"))
    assert torch.equal(see("wide.png", "pad"), see("padded.png", "crop"))
    assert not torch.equal(see("wide.png", "pad"), see("wide.png", "crop"))
    generate.use(experts[0])
    example = Example("a", "Colour?", "", image="wide.png")
    assert generate([example], tmp_path, 4, "crop") == generate([example], tmp_path, 4, "crop")
    assert len(generate.features) == 1
    generate([example], tmp_path, 4, "pad")
    assert len(generate.features) == 2, "features of a cropped picture are not used for the padded one"
