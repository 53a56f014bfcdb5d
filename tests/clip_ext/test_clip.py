"""CLIP classifiers: heads as the library computes them, experts that learn, answers that depend on nothing else."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, CLIPModel, CLIPVisionModelWithProjection

from clip_ext.classify import Classifier
from clip_ext.heads import build_head, open_tokenizer, read_classes
from clip_ext.model import CLIP, load_clip, take_image_encoder
from clip_ext.train import CLIP_TRAINING
from eval.predict import predict
from eval.questions import read_prompts
from eval.score import score_predictions
from eval.settings import Generation, Scoring
from llava_ext.adapters import load_adapter
from llava_ext.settings import Expert, Recipe
from llava_ext.train import train_expert
from pipeline.tools.ask import ask
from pipeline.tools.general.command import run_general
from robustmerge.merging import merge
from robustmerge.method import read_method
from robustmerge.stage.address import Address
from robustmerge.stage.records import read_predictions
from robustmerge.stage.settings import UserError
from tests.plans import make_plan, make_point
from tests.tiny_clip import PEFT, PROMPT, write_class_task, write_clip
from tests.tiny_model import write_base

RECIPE = Recipe(learning_rate=2e-2, global_batch=8, epochs=8, warmup_ratio=0.0, save_steps=0)


@dataclasses.dataclass(frozen=True)
class Ground:
    """A base, two tasks that have one class in common, and the expert of each."""

    base: Path
    tasks: dict[str, Path]
    experts: dict[str, Path]

    def examples(self, task: str) -> list:
        return read_prompts(self.tasks[task] / "test.jsonl", PROMPT)


def train(root: Path, base: Path, tasks: dict[str, Path], recipe: Recipe = RECIPE) -> Path:
    settings = Expert(tuple(tasks), dict.fromkeys(tasks, PROMPT), PEFT, recipe, template="")
    address = Address(root, root / settings.name, {"stage": "train", "name": settings.name})
    return train_expert(address, settings, base, tasks, CLIP_TRAINING, lambda _: None)


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Ground:
    root = tmp_path_factory.mktemp("clip")
    base = write_clip(root / "base")
    colours = {"warm": ("red", "yellow"), "cold": ("blue", "green", "red")}
    tasks = {name: write_class_task(root / name, colours=names, seed=7) for name, names in colours.items()}
    experts = {name: train(root / "experts", base, {name: folder}) for name, folder in tasks.items()}
    return Ground(base, tasks, experts)


def accuracy(classifier: Classifier, ground: Ground, task: str) -> float:
    examples = ground.examples(task)
    named = [answer.split("\n")[0] for answer in classifier(examples, ground.tasks[task])]
    return sum(name == one.answer for name, one in zip(named, examples, strict=True)) / len(examples)


def test_the_logits_are_those_of_the_library_for_one_template(ground):
    classes = read_classes(ground.tasks["cold"])
    pictures = [Image.open(ground.tasks["cold"] / str(one.image)) for one in ground.examples("cold")[:9]]
    assert len({picture.size for picture in pictures}) > 1
    model, processor = CLIPModel.from_pretrained(ground.base).eval(), AutoProcessor.from_pretrained(ground.base)
    texts = [f"a {name} square" for name in classes]
    with torch.no_grad():
        expected = model(**processor(text=texts, images=pictures, padding=True, return_tensors="pt")).logits_per_image
    head = build_head(load_clip(ground.base, torch.float32), open_tokenizer(ground.base), "a {label} square", classes)
    classifier = Classifier(ground.base)
    pixels = classifier.pictures.normalise(classifier.pictures.resize(pictures))
    with torch.no_grad():
        embeddings = torch.nn.functional.normalize(classifier.model(pixel_values=pixels).image_embeds, dim=-1)
    torch.testing.assert_close(embeddings @ head.T, expected)


def test_a_row_of_a_head_is_the_mean_of_the_templates_on_the_sphere(ground):
    clip, tokenizer = load_clip(ground.base, torch.float32), open_tokenizer(ground.base)
    one, other = (build_head(clip, tokenizer, template, ["red", "blue"]) for template in PROMPT.splitlines())
    both = build_head(clip, tokenizer, PROMPT, ["red", "blue"])
    scale = clip.logit_scale.exp()
    torch.testing.assert_close(both, torch.nn.functional.normalize(one + other, dim=-1) * scale)
    torch.testing.assert_close(both.norm(dim=-1), scale.expand(2))


def test_an_expert_learns_its_task_and_leaves_the_base_as_it_was(ground):
    classifier = Classifier(ground.base)
    before = {task: accuracy(classifier, ground, task) for task in ground.tasks}
    for task, expert in ground.experts.items():
        losses = [json.loads(line)["loss"] for line in (expert / "losses.jsonl").read_text().splitlines()]
        assert losses[-1] < 0.7 * losses[0]
        classifier.use(expert)
        assert accuracy(classifier, ground, task) > before[task] + 0.2
    classifier.use(None)
    assert {task: accuracy(classifier, ground, task) for task in ground.tasks} == before


def test_the_adapter_is_that_of_a_plain_image_encoder(ground):
    from peft import PeftModel

    encoder = CLIPVisionModelWithProjection.from_pretrained(ground.base)
    plain = PeftModel.from_pretrained(encoder, ground.experts["warm"]).merge_and_unload().state_dict()
    ours = load_adapter(take_image_encoder(load_clip(ground.base, torch.float32)), ground.experts["warm"], CLIP)
    merged = ours.merge_and_unload().state_dict()
    assert plain.keys() == merged.keys()
    assert all(torch.equal(plain[name], merged[name]) for name in plain)


def test_every_picture_of_a_joint_training_is_compared_with_the_classes_of_its_own_task(ground, tmp_path):
    classifier = Classifier(ground.base)
    before = {task: accuracy(classifier, ground, task) for task in ground.tasks}
    classifier.use(train(tmp_path, ground.base, ground.tasks, dataclasses.replace(RECIPE, epochs=16)))
    after = {task: accuracy(classifier, ground, task) for task in ground.tasks}
    assert all(after[task] > before[task] + 0.2 for task in ground.tasks), (before, after)


def test_a_training_that_is_cut_short_ends_with_the_same_bytes(ground, tmp_path, monkeypatch):
    recipe = dataclasses.replace(RECIPE, epochs=2, save_steps=2)
    whole = train(tmp_path / "whole", ground.base, {"warm": ground.tasks["warm"]}, recipe)
    original, calls = CLIP_TRAINING.trainer.compute_loss, []

    def fail_at_fifth(*arguments, **more):
        calls.append(None)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return original(*arguments, **more)

    monkeypatch.setattr(CLIP_TRAINING.trainer, "compute_loss", fail_at_fifth)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", ground.base, {"warm": ground.tasks["warm"]}, recipe)
    cut = train(tmp_path / "cut", ground.base, {"warm": ground.tasks["warm"]}, recipe)
    assert len(calls) == 5 + 2  # two of six steps were left
    name = "adapter_model.safetensors"
    assert (cut / name).read_bytes() == (whole / name).read_bytes()


def test_merged_experts_answer_and_are_scored_with_the_first_ranks(ground, tmp_path):
    address = Address(tmp_path, tmp_path / "merged", {"stage": "merge"})
    merge(address, read_method("task_arithmetic"), ground.experts, lambda _: None)
    classifier = Classifier(ground.base)
    classifier.use(address.path)
    settings = Generation("cold", PROMPT, "", 0, 5, image="crop")
    answers = Address(tmp_path, tmp_path / "cold.jsonl", {"stage": "predict"})
    predict(answers, settings, ground.tasks["cold"] / "test.jsonl", classifier, lambda _: None, progress=False)
    predictions = read_predictions(answers.path)
    assert all(sorted(one.text.split("\n")) == ["blue", "green", "red"] for one in predictions)
    scored = score_predictions(Scoring("cold", "label", "top_1"), ground.examples("cold"), predictions)
    assert scored.parts == {"top_3": 100.0, "top_5": 100.0}
    named = [one.text.split("\n")[0] for one in predictions]
    right = [name == one.answer for name, one in zip(named, ground.examples("cold"), strict=True)]
    assert scored.value == pytest.approx(100 * sum(right) / len(right))


def test_pictures_are_decoded_once_for_all_sources(ground, monkeypatch):
    decoded = []
    original = Classifier.__call__.__globals__["read_picture"]
    monkeypatch.setitem(
        Classifier.__call__.__globals__, "read_picture", lambda path: decoded.append(path) or original(path)
    )
    classifier, examples = Classifier(ground.base), ground.examples("cold")
    for expert in (None, *ground.experts.values()):
        classifier.use(expert)
        for start in range(0, len(examples), 10):
            classifier(examples[start : start + 10], ground.tasks["cold"])
    assert len(decoded) == len(set(decoded)) == len(examples)


def test_what_is_no_clip_no_class_or_no_picture_is_refused(ground, tmp_path):
    with pytest.raises(UserError, match="is no CLIP: its config.json says model_type 'llava', not 'clip'"):
        Classifier(write_base(tmp_path / "llava"))
    classifier, examples = Classifier(ground.base), ground.examples("warm")
    with pytest.raises(UserError, match="has no picture to classify"):
        classifier([dataclasses.replace(examples[0], image=None)], ground.tasks["warm"])
    (tmp_path / "classes.json").write_text('["a", "b", "a"]')
    with pytest.raises(UserError, match="names a class twice: a"):
        read_classes(tmp_path)
    with pytest.raises(UserError, match="the text encoder reads 77 tokens at most"):
        build_head(classifier.clip, classifier.tokenizer, PROMPT, ["red " * 90])
    folder = write_class_task(tmp_path / "odd", colours=("red", "blue"))
    (folder / "classes.json").write_text('["red"]')
    with pytest.raises(UserError, match="a picture and one of the task's classes as its answer, got 'blue'"):
        train(tmp_path, ground.base, {"odd": folder})


def test_an_adapter_of_the_text_encoder_is_refused(ground, tmp_path):
    expert = ground.experts["warm"]
    tensors = load_file(expert / "adapter_model.safetensors")
    for file in expert.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(
        {name.replace("vision_model", "text_model"): t for name, t in tensors.items()},
        tmp_path / "adapter_model.safetensors",
    )
    with pytest.raises(UserError, match="must leave the text encoder alone"):
        Classifier(ground.base).use(tmp_path)


def test_among_the_classes_of_all_tasks_a_shared_class_is_named_once(ground):
    classifier, examples = Classifier(ground.base), ground.examples("cold")
    pooled = [(PROMPT, folder) for folder in ground.tasks.values()]
    answers = classifier.among(pooled)(examples, ground.tasks["cold"])
    assert {frozenset(answer.split("\n")) for answer in answers} == {frozenset(("red", "yellow", "blue", "green"))}
    alone = classifier.among([(PROMPT, ground.tasks["cold"])])
    assert alone(examples, ground.tasks["cold"]) == classifier(examples, ground.tasks["cold"])


def test_what_asks_questions_refuses_a_model_that_names_classes(ground, tmp_path):
    words = ["benchmark=clip8_mini", "model=clip_tiny", f"model.checkpoint={ground.base}", "source=zero_shot"]
    with pytest.raises(UserError, match=r"a CLIP answers with a class of a task; choose one of cars, .* \(ask_as\)"):
        ask(make_point(tmp_path, *words, "question=What is it?", program="ask"))
    with pytest.raises(UserError, match="general benchmarks ask questions, and a CLIP answers none"):
        run_general([make_point(tmp_path, *words, program="general")])


def test_a_model_and_the_tasks_of_another_family_are_refused_together(tmp_path):
    with pytest.raises(UserError, match="model=tiny is a LLaVA, and these tasks are about classes of pictures"):
        make_plan(tmp_path, "benchmark=clip8_mini")
    with pytest.raises(UserError, match="model=clip_tiny is a CLIP, and these tasks are about questions: scienceqa"):
        make_plan(tmp_path, "model=clip_tiny")
    with pytest.raises(UserError, match="protocol official is for tasks about questions"):
        make_plan(tmp_path, "benchmark=clip8_mini", "model=clip_tiny", "protocol=official")


def test_by_the_joint_protocol_answers_depend_on_the_data_of_all_tasks(ground, tmp_path):
    words = ["benchmark=clip8_mini", "model=clip_tiny", f"model.checkpoint={ground.base}"]
    plan = make_plan(tmp_path, *words, "protocol=joint")
    asked = plan.predictions(plan.find_source("zero_shot"), plan.test_set(plan.config.tasks[0]))
    assert {f"data/{task.name}" for task in plan.config.tasks} <= asked.identity["inputs"].keys()
    fewer = make_plan(tmp_path, *words, "protocol=joint", "tasks=[cars,dtd]")
    assert asked != fewer.predictions(fewer.find_source("zero_shot"), fewer.test_set(fewer.config.tasks[0]))
    alone = make_plan(tmp_path, *words)
    only = alone.predictions(alone.find_source("zero_shot"), alone.test_set(alone.config.tasks[0]))
    assert only.identity["inputs"].keys() == {"source", "base", "data"}
