"""Every config file composes and becomes its dataclass; every mistake on the command line is one clear message."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

from pipeline.config import Config, read_config
from pipeline.program import CONFIGS, compose, list_groups, list_options, parse_overrides, run
from pipeline.sweep import make_plans
from pipeline.tools.convert import KEYS, ConvertRequest
from pipeline.tools.inspect import read_request
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.settings import UserError, build
from tests.smoke_run import run_here

PROGRAMS = sorted(file.stem for file in CONFIGS.glob("*.yaml") if file.stem != "common")
GROUPS = [group for group in list_groups() if group != "task"]
WORDS = ["source=zero_shot", "multi_task=true"]  # which train.py leaves out, unless it is asked for
METHODS = ["ties", "tsv_m", "robustmerge"]  # tests/robustmerge/test_methods.py composes all of them


def list_choices() -> list[str]:
    """Every option of every group, as GROUP=NAME."""
    return [f"{group}={name}" for group in GROUPS for name in (METHODS if group == "merge" else list_options(group))]


@cache
def read_usual() -> tuple[frozenset[str], Config]:
    """The keys of merge_eval, and its configuration."""
    point = compose("merge_eval", WORDS)
    return frozenset(point), read_config(point)


@pytest.mark.parametrize("program", [program for program in PROGRAMS if program != "convert"])
def test_every_program_has_the_same_configuration_by_default(program):
    point, (keys, usual) = compose(program, WORDS), read_usual()
    if program == "inspect_adapters":
        config = read_request(point)[0].config
    else:
        config = read_config({key: value for key, value in point.items() if key in keys or key == "out"})
    assert dataclasses.replace(config, out=None) == usual


def test_the_program_that_knows_no_benchmark_composes_into_a_request():
    point = compose("convert", ["to=peft", "adapters=[a]", "out=b"])
    assert build(ConvertRequest, {key: point[key] for key in KEYS}, "").places == {"a": "a"}


def read_option(choice: str) -> str:
    """The text of the file of a choice GROUP=NAME."""
    return (CONFIGS / "{}/{}.yaml".format(*choice.split("="))).read_text()


@pytest.mark.parametrize("choice", list_choices())
def test_every_option_of_every_group_becomes_its_dataclass(choice):
    needed = {
        "expert_set=released": ["benchmark=mm_mergebench"],
        "model=clip_tiny": ["benchmark=clip8_mini"],
        "benchmark=clip8_mini": ["model=clip_tiny"],
        "benchmark=clip8": ["model=clip_vit_b_32"],
        "model=clip_vit_b_32": ["benchmark=clip8"],
        "model=clip_vit_l_14": ["benchmark=clip8"],
        "peft=clip": ["benchmark=clip8_mini", "model=clip_tiny"],
    }
    program = "inspect_adapters" if f"scripts/inspect_adapters.py {choice}\n" in read_option(choice) else "train_all"
    point = compose(program, [choice, *needed.get(choice, [])])
    config = read_config(point) if program == "train_all" else read_request(point)[0].config
    is_of_one = point.get("merge") is not None
    assert (len(config.methods) == 1) == is_of_one
    assert is_of_one == (choice.startswith("merge=") or choice == "experiment=figure5a")


def test_all_methods_are_the_files_of_their_folder_but_what_they_build_on():
    config = read_config(compose("merge_eval", ["methods=all"]))
    assert [method.name for method in config.methods] == list_options("merge")
    assert "_neutral" not in list_options("merge")


def test_every_task_file_of_a_benchmark_is_part_of_it():
    for folder in (CONFIGS / "task" / name for name in list_options("benchmark")):
        listed = compose("train_all", [f"benchmark={folder.name}"])["task"]
        assert sorted(listed) == sorted(file.stem for file in folder.glob("*.yaml"))


def test_every_config_begins_with_a_comment():
    assert [file.name for file in CONFIGS.rglob("*.yaml") if not file.read_text().startswith("#")] == []


@pytest.mark.parametrize("file", sorted((CONFIGS / "merge").glob("[!_]*.yaml")), ids=lambda file: file.stem)
def test_a_method_is_called_what_its_file_is_called(file):
    assert yaml.safe_load(file.read_text())["name"] == file.stem
    assert file.read_text().startswith(f"# bash scripts/merge_eval.sh merge={file.stem}\n")


def test_conda_gets_the_versions_of_the_lock_file():
    locked = [line for line in (REPOSITORY / "requirements.lock").read_text().splitlines() if "==" in line]
    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    assert environment["dependencies"][-1]["pip"] == locked
    assert not [line for line in locked if "+" in line or "nvidia" in line or "--hash" in line]


def test_no_tracked_file_names_a_place_of_one_machine():
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True).stdout
    if not tracked:
        pytest.skip("not a git checkout")
    for name in filter(None, tracked.split("\0")):
        file = REPOSITORY / name
        if file.suffix in (".py", ".sh", ".yaml", ".md", ".toml"):
            text = file.read_text()
            assert not any(place + "/" in text for place in ("/home", "/mnt", "/tmp", "/root")), name  # noqa: S108


def answer(program: str, *words: str, runs: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / f"{program}.py"), f"paths.runs={runs}", *words],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("program", "words", "message"),
    [
        ("train_all", ["peft.rr=8"], "unknown key 'rr' under peft; choose one of"),
        ("train_all", ["pefft.r=8"], "unknown key 'pefft'; choose one of"),
        ("train_all", ["peft.r=eight"], "expected a whole number, got 'eight' (peft.r)"),
        ("train_all", ["tasks=[vqa2]"], "unknown task 'vqa2'; choose one of"),
        ("train_all", ["tasks=[vqav2"], "a list with spaces needs quotes: 'tasks=[vqav2]'"),
        (
            "train_all",
            ["task=mini/rec"],
            "a task is added with +task=NAME; a subset of the benchmark",
        ),
        ("train_all", ["+task=mine"], "there is no file configs/task/mine.yaml"),
        (
            "train_all",
            ["model=tny"],
            "unknown model 'tny'; choose one of clip_tiny, clip_vit_b_32, clip_vit_l_14, llava15_13b, llava15_7b, "
            "llava_interleave_05b, small, smollm2, tiny (did you mean 'tiny'?)",
        ),
        ("merge_eval", ["merge=robust"], "unknown method 'robust'; choose one of average, breadcrumbs"),
        ("merge_eval", ["methods=[tais]"], "unknown method 'tais'; choose one of average, breadcrumbs"),
        ("merge_eval", ["merge=ties", "merge.out.format=model"], "merged/ties is a full model, and a source is"),
        ("merge_eval", ["merge=ties", "merge.out.for=vllm"], "merged/ties is for a server (merge.out.for=vllm)"),
        ("merge_eval", ["merge.strength=1"], "can be set for one method only: add merge=NAME"),
        ("merge_eval", ["merge=robustmerge", "merge.prune.density=1.2"], "(merge.prune.density)"),
        ("merge_eval", ["merge=robustmerge", "merge.prune.densty=1"], "did you mean 'density'?"),
        ("merge_eval", ["merge=ties", "merge.weights.rec=2"], "give it whole, as 'merge.weights={rec: VALUE}'"),
        ("merge_eval", ["experts=[a:nowhere]"], "expert 'a': there is no folder nowhere"),
        ("merge_eval", ["peft.r=8", "merge=robustmerge"], "Make them with: bash scripts/train_all.sh"),
        ("predict", ["source=expert/vqa"], "unknown source 'expert/vqa'; choose one of"),
        ("predict", [], "source=NAME is needed; choose one of"),
        ("predict", ["source=expert/vqav2"], "experts/vqav2-"),
        ("predict", ["source=merged/ties", "tasks=[rec]"], "another model is named by its address"),
        ("train_all", ["trainer=zero2", "trainer.processes=5"], "5 processes cannot share a global batch of 16"),
        ("train_all", ["trainer=zero2"], "trainer=zero2 needs 8 GPUs and this machine shows 0"),
        ("train_all", ["jobs=0"], "jobs must be at least 1, got 0 (jobs)"),
    ],
)
def test_a_mistake_is_one_message_and_nothing_is_written(tmp_path, monkeypatch, capsys, program, words, message):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(SystemExit) as end:
        run_here(monkeypatch, program, f"paths.runs={tmp_path}/runs", *words)
    printed = capsys.readouterr().err
    assert end.value.code == 2
    assert printed.startswith("error: ")
    assert message in printed
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]


def test_a_task_file_without_its_package_line_is_told_as_one():
    stray = {"title": "Mine", "prompt": "{text}"}
    point = compose("merge_eval", [])
    with pytest.raises(UserError, match=r"'# @package task.NAME': without it title, prompt would each be a task"):
        read_config({**point, "task": {**point["task"], **stray}})


def test_all_mistakes_of_a_configuration_are_told_at_once():
    point = compose("merge_eval", ["merge=robustmerge", "merge.prune.density=2", "peft.r=0", "seed=x", "tasks=[nope]"])
    with pytest.raises(UserError) as refused:
        read_config(point)
    for key in ("(merge.prune.density)", "(peft.r)", "(seed)", "(tasks)"):
        assert key in str(refused.value)


@pytest.mark.parametrize(
    ("words", "points"),
    [
        (
            ["experiment=base_knows"],
            [(knows, seed) for knows in ("nothing", "half", "paper") for seed in ("1", "2", "3")],
        ),
        (["-m", "experiment=length", "seed=4"], [(length, "4") for length in ("0.25", "1", "4")]),
    ],
)
def test_an_experiment_may_hold_a_sweep(tmp_path, monkeypatch, words, points):
    monkeypatch.setattr(sys, "argv", ["scripts/merge_eval.py", f"paths.runs={tmp_path}/runs", *words])
    swept: list[dict] = []
    run("merge_eval", swept.extend)
    typed = [parse_overrides(point["overrides"]) for point in swept]
    keys = [key for key in typed[0] if key not in ("paths.runs", "experiment")]
    assert [tuple(one[key] for key in keys) for one in typed] == points


def test_the_length_of_training_is_swept_over_a_quarter_of_the_usual_one_all_of_it_and_four_times_that():
    content = yaml.safe_load((CONFIGS / "experiment" / "length.yaml").read_text())
    ((key, values),) = content["hydra"]["sweeper"]["params"].items()
    assert key == "model.recipe.epochs"
    usual = compose("train_all", [])["model"]["recipe"]["epochs"]
    assert [float(value) / usual for value in values.split(",")] == [0.25, 1, 4]


def test_help_shows_how_to_use_a_program_and_what_can_be_chosen(tmp_path):
    shown = answer("merge_eval", "--help", runs=tmp_path)
    assert shown.returncode == 0
    for text in ("scripts/merge_eval.sh", ", mini, mm_mergebench", "merge: average, "):
        assert text in shown.stdout


def test_the_configuration_can_be_printed(tmp_path):
    shown = answer("train_all", "peft.r=8", "--cfg", "job", runs=tmp_path)
    assert yaml.safe_load(shown.stdout)["peft"]["r"] == 8


def test_what_does_not_change_a_result_does_not_change_its_address():
    (usual,) = make_plans([compose("train_all", [])])
    (other,) = make_plans([compose("train_all", ["jobs=7", "logger=none", "report=other"])])
    assert {a.short for a in usual.experts.values()} == {a.short for a in other.experts.values()}


def test_an_override_reaches_the_stages_it_is_about_and_disturbs_no_other():
    (usual,) = make_plans([compose("train_all", [])])
    (other,) = make_plans([compose("train_all", ["peft.r=8"])])
    assert usual.base == other.base
    assert usual.corpus == other.corpus
    for name in usual.experts:
        assert usual.experts[name].path != other.experts[name].path


def test_a_subset_of_tasks_has_the_same_experts():
    (all_tasks,) = make_plans([compose("train_all", [])])
    (few,) = make_plans([compose("train_all", ["tasks=[vqav2,rec]"])])
    assert few.experts == {name: all_tasks.experts[name] for name in ("vqav2", "rec")}
    assert few.multi_task != all_tasks.multi_task


def test_the_seed_of_the_experts_leaves_data_and_base_alone():
    (first,) = make_plans([compose("train_all", ["seed=1"])])
    (second,) = make_plans([compose("train_all", ["seed=2"])])
    assert first.base == second.base
    assert not {a.path for a in first.experts.values()} & {a.path for a in second.experts.values()}
