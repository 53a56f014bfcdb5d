"""General benchmarks: the exported model, lmms-eval's command, its files as scores."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tokenizers.processors import TemplateProcessing
from transformers import AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration

from eval.aggregates import AGGREGATES
from eval.general import COGNITION, LMMS_EVAL, GeneralRun, Told, find_results, read_told, score_told
from eval.general_tables import GeneralRow, general_notes, general_table, published_general
from eval.statistics import sums_of
from llava_ext.conversation import TEMPLATES, render
from llava_ext.data import load_reader, prompt_ids
from llava_ext.exporting import chat_template, set_processor
from llava_ext.generate import Generator
from robustmerge.adapter import open_adapter
from robustmerge.exporting import export_model
from robustmerge.method import Out
from robustmerge.runs import REPOSITORY, UserError, foreign
from robustmerge.settings import ConfigError
from scripts import general_run
from scripts.general_line import ask_general, find_scores
from scripts.general_run import DTYPES, LOCK, find_environment, lmms_arguments
from scripts.program import compose
from scripts.sources import source_of_folder
from tests.test_delta_sources import save_llava_expert
from tests.test_outputs import copy_out
from tests.tiny_model import TEMPLATE, draw_examples, write_base

GOLDEN = REPOSITORY / "tests" / "golden" / "general"
LIMITS = {"pope": 12, "mme": 16, "mmbench": 16}
TASKS = {name: f"{name}_local" for name in LIMITS}


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A base, an expert as adapter and as deltas, and questions with and without pictures, square or not."""
    root = tmp_path_factory.mktemp("ground")
    base = write_base(root / "base")
    expert = save_llava_expert(root / "expert", base)
    delta = copy_out(root / "delta", Out(format="delta"), open_adapter(expert), base)
    return root, {"base": base, "adapter": expert, "delta": delta}, draw_examples(root, 8, seed=5)


