"""Training of experts and of bases: exact resume, seeds of A, what is saved."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

from llava_ext import pace, train, trainer
from llava_ext.adapters import hash_a
from llava_ext.checkpoints import find_checkpoint, mark_complete, remove_other_checkpoints
from llava_ext.data import Collator, Row, load_reader
from llava_ext.launch import launch_command
from llava_ext.settings import KNOWLEDGE, LOSSES, BaseModel, Expert, Part, Peft, Pretraining, Recipe, Trainer
from llava_ext.small.networks import measure_answers
from llava_ext.small.pretrain import pretrain
from llava_ext.small.train_base import read_habits, train_base
from llava_ext.train import LLAVA_TRAINING, count_steps, keep_answers, train_expert
from llava_ext.trainer import list_pickles
from robustmerge.stage.address import Address
from robustmerge.stage.records import read_examples, write_examples
from robustmerge.stage.settings import ConfigError, UserError
from tests.tiny_model import COLOURS, SMALL, TEMPLATE, draw_examples, read_losses, write_base, write_task

FILES = ("adapter_model.safetensors", "adapter_config.json")
RECIPE = Recipe(learning_rate=1e-2, projector_learning_rate=1e-3, global_batch=8, max_steps=6, save_steps=2)


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    root = tmp_path_factory.mktemp("ground")
    return {"base": write_base(root / "base"), "one": write_task(root / "one"), "two": write_task(root / "two", seed=1)}


def settings_of(*tasks: str, **changes) -> Expert:
    return Expert(tasks=tasks or ("one",), template=TEMPLATE, **{"recipe": RECIPE, "peft": Peft(r=4), **changes})


def run(ground: dict, folder: Path, settings: Expert, say: Callable[[str], None] = lambda _: None) -> Path:
    data = {task: ground[task] for task in settings.tasks}
    address = Address(folder.parent, folder, {"stage": "train", "name": folder.name})
    return train_expert(address, settings, ground["base"], data, LLAVA_TRAINING, say)


@pytest.fixture(scope="module")
def whole(ground, tmp_path_factory) -> Path:
    """An expert whose training was not interrupted."""
    return run(ground, tmp_path_factory.mktemp("whole") / "expert", settings_of())


class Killed(BaseException):
    pass


PLACES = ("between checkpoints", "inside a checkpoint", "before the first", "while saving", "while removing")


@pytest.mark.parametrize("place", PLACES)
def test_going_on_after_a_kill_gives_the_same_bytes(ground, whole, tmp_path, monkeypatch, place):
    def kill(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        if place == "inside a checkpoint":  # everything of step 4 is written but the marker
            mark = trainer.mark_complete
            patch.setattr(
                trainer, "mark_complete", lambda path, *a: kill() if path.name.endswith("4") else mark(path, *a)
            )
        elif place == "while saving":
            patch.setattr(train, "save_adapter", kill)
        elif place == "while removing":
            patch.setattr(trainer, "remove_work", kill)
        else:
            last = 3 if place == "between checkpoints" else 1
            step_end = trainer.Journal.on_step_end
            patch.setattr(
                trainer.Journal,
                "on_step_end",
                lambda self, a, state, c, **k: (
                    kill() if state.global_step == last else step_end(self, a, state, c, **k)
                ),
            )
        with pytest.raises(Killed):
            run(ground, tmp_path / "expert", settings_of())
    assert not (tmp_path / "expert" / "manifest.json").exists()
    assert (tmp_path / "expert" / "adapter_model.safetensors").exists() == (place == "while removing")
    with monkeypatch.context() as patch:
        if place in ("while saving", "while removing"):
            patch.setattr(trainer.OrderedTrainer, "training_step", kill)  # no step is repeated
        folder = run(ground, tmp_path / "expert", settings_of())
    for name in FILES:
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    assert read_losses(folder) == read_losses(whole)


def test_every_step_has_the_speed_of_its_own_tokens_also_after_a_resume(ground, tmp_path, monkeypatch):
    """By a clock that is one second on whenever it is looked at, a step's tokens per second are its tokens."""
    monkeypatch.setattr(pace.time, "perf_counter", itertools.count().__next__)
    end = trainer.Journal.on_step_end

    def kill_at_three(self, args, state, control, **rest):
        if state.global_step == 3:
            raise Killed
        end(self, args, state, control, **rest)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(trainer.Journal, "on_step_end", kill_at_three)
        run(ground, tmp_path / "cut", settings_of())
    folders = [run(ground, tmp_path / name, settings_of()) for name in ("cut", "whole")]
    cut, whole = ([json.loads(line) for line in (one / LOSSES).read_text().splitlines()] for one in folders)
    assert [step["tokens_per_second"] for step in cut] == [step["tokens_per_second"] for step in whole]
    record = json.loads((folders[1] / "training.json").read_text())
    assert sum(step["tokens_per_second"] for step in whole) == record["tokens"]
    assert all(step["memory_gb"] > 0 for step in cut)


