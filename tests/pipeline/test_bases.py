"""Small bases: which one is used, what each that is shipped says of itself, and that one can be trained again."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from clip_ext.heads import open_tokenizer
from clip_ext.model import load_clip
from llava_ext.data import load_reader
from llava_ext.model import load_model, open_config
from llava_ext.settings import KNOWLEDGE
from llava_ext.trainer import read_training_record
from pipeline.program import compose
from pipeline.stages.report_context import make_context
from pipeline.sweep import make_plans
from pipeline.tools.ship_base import find_folder, ship
from robustmerge.formats.tensors import TensorFile
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.files import sha256_of
from robustmerge.stage.settings import UserError
from tests.plans import make_plan, make_point
from tests.smollm2_layout import write_language

BASES = sorted(path for path in (REPOSITORY / "bases").glob("*") if path.is_dir())
CLIP = REPOSITORY / "bases" / "clip-tiny"
ALIGNMENT = REPOSITORY / "bases" / "smollm2-paper"
LLAVAS = [folder for folder in BASES if folder not in (CLIP, ALIGNMENT)]
LARGEST = 60e6  # bytes of all bases


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """What stands for a base on disk."""
    folder = tmp_path / "tiny-mine"
    folder.mkdir()
    (folder / "model.safetensors").write_text("weights")
    (folder / "README.md").write_text("a card")
    return folder


# Which base is used


def test_a_base_on_disk_is_what_its_files_are_wherever_it_lies(checkpoint, tmp_path):
    usual = make_plan(tmp_path, f"model.checkpoint={checkpoint}")
    moved = shutil.copytree(checkpoint, tmp_path / "elsewhere" / "tiny-mine")
    (moved / "README.md").write_text("an edited card")
    (other,) = make_plans([compose("merge_eval", [f"paths.runs={tmp_path}", f"model.checkpoint={moved}"])])
    assert (usual.base.path, usual.base_name, usual.base_addresses) == (checkpoint, "tiny-mine", [usual.base])
    assert other.experts == usual.experts and other.base_name == "tiny-mine"
    (moved / "model.safetensors").write_text("other weights")
    (changed,) = make_plans([compose("merge_eval", [f"paths.runs={tmp_path}", f"model.checkpoint={moved}"])])
    assert not {a.path for a in changed.experts.values()} & {a.path for a in usual.experts.values()}


def test_bases_that_differ_in_what_they_know_are_trained_from_one(tmp_path):
    plans = [make_plan(tmp_path, "model.base.train=true", f"model.base.knows={knows}") for knows in KNOWLEDGE]
    assert len({plan.base.path for plan in plans}) == len(KNOWLEDGE)
    assert len({tuple(made.path for made in plan.base_addresses[:2]) for plan in plans}) == 1
    names = [address.short.rpartition("-")[0] for address in plans[0].base_addresses]
    assert names == ["data/base", "base/tiny_pretrained", "base/tiny"]


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("model.base.seed=1", "base"),
        ("model.base.habits.epochs=2", "base"),
        ("model.base.pretraining.language.layers=3", "pretrained base"),
        ("model.base.pretraining.talk.epochs=2", "pretrained base"),
        ("benchmark.corpus.images=100", "corpus pretrained base"),
        ("+model.base.save_steps=7", ""),
    ],
)
def test_a_setting_of_the_training_reaches_its_part_and_what_follows(tmp_path, word, parts):
    usual, other = (make_plan(tmp_path, "model.base.train=true", *words) for words in ([], [word]))
    names = ("corpus", "pretrained", "base")
    both = zip(names, usual.base_addresses, other.base_addresses, strict=True)
    changed = [name for name, one, another in both if one != another]
    assert " ".join(changed) == parts


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("model.base.r=8", "alignment base"),
        ("model.base.learn.epochs=1", "alignment base"),
        ("model.base.knows=half", "alignment base"),
        ("model.base.seed=1", "alignment base"),
        (f"model.base.tower={REPOSITORY / 'bases' / 'tiny-half'}", "alignment base"),
        ("benchmark.corpus.images=100", "corpus alignment base"),
        ("+model.base.save_steps=7", ""),
    ],
)
def test_a_setting_of_an_alignment_reaches_it_and_the_base(tmp_path, word, parts):
    language = write_language(tmp_path / "language")
    words = ["model=smollm2", "model.base.train=true", f"model.base.language={language}"]
    usual, other = (make_plan(tmp_path, *words, *more).base_addresses for more in ([], [word]))
    both = zip(("corpus", "alignment", "base"), usual, other, strict=True)
    assert " ".join(name for name, one, another in both if one != another) == parts


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["model.base.pretraining.language.layers=6", "benchmark.corpus.images=9"],
            r"add model.base.train=true to train it \(model.base.pretraining.language.layers\)\n.*"
            r"add model.base.train=true to train it \(benchmark.corpus.images\)",
        ),
        (["model.base.knows=half", "model.checkpoint=OWN"], r"model.checkpoint names another \(model.base.knows\)"),
        (["model.base.train=true", "model.checkpoint=OWN"], r"nothing shipped is used \(model.checkpoint\)"),
        (["model.base.knows=all"], r"choose one of half, nothing, paper \(model.base.knows\)"),
    ],
)
def test_what_would_not_reach_the_base_is_refused_by_its_key(checkpoint, tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        make_plan(tmp_path, *(word.replace("OWN", str(checkpoint)) for word in words))


def test_a_profile_may_say_how_a_base_would_be_trained_that_is_shipped(checkpoint, tmp_path):
    plan = make_plan(tmp_path, "profile=smoke", f"model.checkpoint={checkpoint}")
    assert plan.base.path == checkpoint and plan.config.model.base.habits.max_steps is not None


def test_what_a_base_knows_chooses_the_shipped_one(tmp_path):
    shipped = [make_plan(tmp_path, f"model.base.knows={knows}").config.model.checkpoint for knows in KNOWLEDGE]
    assert shipped == [str(REPOSITORY / "bases" / f"tiny-{knows}") for knows in KNOWLEDGE]


def test_a_base_that_is_not_shipped_can_be_trained(tmp_path):
    plan = make_plan(tmp_path, "model=small", "model.base.knows=nothing")
    with pytest.raises(UserError, match=r"no folder .*/bases/small-nothing.*model.base.train=true trains a base here"):
        _ = plan.base


# Shipped ones


def test_the_shipped_bases_are_small():
    assert sum(file.stat().st_size for base in BASES for file in base.rglob("*")) <= LARGEST


@pytest.mark.parametrize("folder", LLAVAS, ids=lambda folder: folder.name)
def test_a_shipped_base_is_what_its_configuration_and_its_card_say(folder, tmp_path):
    name, _, knows = folder.name.partition("-")
    plan = make_plan(tmp_path, f"model={name}", f"model.base.knows={knows}", "source=zero_shot")
    assert (plan.base.path, plan.base.short) == (folder, f"bases/{folder.name}")
    assert f"sha256 `{sha256_of(folder / 'model.safetensors')}`" in (folder / "README.md").read_text()
    check_sizes(folder, plan.config.model.base.pretraining)
    (base,) = make_context("main", [plan]).bases
    assert base["name"] == folder.name and base["probe"] and base["skills"]


def test_the_shipped_clip_is_what_its_configuration_and_its_card_say(tmp_path):
    plan = make_plan(tmp_path, "benchmark=clip8_mini", "model=clip_tiny", "source=zero_shot")
    assert (plan.base.path, plan.base.short) == (CLIP, "bases/clip-tiny")
    assert f"sha256 `{sha256_of(CLIP / 'model.safetensors')}`" in (CLIP / "README.md").read_text()
    check_clip_sizes(CLIP, plan.config.model.base)
    (base,) = make_context("main", [plan]).bases
    assert base["name"] == "clip-tiny" and set(base["probe"]) == {task.name for task in plan.config.tasks}


def test_the_shipped_alignment_is_what_its_configuration_and_its_card_say(tmp_path):
    language = write_language(tmp_path / "language")  # in place of the package, which may not be installed
    plan = make_plan(tmp_path, "model=smollm2", f"model.base.language={language}")
    settings, card = plan.config.model.base, (ALIGNMENT / "README.md").read_text()
    assert plan.base_parts[-1].inputs["alignment"].path == ALIGNMENT
    config = json.loads((ALIGNMENT / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (settings.r, settings.alpha)
    learn = settings.learn
    assert re.search(rf"\| learn \| [\d,]+ \| {learn.batch} \| {learn.learning_rate:g} \|", card)
    assert f"sha256 `{sha256_of(ALIGNMENT / 'adapter_model.safetensors')}`" in card
    record = read_training_record(ALIGNMENT)
    assert record["skills"] and f"sha256 `{record['language']['sha256']}`" in card
    adapter = TensorFile(ALIGNMENT / "adapter_model.safetensors")
    assert {adapter.get(key).dtype for key in adapter.names} == {torch.bfloat16}
    places = (ALIGNMENT / "vision_tower", Path(settings.tower))
    tower, base = (TensorFile(place / "model.safetensors") for place in places)
    for key in tower.names:
        assert torch.equal(tower.get(key), base.get(f"vision_tower.{key}")), key


def check_clip_sizes(folder: Path, settings) -> None:
    """That a CLIP is in bf16 and of the settings' sizes, and can be read whole."""
    stored, clip = TensorFile(folder / "model.safetensors"), load_clip(folder, torch.float32)
    for sizes, made in ((settings.vision, clip.config.vision_config), (settings.text, clip.config.text_config)):
        assert (made.num_hidden_layers, made.hidden_size) == (sizes.layers, sizes.width)
        assert (made.intermediate_size, made.num_attention_heads) == (sizes.mlp, sizes.heads)
    assert clip.config.projection_dim == settings.width
    assert len(open_tokenizer(folder)) == clip.config.text_config.vocab_size <= settings.vocabulary
    assert {stored.get(key).dtype for key in stored.names} == {torch.bfloat16}