def ask_as_others_do(folder: Path, examples: list, root: Path) -> list[str]:
    """Answers of a model folder by its own processor and chat template, one question at a time, as lmms-eval asks."""
    model, processor = LlavaForConditionalGeneration.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    answers = []
    for example in examples:
        image = [{"type": "image", "url": "picture"}] if example.image else []
        messages = [{"role": "user", "content": [*image, {"type": "text", "text": example.text}]}]
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        pictures = [Image.open(root / example.image)] if example.image else None
        inputs = processor(images=pictures, text=text, return_tensors="pt")
        found = model.generate(**inputs, do_sample=False, max_new_tokens=8)
        answers.append(processor.tokenizer.decode(found[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return [answer.strip() for answer in answers]


@pytest.mark.parametrize("kind", ["base", "adapter", "delta"])
def test_an_exported_source_answers_others_as_it_answers_us(ground, tmp_path, kind):
    root, sources, examples = ground
    folder, source = tmp_path / "model", None if kind == "base" else sources[kind]
    export_model(sources["base"], source, folder)
    set_processor(folder, TEMPLATE, "pad")
    generate = Generator(sources["base"], TEMPLATE)
    alone = generate(examples, root, 8)
    generate.use(source)
    ours = generate(examples, root, 8)
    assert ask_as_others_do(folder, examples, root) == ours
    assert (ours == alone) == (kind == "base")
    assert (folder / "model.safetensors").is_symlink() == (kind == "base")


@pytest.mark.parametrize("image", ["pad", "crop"])
def test_tokens_and_pixels_of_an_exported_folder_are_ours(ground, tmp_path, image):
    root, sources, examples = ground
    export_model(sources["base"], None, tmp_path)
    set_processor(tmp_path, TEMPLATE, image)
    reader, processor = load_reader(sources["base"], TEMPLATE), AutoProcessor.from_pretrained(tmp_path)
    for example in (example for example in examples if example.image):
        picture = Image.open(root / example.image)
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": example.text}]}]
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        found = processor(images=[picture], text=text, return_tensors="pt")
        assert found["input_ids"][0].tolist() == prompt_ids(reader, example)
        pixels = reader.pixels if image == "pad" else reader.cropped
        assert torch.equal(found["pixel_values"], pixels([picture]))


def test_older_files_of_a_published_folder_do_not_outlive_its_export(ground, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(ground[1]["base"], base)
    told = json.loads((base / "processor_config.json").read_text())
    images = {**told.pop("image_processor"), "do_pad": False}
    (base / "processor_config.json").write_text(json.dumps(told))
    (base / "preprocessor_config.json").write_text(json.dumps(images))
    (base / "chat_template.json").write_text(json.dumps({"chat_template": "nothing of the question"}))
    export_model(base, None, tmp_path / "model")
    set_processor(tmp_path / "model", TEMPLATE, "pad")
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    assert processor.image_processor.do_pad and "USER" in processor.chat_template
    assert {"chat_template.json", "preprocessor_config.json"}.isdisjoint(
        file.name for file in (tmp_path / "model").iterdir()
    )
    assert (base / "preprocessor_config.json").exists()


def test_the_first_token_is_written_once_whoever_writes_it(ground):
    tokenizer = AutoTokenizer.from_pretrained(ground[1]["base"])
    for adds in (False, True):
        if adds:
            begin = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
            tokenizer.backend_tokenizer.post_processor = begin
        tokenizer.chat_template = chat_template(TEMPLATE, tokenizer)
        asked = [{"role": "user", "content": "Colour?"}]
        text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        assert tokenizer(text)["input_ids"].count(tokenizer.bos_token_id) == 1


def test_a_name_of_an_image_mode_or_template_that_is_none_is_refused(ground, tmp_path):
    export_model(ground[1]["base"], None, tmp_path)
    for template, image in (("vicuna_v2", "pad"), (TEMPLATE, "stretch")):
        with pytest.raises(UserError, match="unknown"):
            set_processor(tmp_path, template, image)


@pytest.fixture(scope="module")
def tokenizer(ground):
    return AutoTokenizer.from_pretrained(ground[1]["base"])


@given(questions=st.lists(st.text(), min_size=1, max_size=3), template=st.sampled_from(sorted(TEMPLATES)))
def test_the_chat_template_says_what_our_template_says_for_either_form_of_messages(tokenizer, questions, template):
    tokenizer.chat_template = chat_template(template, tokenizer)
    turns = [(question, "yes") for question in questions[:-1]] + [(questions[-1], None)]
    wanted = "<s>" + render(template, turns, image=True)
    for as_parts in (False, True):
        messages = []
        for index, (question, answer) in enumerate(turns):
            parts = [{"type": "text", "text": question}]
            whole = question if index else f"<image>\n{question}"
            parts = parts if index else [{"type": "image"}, *parts]
            messages.append({"role": "user", "content": parts if as_parts else whole})
            if answer is not None:
                messages.append({"role": "assistant", "content": answer})
        assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == wanted


def lay_out(folder: Path, name: str) -> Path:
    """The recorded files of a task, under the names that lmms-eval gives them."""
    place = folder / "mini__model"
    place.mkdir(parents=True)
    shutil.copy(GOLDEN / "recorded" / f"{name}_results.json", place / "20261123_081151_results.json")
    samples = place / f"20261123_081151_samples_{TASKS[name]}.jsonl"
    shutil.copy(GOLDEN / "recorded" / f"{name}_samples.jsonl", samples)
    return folder


def read(folder: Path, name: str, limit: int | None = None, n_failed: int = 0):
    run = GeneralRun(TASKS[name], TEMPLATE, limit=limit or LIMITS[name])
    return score_told(read_told(*find_results(folder, run.task), run), run, n_failed)


@pytest.mark.parametrize(("name", "value", "parts"), [
    ("pope", 600 / 7, {"accuracy": 250 / 3, "said_yes": 200 / 3, "recall": 100.0, "precision": 75.0}),
    ("mme", 125.0, {"cognition": 162.5, "color": 125.0, "commonsense_reasoning": 162.5}),
    ("mmbench", 0.0, {}),
])  # fmt: skip
def test_recorded_files_become_the_scores_that_lmms_eval_gave(tmp_path, name, value, parts):
    score = read(lay_out(tmp_path, name), name)
    assert score.value == pytest.approx(value) and score.n_expected == LIMITS[name] and score.n_asked in (36, 80)
    assert {key: score.parts[key] for key in parts} == pytest.approx(parts)
    if score.values:
        assert 100 * AGGREGATES[score.aggregate](sums_of(score)) == pytest.approx(score.value)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_files_that_are_not_whole_or_not_of_this_run_are_refused(tmp_path):
    def broken(change, match: str, limit: int | None = None, n_failed: int = 0) -> None:
        folder = lay_out(tmp_path / match[:12].replace(" ", "_"), "pope")
        (results,), (samples,) = folder.rglob("*_results.json"), folder.rglob("*.jsonl")
        change(results, samples)
        with pytest.raises(UserError, match=match):
            read(folder, "pope", limit, n_failed)

    broken(lambda results, _: results.unlink(), "wrote no results")
    broken(lambda results, _: shutil.copy(results, results.with_name("20261124_000000_results.json")), "several runs")
    broken(
        lambda results, _: edit(results, '"pope_local": {', '"other": {'), "no task 'pope_local'; choose one of other"
    )
    broken(lambda results, _: results.write_text("{}"), "another version")
    broken(lambda results, _: edit(results, '"n-samples"', '"samples"'), "files of another version")
    broken(lambda results, _: edit(results, "LlavaHf (chat)", "LlavaHf (simple)"), "the model class")
    broken(lambda _, samples: samples.unlink(), "wrote no answers")
    broken(lambda _, samples: edit(samples, '"doc_id": 3,', '"doc_id": 2,'), "12 answers to 11 questions")
    broken(lambda _, samples: edit(samples, '"prediction": "no"', '"prediction": "yes"'), "is .* by its answers")
    broken(lambda *_: None, "and 20 of 80 were to be asked", limit=20)
    broken(lambda *_: None, "1 failed answers, and 0 are empty", n_failed=1)


ANSWERS = st.sampled_from(("yes", "no", "maybe", ""))


@given(st.lists(st.tuples(ANSWERS, st.booleans()), min_size=1, max_size=20))
def test_pope_counts_every_answer_and_its_f1_follows_from_sums(pairs):
    pairs = [(said, "yes" if gold else "no") for said, gold in pairs]
    tp, fp = (sum(pair == ("yes", gold) for pair in pairs) for gold in ("yes", "no"))
    fn, right = sum(pair == ("no", "yes") for pair in pairs), sum(said == gold for said, gold in pairs)
    precision, recall = (tp / whole if whole else 0 for whole in (tp + fp, tp + fn))
    f1 = 2 * precision * recall / (precision + recall) if tp else 0
    figures = {"pope_accuracy": right / len(pairs), "pope_precision": precision, "pope_recall": recall}
    samples = [
        {"doc_id": i, "filtered_resps": [said], "pope_accuracy": {"prediction": said, "ground_truth": gold}}
        for i, (said, gold) in enumerate(pairs)
    ]
    n = len(pairs)
    score = score_told(Told({**figures, "pope_f1_score": f1}, samples, n, n), GeneralRun("pope", TEMPLATE))
    assert score.n_scored + score.n_empty + score.n_unparsed == score.n_expected == n
    assert score.value == pytest.approx(100 * f1) and score.parts["f1_of_all"] <= score.value + 1e-9
    assert 100 * AGGREGATES["f1"](sums_of(score)) == pytest.approx(score.value)


@given(st.dictionaries(st.sampled_from(("color", "count", "OCR", COGNITION[0])), st.lists(
    st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=4), min_size=1))  # fmt: skip
def test_mme_adds_its_categories_and_a_perfect_one_has_200_points(pictures):
    rows = [(c, f"{i}.png", right) for c, pairs in pictures.items() for i, pair in enumerate(pairs) for right in pair]
    points = {c: sum(50 * sum(p) + 100 * all(p) for p in pairs) / len(pairs) for c, pairs in pictures.items()}
    perception = sum(value for category, value in points.items() if category not in COGNITION)
    figures = {"mme_perception_score": perception, "mme_cognition_score": points.get(COGNITION[0], 0.0)}
    samples = [
        {
            "doc_id": i,
            "filtered_resps": ["yes"],
            f"mme_{'cognition' if c in COGNITION else 'perception'}_score": {
                "category": c, "question_id": picture, "score": float(right)
            },
        }
        for i, (c, picture, right) in enumerate(rows)
    ]  # fmt: skip
    score = score_told(Told(figures, samples, len(rows), len(rows)), GeneralRun("mme", TEMPLATE))
    assert score.value == pytest.approx(perception) and {c: score.parts[c] for c in points} == pytest.approx(points)
    assert all(points[c] == 200 for c, pairs in pictures.items() if all(all(pair) for pair in pairs))
    if score.values:
        assert 100 * AGGREGATES[score.aggregate](sums_of(score)) == pytest.approx(score.value)


def test_a_task_of_no_known_family_has_no_value_and_keeps_lmms_evals_figures():
    told = Told({"gqa_exact_match": 0.5}, [{"doc_id": 0, "filtered_resps": "a"}], 1, 1)
    score = score_told(told, GeneralRun("gqa", TEMPLATE))
    assert score.value is None and score.reason and score.parts == {"gqa_exact_match": 0.5}
    assert general_table([GeneralRow("x", "merged", {"gqa": score})]).rows[0].cells[0].value is None


def test_the_tables_show_both_figures_of_pope_and_keep_the_papers_apart(tmp_path):
    rows = [
        GeneralRow(name, "merged", {TASKS[name]: read(lay_out(tmp_path / name, name), name)})
        for name in ("pope", "mme")
    ]
    table = general_table(rows)
    assert [column.title for column in table.columns] == ["pope_local F1", "pope_local accuracy", "mme_local"]
    f1, accuracy, mme = table.rows[0].cells
    assert f1.low < f1.value < f1.high and accuracy.value == pytest.approx(250 / 3) and mme.value is None
    notes = general_notes(rows)
    assert "12 of 80 questions: a look" in notes[0] and any("does not say" in note for note in notes)
    published = published_general(REPOSITORY / "results" / "paper.yaml", {"ties": "TIES"})
    assert {row.title for row in published.rows} > {"TIES", "robustmerge"}
    assert all("published" in column.title for column in published.columns)
    assert general_table([]) is None


def test_the_command_names_one_task_one_model_and_one_device():
    run = GeneralRun("pope", TEMPLATE, precision="fp16", limit=4)
    words = lmms_arguments(run, Path("/m"), Path("/o"), Path("/i"), "cuda", 1)
    model = "pretrained=/m,dtype=float16,device=cuda,device_map=cuda"
    assert words == [
        "--model", "llava_hf", "--model_args", model, "--tasks", "pope", "--batch_size", "1", "--output_path", "/o",
        "--log_samples", "--include_path", "/i", "--limit", "4",
    ]  # fmt: skip
    several = lmms_arguments(GeneralRun("pope", TEMPLATE), Path("/m"), Path("/o"), None, "cuda", 4)
    assert several[3] == "pretrained=/m,dtype=float32,device=cuda" and "--limit" not in several
    command, _ = general_run.launch_lmms(Path("/e/bin/python"), "cuda", 4)(Path("child"), Path("/j.json"), 0)
    assert command[1:5] == ["-m", "accelerate.commands.launch", "--num_processes", "4"]
    with pytest.raises(UserError, match="in its path"):
        lmms_arguments(run, Path("/a=b"), Path("/o"), None, "cpu", 1)
    assert set(DTYPES) == {"fp32", "fp16", "bf16"}


@pytest.mark.parametrize("wrong", [{"task": "a b"}, {"task": "mmbench_en_dev"}, {"task": "mme", "limit": 3}])
def test_a_task_that_cannot_be_asked_is_refused(wrong):
    with pytest.raises(ConfigError):
        GeneralRun(**{"task": "pope", "template": TEMPLATE, **wrong})


FAKE = """
import json, shutil, sys
from pathlib import Path
if sys.argv[1] == "-c":
    print({version!r})
    sys.exit()
said = json.loads(Path(sys.argv[2]).read_text())["items"][0]["arguments"]
model = Path(said[said.index("--model_args") + 1].split(",")[0].removeprefix("pretrained="))
assert (model / "config.json").exists() and (model / "chat_template.jinja").exists()
if Path({recorded!r}).exists():
    shutil.copytree({recorded!r}, said[said.index("--output_path") + 1])
else:
    print("ERROR | Error during evaluation: nothing came of it. Please")  # and status 0, as lmms-eval has it
"""


def fake_environment(folder: Path, version: str, recorded: Path) -> Path:
    """What stands for a virtual environment with lmms-eval: it leaves the recorded files, if they are there."""
    (folder / "bin").mkdir(parents=True)
    (folder / "fake.py").write_text(FAKE.format(version=version, recorded=str(recorded)))
    (folder / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{folder}/fake.py" "$@"\n')
    (folder / "bin" / "python").chmod(0o755)
    return folder


@pytest.fixture
def ask(ground, tmp_path, capsys):
    """Type general.py for the expert and give back what it printed; without an environment, and recorded, at first."""
    base, expert = ground[1]["base"], ground[1]["adapter"]
    words = [
        "model.base=null", f"+model.checkpoint={base}", f"source={expert}", "logger=none",
        "tasks_general=[pope_local]", f"include={GOLDEN / 'pope_local'}", f"paths.runs={tmp_path / 'runs'}",
        f"environment={tmp_path / 'venv'}",
    ]  # fmt: skip

    def type_it(*more: str) -> str:
        ask_general([compose("general", [*words, *more])])
        return capsys.readouterr().out

    return type_it


def test_a_source_is_exported_asked_and_shown_once(ground, ask, tmp_path):
    environment = fake_environment(tmp_path / "venv", LMMS_EVAL, tmp_path / "recorded")
    with pytest.raises(UserError, match="nothing came of it"):
        ask()
    (results,) = lay_out(tmp_path / "recorded", "pope").rglob("*_results.json")
    edit(results, '"original": 80', '"original": 12')  # all its questions were asked
    printed = ask()
    assert "85.7" in printed and "a look" not in printed and "(published)" in printed
    (place,) = (tmp_path / "runs" / "mini-tiny" / "general" / "adapter").iterdir()
    (done,) = place.glob("*/score.json")
    kept = {"log.txt", "manifest.json", "results.json", "samples.jsonl", "score.json"}
    assert {file.name for file in done.parent.iterdir()} == kept and not list(place.glob("checkpoint-*"))
    assert json.loads((done.parent / "manifest.json").read_text())["identity"]["inputs"].keys() == {
        "base", "include", "source"
    }  # fmt: skip
    shutil.rmtree(environment)
    assert ask() in printed  # nothing is asked again
    with pytest.raises(UserError, match="no virtual environment"):
        ask("image=crop")
    source, root = source_of_folder(foreign(ground[1]["adapter"]), ()), tmp_path / "runs" / "mini-tiny"
    assert list(find_scores(root, source, GeneralRun("any", TEMPLATE))) == ["pope_local"]
    assert list(find_scores(root, source, GeneralRun("any", TEMPLATE, "crop"))) == ["pope_local (image=pad)"]


def test_a_look_is_not_a_result_and_a_checkpoint_may_stay(ground, ask, tmp_path):
    fake_environment(tmp_path / "venv", LMMS_EVAL, lay_out(tmp_path / "recorded", "pope"))
    assert "12 of 80 questions: a look" in ask("limit=12", "keep_checkpoint=true")
    root = tmp_path / "runs" / "mini-tiny"
    assert list(root.glob("general/adapter/*/checkpoint-*/model.safetensors"))
    assert find_scores(root, source_of_folder(foreign(ground[1]["adapter"]), ()), GeneralRun("any", TEMPLATE)) == {}


@pytest.mark.parametrize(
    "wrong", ["tasks_general=[]", "tasks_general=[a,a]", "include=nowhere", "image=cut", "ids=[1]"]
)
def test_what_cannot_be_asked_for_is_refused_before_anything_is_made(ask, tmp_path, wrong):
    with pytest.raises(UserError, match=wrong.partition("=")[0].replace("image", "image mode")):
        ask(wrong)
    assert not (tmp_path / "runs").exists()


def test_an_environment_without_the_pinned_version_is_refused(tmp_path):
    with pytest.raises(UserError, match="no virtual environment"):
        find_environment(str(tmp_path))
    other = fake_environment(tmp_path / "other", "0.6.0", tmp_path)
    with pytest.raises(UserError, match=r"has lmms-eval 0\.6\.0"):
        find_environment(str(other))
    assert find_environment(str(fake_environment(tmp_path / "right", LMMS_EVAL, tmp_path))).name == "python"


def test_the_lock_file_pins_public_versions_and_the_lmms_eval_that_is_read():
    locked = [line for line in LOCK.read_text().splitlines() if not line.startswith("#")]
    assert f"lmms_eval=={LMMS_EVAL}" in locked and len(locked) > 100
    assert not [line for line in locked if "==" not in line or "+" in line or "nvidia" in line]


def test_our_environment_is_made_once(tmp_path, monkeypatch):
    typed, said = [], []

    def fake_run(command, **_):
        typed.append(command)
        return type("Done", (), {"returncode": 0, "stdout": LMMS_EVAL, "stderr": ""})()

    folder = tmp_path / ".venv-lmms-eval"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    monkeypatch.setattr(general_run, "ENVIRONMENT", folder)
    monkeypatch.setattr(general_run.subprocess, "run", fake_run)
    for _ in range(2):
        find_environment(None, said.append)
    assert len(said) == 1 and "GB" in said[0]
    assert sum("venv" in command for command in typed) == sum(str(LOCK) in command for command in typed) == 1