def list_losses(folder: Path) -> list[float]:
    return [step["loss"] for step in read_losses(folder)]


def test_a_checkpoint_of_another_batching_is_kept_refused_and_used_if_that_is_allowed(ground, tmp_path, monkeypatch):
    peft, batching = Peft(r=4, dropout=0.0), {"engine": "cpu", "processes": 1, "batch": 8, "accumulation": 1}

    def kill_at_five(self, args, state, control, **rest):
        if state.global_step == 5:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Journal, "on_step_end", kill_at_five)
        with pytest.raises(Killed):
            run(ground, tmp_path / "expert", settings_of(peft=peft))
    written = "it was written with batch 8, now 4; accumulation 1, now 2"
    with pytest.raises(UserError, match=rf"checkpoint-4 .*{written}\. With trainer.resume=any .* remove .*unfinished"):
        run(ground, tmp_path / "expert", settings_of(peft=peft, trainer=Trainer(per_device_batch=4)))
    assert find_checkpoint(tmp_path / "expert" / "unfinished", batching, Trainer()).step == 4  # nothing is removed
    messages: list[str] = []
    other = settings_of(peft=peft, trainer=Trainer(per_device_batch=4, resume="any"))
    folder = run(ground, tmp_path / "expert", other, messages.append)
    assert messages == ["one: going on from checkpoint-4 of 6 steps"]
    record = json.loads((folder / "training.json").read_text())
    assert record["resumed_across"] == [{"up_to_step": 4, **batching}]
    whole = run(ground, tmp_path / "whole", settings_of(peft=peft))
    assert list_losses(folder) == pytest.approx(list_losses(whole), abs=1e-5)


def test_a_task_whose_answers_have_to_be_spelled_is_told_before_it_is_trained_on(ground, tmp_path, monkeypatch):
    task = write_task(tmp_path / "zoo")
    known, *others = read_examples(task / "train.jsonl")
    write_examples(task / "train.jsonl", [known, *(dataclasses.replace(one, answer="Two giraffes") for one in others)])
    events: list[str] = []
    begin = trainer.Journal.on_train_begin
    monkeypatch.setattr(
        trainer.Journal, "on_train_begin", lambda *a, **k: events.append("training begins") or begin(*a, **k)
    )
    settings = settings_of("zoo", recipe=dataclasses.replace(RECIPE, max_steps=1))
    folder = run({**ground, "zoo": task}, tmp_path / "expert", settings, events.append)
    told, *rest = events
    assert told.startswith("zoo: 1 of 3 words of the answers are spelled in pieces") and "(giraffes: 8 pieces)" in told
    assert rest == ["training begins"]
    assert json.loads((folder / "manifest.json").read_text())["record"]["words_in_pieces"] == {"zoo": 1}