def check_sizes(folder: Path, settings) -> None:
    """That a base is in bf16, of the settings' sizes, and loads in float32 as it was rounded."""
    stored = TensorFile(folder / "model.safetensors")
    config, tokenizer = open_config(folder), load_reader(folder, settings.template).tokenizer
    for sizes, made in ((settings.vision, config.vision_config), (settings.language, config.text_config)):
        assert (made.num_hidden_layers, made.hidden_size) == (sizes.layers, sizes.width)
        assert (made.intermediate_size, made.num_attention_heads) == (sizes.mlp, sizes.heads)
    assert (config.vision_config.image_size, config.vision_config.patch_size) == (
        settings.vision.image_size, settings.vision.patch_size,
    )  # fmt: skip
    assert len(tokenizer) == config.text_config.vocab_size <= settings.vocabulary
    for key, weight in load_model(folder, torch.float32).state_dict().items():
        assert weight.dtype == torch.float32 and torch.isfinite(weight).all(), key
    assert {stored.get(key).dtype for key in stored.names} == {torch.bfloat16}


@pytest.mark.usefixtures("in_this_process")
def test_the_smallest_base_is_trained_and_shipped_once_with_a_card(tmp_path):
    words = ["profile=smoke", "model.base.train=true", "model.base.knows=half", f"out={tmp_path / 'tiny-half'}"]
    folder, runs = tmp_path / "tiny-half", tmp_path / "runs"
    (plan,) = make_plans([make_point(runs, *words, program="ship_base")])
    assert ship([plan]) == [folder]
    assert all(part.is_complete() for part in plan.base_addresses)
    check_sizes(folder, plan.config.model.base.pretraining)
    card = (folder / "README.md").read_text()
    assert f"sha256 `{sha256_of(folder / 'model.safetensors')}`" in card and str(tmp_path) not in card
    assert "| habits | 4 | 8 |" in card and "images 320" in card and "knows half as much" in card
    assert "ship_base.py profile=smoke model.base.train=true model.base.knows=half out=FOLDER" in card
    assert {file.suffix for file in folder.iterdir()} == {".json", ".safetensors", ".md"}
    with pytest.raises(UserError, match="tiny-half is there already, and nothing is overwritten"):
        find_folder(plan)


@pytest.mark.usefixtures("in_this_process")
def test_the_smallest_clip_is_trained_and_shipped_with_a_card(tmp_path):
    folder, small = tmp_path / "clip-tiny", "model.base.learn={max_steps: 2, batch: 8}"
    words = ["benchmark=clip8_mini", "model=clip_tiny", "profile=smoke", "model.base.train=true", small]
    words += ["benchmark.corpus={labelled: 64, others: 16, held_out: 16}", f"out={folder}"]
    (plan,) = make_plans([make_point(tmp_path / "runs", *words, program="ship_base")])
    assert ship([plan]) == [folder]
    check_clip_sizes(folder, plan.config.model.base)
    card = (folder / "README.md").read_text()
    assert "| learn | 2 | 8 |" in card and "labelled 64, others 16" in card and "a linear probe" in card


def test_only_a_base_that_is_trained_here_is_shipped(checkpoint, tmp_path):
    with pytest.raises(UserError, match="add model.base.train=true"):
        find_folder(make_plan(tmp_path, f"model.checkpoint={checkpoint}"))