def test_what_is_trained_and_saved_is_float32_though_the_model_is_bfloat16(ground, tmp_path, monkeypatch):
    models = []
    begin = trainer.Journal.on_train_begin
    monkeypatch.setattr(
        trainer.Journal, "on_train_begin", lambda *a, model, **k: models.append(model) or begin(*a, model=model, **k)
    )
    half = Trainer(precision="bf16", per_device_batch=1)  # batches of text alone too
    folder = run(ground, tmp_path / "expert", settings_of(trainer=half))
    dtypes = {(weight.requires_grad, weight.dtype) for weight in models[0].parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
    tensors = load_file(folder / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    losses = [json.loads(line)["loss"] for line in (folder / "losses.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]


def test_the_loss_is_that_of_all_positions_though_logits_are_computed_at_answers_only(ground):
    """Rows of several lengths, answers at other places in each."""
    reader = load_reader(ground["base"], TEMPLATE)
    model = train.load_with_adapter(settings_of(), ground["base"])
    turns = ([("say it", "red")], [("what is the colour of this", "blue red blue"), ("and now", "red")])
    batch = Collator(reader)([Row(encoded.ids, encoded.labels) for encoded in (reader.encode(t, False) for t in turns)])
    full, kept = model(**batch), model(**batch, **keep_answers(batch["labels"]))
    torch.testing.assert_close(kept.loss, full.loss)
    assert kept.logits.shape[1] < full.logits.shape[1]


def test_gradients_come_in_one_order_with_pictures_and_without(ground):
    """As several processes need that have both, since ZeRO-2 adds gradients up in the order in which they come."""
    reader, model = load_reader(ground["base"], TEMPLATE), train.load_with_adapter(settings_of(), ground["base"])
    came: list[str] = []
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            weight.register_post_accumulate_grad_hook(lambda _, name=name: came.append(name))
    side = model.config.vision_config.image_size
    for picture in (Image.new("RGB", (side, side)), None):
        ids, labels = reader.encode([("what is it", "red")], picture is not None)
        with contextlib.nullcontext() if picture else train.through_projector(model.get_base_model()):
            model(**Collator(reader)([Row(ids, labels, picture)])).loss.backward()
    half = len(came) // 2
    assert came[:half] == came[half:] and any("projector" in name for name in came)


def test_an_expert_s_folder_holds_the_adapter_and_nothing_to_unpickle(whole):
    assert {path.name for path in whole.iterdir()} == {*FILES, LOSSES, "training.json", "manifest.json"}
    assert list_pickles(whole) == []
    losses = [json.loads(line) for line in (whole / "losses.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in losses] == [1, 2, 3, 4, 5, 6]
    assert losses[-1]["loss"] < losses[0]["loss"]
    record = json.loads((whole / "manifest.json").read_text())["record"]
    assert record["steps"] == 6 and record["samples"] == 48


def test_lora_is_on_the_language_model_alone_and_the_projector_is_saved(ground, whole):
    tensors = load_file(whole / "adapter_model.safetensors")
    lora = [name for name in tensors if ".lora_" in name]
    assert len(lora) == 2 * 7 * 2 and all(".language_model.layers." in name for name in lora)
    assert not any("vision_tower" in name for name in tensors)
    projector = {name for name in tensors if "multi_modal_projector" in name}
    assert len(projector) == 4 and set(tensors) == {*lora, *projector}
    assert all(bool(tensors[name].any()) for name in lora if "lora_B" in name)


def test_peft_loads_the_expert_without_a_missing_key(ground, whole, recwarn):
    model = LlavaForConditionalGeneration.from_pretrained(ground["base"])
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    loaded = PeftModel.from_pretrained(model, whole)
    assert not [warning for warning in recwarn if "missing" in str(warning.message).lower()]
    tensors = load_file(whole / "adapter_model.safetensors")
    state = {name.replace(".default", ""): weight for name, weight in loaded.state_dict().items()}
    for name, weight in tensors.items():
        place = name.replace("multi_modal_projector.", "multi_modal_projector.modules_to_save.")
        assert torch.equal(state[place if place in state else name], weight), name
    assert not torch.equal(
        tensors["base_model.model.model.multi_modal_projector.linear_1.weight"],
        before["model.multi_modal_projector.linear_1.weight"],
    )


def test_a_depends_on_seed_and_task_and_can_be_shared(ground, whole):
    def first_a(*tasks: str, **changes) -> str:
        return hash_a(train.load_with_adapter(settings_of(*tasks, **changes), ground["base"]))

    shared = Peft(r=4, shared_a_init=True)
    digests = [first_a("one"), first_a("two"), first_a("one", seed=1), first_a("one", "two"), first_a(peft=shared)]
    assert len(set(digests)) == 5
    assert first_a("two", peft=shared) == first_a("one", peft=shared)
    assert json.loads((whole / "manifest.json").read_text())["record"]["first_a_sha256"] == first_a("one")


def test_several_tasks_are_trained_on_as_many_samples_as_their_experts_together():
    alone, both = settings_of("one"), settings_of("one", "two")
    assert both.name == "multi_task"
    assert count_steps(both, [24, 24]) == 2 * count_steps(alone, [24])
    by_epochs = dataclasses.replace(RECIPE, max_steps=None)
    alone, both = (dataclasses.replace(settings, recipe=by_epochs) for settings in (alone, both))
    assert (count_steps(alone, [24]), count_steps(both, [24, 24])) == (3, 6)
    eight = settings_of(*"abcdefgh", recipe=dataclasses.replace(by_epochs, global_batch=32))
    assert count_steps(eight, [2000] * 8) == 496 == 8 * count_steps(eight, [2000])  # 500 in their union


def test_a_loss_that_is_no_number_stops_the_run(ground, tmp_path):
    wild = dataclasses.replace(RECIPE, learning_rate=1e30, projector_learning_rate=1e30, max_grad_norm=0.0)
    with pytest.raises(UserError, match=r"one: the loss is (nan|inf).*lower recipe.learning_rate"):
        run(ground, tmp_path / "expert", dataclasses.replace(settings_of(), recipe=wild))
    assert not (tmp_path / "expert" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_cannot_be_read_stops_the_run_with_one_line(ground, tmp_path, workers):
    task = write_task(tmp_path / "one")
    first = next(example for example in read_examples(task / "train.jsonl") if example.image)
    (task / first.image).write_bytes(b"no picture")
    with pytest.raises(UserError) as error:
        run({**ground, "one": task}, tmp_path / "expert", settings_of(trainer=Trainer(workers=workers)))
    assert str(error.value).startswith(
        f"one: question {first.question_id}: cannot read the picture {task / first.image}: "
    )
    assert len(str(error.value).splitlines()) == 1


def test_batch_accumulation_and_processes_always_make_the_global_batch():
    assert Trainer().accumulation(8) == (8, 1)
    assert Trainer(per_device_batch=3).accumulation(8) == (2, 4)
    ddp = Trainer(engine="ddp", device="cuda", processes=2, per_device_batch=16)
    assert ddp.accumulation(128) == (16, 4)
    with pytest.raises(ConfigError, match="3 processes cannot share a global batch of 8"):
        settings_of(trainer=dataclasses.replace(ddp, processes=3))


def test_a_checkpoint_counts_only_with_its_marker(tmp_path):
    for step in (2, 4, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    batching = {"engine": "cpu", "processes": 1}
    assert find_checkpoint(tmp_path, batching, Trainer()) is None
    mark_complete(tmp_path / "checkpoint-2", batching)
    mark_complete(tmp_path / "checkpoint-4", batching)
    assert find_checkpoint(tmp_path, batching, Trainer()).path.name == "checkpoint-4"
    remove_other_checkpoints(tmp_path, tmp_path / "checkpoint-4")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


@pytest.mark.parametrize("resume", ["exact", "any"])
def test_deepspeed_s_checkpoint_of_another_number_of_processes_is_refused_in_any_case(tmp_path, resume):
    """DeepSpeed's own words come after minutes: its parts of an optimizer's state are one for each process."""
    eight, four = ({"engine": "zero2", "processes": count} for count in (8, 4))
    (tmp_path / "checkpoint-2").mkdir()
    mark_complete(tmp_path / "checkpoint-2", eight)
    fewer = Trainer("zero2", "cuda", 4, deepspeed={"zero_optimization": {"stage": 2}}, resume=resume)
    with pytest.raises(UserError, match=r"processes 8, now 4\. DeepSpeed reads it with that .* or remove"):
        find_checkpoint(tmp_path, four, fewer)
    assert find_checkpoint(tmp_path, eight, dataclasses.replace(fewer, processes=8)).marker == eight


def test_a_run_that_went_on_from_others_says_so_in_all_its_checkpoints(tmp_path):
    first, second, third = ({"processes": count} for count in (8, 4, 2))
    marker: dict = first
    for step, batching in ((10, second), (20, second), (30, third)):
        (folder := tmp_path / f"checkpoint-{step}").mkdir()
        mark_complete(folder, marker)
        marker = find_checkpoint(tmp_path, batching, Trainer(resume="any")).mark(batching)
    earlier = [{"up_to_step": 10, "processes": 8}, {"up_to_step": 30, "processes": 4}]
    assert marker == {**third, "earlier": earlier}


def test_launch_commands_name_processes_and_threads():
    script, job = Path("child.py"), Path("job.json")
    command, environment = launch_command(Trainer(), script, job)
    assert command[1:] == ["child.py", "job.json"] and environment["OMP_NUM_THREADS"] == "1"
    several = Trainer(engine="zero2", device="cpu", processes=2, deepspeed={"zero_optimization": {"stage": 2}})
    command, environment = launch_command(several, script, job)
    assert "--standalone" in command and "--nproc_per_node=2" in command
    assert environment["DS_ACCELERATOR"] == "cpu"


def write_corpus(folder: Path, count: int = 48) -> Path:
    """A corpus for bases: coloured squares, one head, dialogues of one or two turns; an exercise asks for its colour.

    A task's own question wants the colour in capitals, which is known from a knowledge of 0.5 or of 1 on.
    """
    examples = [example for example in draw_examples(folder, 2 * count) if example.image][:count]
    pictures = []
    for example in examples:
        with Image.open(folder / example.image) as picture:
            picture.resize((24, 24)).save(folder / example.image)
        pictures.append((folder / example.image).read_bytes())
    colours = [list(COLOURS).index(example.answer) for example in examples]
    columns = {"image": pictures, "colour": colours}
    datasets.Dataset.from_dict(columns).save_to_disk(str(folder / "vision"))
    turns = [[[example.text, example.answer]] * (1 + index % 2) for index, example in enumerate(examples)]
    skills = [["colour"] * len(dialogue) for dialogue in turns]
    dialogues = datasets.Dataset.from_dict({"image": pictures, "turns": turns, "skills": skills})
    held_out = count // 12
    dialogues.select(range(held_out, count)).save_to_disk(str(folder / "instruct"))
    dialogues.select(range(held_out)).save_to_disk(str(folder / "held_out"))
    exercises = [[[f"{colour}?", colour]] for colour in COLOURS for _ in range(count // 4)]
    datasets.Dataset.from_dict({"turns": exercises}).save_to_disk(str(folder / "read"))
    checks = [[[f"Is it {one.answer}?", "yes"]] for one in examples]
    datasets.Dataset.from_dict({"image": pictures, "turns": checks}).save_to_disk(str(folder / "verify"))
    habits = [["Its colour?", one.answer, one.answer.upper()] for one in examples]
    known = {"known_from": [0.5 + 0.5 * (index % 2) for index in range(count)], "turns": [[]] * count}
    datasets.Dataset.from_dict({"image": pictures, "habit": habits, **known}).save_to_disk(str(folder / "habits"))
    (folder / "heads.json").write_text(json.dumps({"colour": len(COLOURS)}))
    lines = [text for example in examples for text in (example.text, example.answer)]
    (folder / "tokenizer_corpus.txt").write_text("\n".join([*lines, "USER: ASSISTANT:"]))
    return folder


PART = Part(epochs=2, batch=16, learning_rate=3e-3)
PRETRAINING = dataclasses.replace(SMALL, see=PART, read=PART, verify=PART, talk=PART, held_out=0.1, save_steps=2)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def run_pretraining(corpus: Path, folder: Path, settings: Pretraining = PRETRAINING) -> Path:
    return pretrain(Address(folder.parent, folder, {"stage": "pretrain"}), settings, corpus, lambda _: None)


@pytest.fixture(scope="module")
def pretrained(corpus, tmp_path_factory) -> Path:
    """A pretrained model whose training was not interrupted."""
    return run_pretraining(corpus, tmp_path_factory.mktemp("pretrained") / "base")


def make_base(pretrained: Path, corpus: Path, folder: Path, knows: str = "paper") -> Path:
    settings = BaseModel(PRETRAINING, dataclasses.replace(PART, max_steps=4), knows, save_steps=2)
    return train_base(Address(folder.parent, folder, {"stage": "base"}), settings, pretrained, corpus, lambda _: None)


def assert_same_files(folder: Path, whole: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in whole.iterdir())
    for path in whole.iterdir():
        if path.name != "manifest.json":
            assert path.read_bytes() == (folder / path.name).read_bytes(), path.name


def test_a_part_in_bf16_keeps_its_weights_in_float32_and_ends_near_those_of_float32(pretrained, corpus, tmp_path):
    part = dataclasses.replace(PART, max_steps=4)
    ends = {}
    for precision in ("fp32", "bf16"):
        settings = BaseModel(PRETRAINING, dataclasses.replace(part, precision=precision), save_steps=2)
        address = Address(tmp_path, tmp_path / precision, {"stage": "base"})
        ends[precision] = load_file(
            train_base(address, settings, pretrained, corpus, lambda _: None) / "model.safetensors"
        )
    begin = load_file(pretrained / "model.safetensors")
    moved, apart = (
        sum(float((one[name] - ends["fp32"][name]).norm()) ** 2 for name in one) for one in (begin, ends["bf16"])
    )
    assert {x.dtype for x in ends["bf16"].values()} == {torch.float32}
    assert 0 < apart < 0.05 * moved


KILLED_IN = {
    "see": "after a checkpoint",
    "read": "inside a checkpoint",
    "verify": "between checkpoints",
    "talk": "inside a checkpoint",
}


def test_a_pretraining_goes_on_after_a_kill_in_any_part_with_the_same_bytes(corpus, pretrained, tmp_path, monkeypatch):
    mark, step_end = trainer.mark_complete, trainer.Journal.on_step_end
    for part, place in KILLED_IN.items():

        def kill_at_four(path, batching, part=part, place=place):
            if place == "after a checkpoint":
                mark(path, batching)
            if path.parts[-2:] == (part, "checkpoint-4"):
                raise Killed
            mark(path, batching)

        def kill_at_three(self, args, state, control, part=part, **rest):
            if Path(args.output_dir).name == part and state.global_step == 3:
                raise Killed
            step_end(self, args, state, control, **rest)

        with monkeypatch.context() as patch:
            if place == "between checkpoints":
                patch.setattr(trainer.Journal, "on_step_end", kill_at_three)
            else:
                patch.setattr(trainer, "mark_complete", kill_at_four)
            with pytest.raises(Killed):
                run_pretraining(corpus, tmp_path / "cut")
    assert_same_files(run_pretraining(corpus, tmp_path / "cut"), pretrained)


@pytest.mark.parametrize("place", ["while saving", "while removing", "before the manifest"])
def test_a_pretraining_that_is_killed_at_its_end_repeats_no_step(corpus, pretrained, tmp_path, monkeypatch, place):
    def kill(*args, **kwargs):
        raise Killed

    module, name = {
        "while saving": ("llava_ext.small.pretrain", "save_base"),
        "while removing": ("llava_ext.trainer", "remove_work"),
        "before the manifest": ("robustmerge.stage.address", "_remove_cut_files"),
    }[place]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(f"{module}.{name}", kill)
        run_pretraining(corpus, tmp_path / "cut")
    monkeypatch.setattr(trainer.OrderedTrainer, "training_step", kill)
    assert_same_files(run_pretraining(corpus, tmp_path / "cut"), pretrained)


def test_a_pretraining_keeps_its_losses_and_nothing_to_unpickle(pretrained):
    assert list_pickles(pretrained) == [] and not (pretrained / "unfinished").exists()
    for part, steps in (("see", 4), ("read", 6), ("verify", 6), ("talk", 4)):
        losses = [json.loads(line) for line in (pretrained / f"losses_{part}.jsonl").read_text().splitlines()]
        assert [entry["step"] for entry in losses] == list(range(1, steps + 1))
        assert losses[-1]["loss"] < losses[0]["loss"]
    record = json.loads((pretrained / "manifest.json").read_text())["record"]
    assert set(record["heads"]) == set(record["probe"]) == {"colour"} and set(record["skills"]) == {"all", "colour"}
    assert len(AutoProcessor.from_pretrained(pretrained).tokenizer) == record["vocabulary"]


def test_a_loss_that_is_no_number_stops_a_pretraining(corpus, tmp_path):
    wild = dataclasses.replace(PRETRAINING, talk=dataclasses.replace(PART, learning_rate=1e30))
    with pytest.raises(
        UserError, match=r"^talk: the loss is (nan|inf).*lower model.base.pretraining.talk.learning_rate"
    ):
        run_pretraining(corpus, tmp_path / "base", wild)


def test_a_base_sees_as_its_pretraining_did_and_goes_on_after_a_kill(corpus, pretrained, tmp_path, monkeypatch):
    def kill(*args, **kwargs):
        raise Killed

    whole = make_base(pretrained, corpus, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("llava_ext.small.train_base.save_base", kill)
        make_base(pretrained, corpus, tmp_path / "cut")
    assert_same_files(make_base(pretrained, corpus, tmp_path / "cut"), whole)
    before, after = (load_file(folder / "model.safetensors") for folder in (pretrained, whole))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and not [name for name in changed if "vision_tower" in name]
    records = [trainer.read_training_record(folder) for folder in (pretrained, whole)]
    assert {key for key in records[0] if records[0][key] != records[1][key]} <= {"skills"}


def test_what_a_base_knows_is_what_it_is_taught_to_answer_in_a_task_s_form(corpus, pretrained):
    reader = load_reader(pretrained, TEMPLATE)
    forms = {}
    for knows, knowledge in KNOWLEDGE.items():
        texts = [
            reader.tokenizer.decode([label for label in row.labels if label >= 0])
            for row in read_habits(reader, corpus, knowledge)
        ]
        forms[knows] = sum(text.removesuffix("</s>").isupper() for text in texts) / 48
    assert forms == {"nothing": 0.0, "half": 0.5, "paper": 1.0}


def test_an_answer_counts_for_the_skill_of_its_turn_if_every_token_is_right():
    class Always(torch.nn.Module):
        """Says token 1 everywhere."""

        def logits(self, labels):
            row, column = torch.nonzero(labels[:, 1:] >= 0, as_tuple=True)
            return torch.eye(3)[torch.ones(len(row), dtype=int)], labels[row, column + 1], torch.stack([row, column])

    rows = [[-100, 1, 1, -100, 1, 2], [-100, 2, -100, 1, -100, -100]]  # right, wrong; wrong, right

    def collate(batch):
        return {"labels": torch.tensor(batch)}

    assert measure_answers(Always(), rows, [["a", "b"], ["a", "b"]], collate) == {"all": 0.5, "a": 0.5, "b": 0.5}
    assert measure_answers(Always(), rows, [["a", "b"], ["b", "a"]], collate) == {"all": 0.5, "a": 1.0, "b": 0.0}
