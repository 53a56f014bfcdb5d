"""General benchmarks: lmms-eval's environment and command, and the pipeline around them, with a stand-in for it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest

from eval.general.lmms_results import LMMS_EVAL, GeneralRun
from llava_ext import backend
from pipeline.general_results import find_scores
from pipeline.program import compose
from pipeline.sources import Source, name_source
from pipeline.tools.general import run_lmms
from pipeline.tools.general.command import run_general
from pipeline.tools.general.run_lmms import DTYPES, LOCK, find_environment, lmms_arguments
from robustmerge.stage.address import address_foreign
from robustmerge.stage.records import write_score
from robustmerge.stage.settings import PRECISIONS, ConfigError, UserError
from tests.eval.test_general import GOLDEN, edit, lay_out
from tests.report_cases import make_score
from tests.robustmerge.test_delta_sources import save_llava_expert
from tests.tiny_model import TEMPLATE, write_base


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A base and an expert."""
    root = tmp_path_factory.mktemp("ground")
    base = write_base(root / "base")
    return base, save_llava_expert(root / "expert", base)


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
    command, _ = run_lmms.launch_lmms(Path("/e/bin/python"), "cuda", 4)(Path("child"), Path("/j.json"), 0)
    assert command[1:5] == ["-m", "accelerate.commands.launch", "--num_processes", "4"]
    with pytest.raises(UserError, match="in its path"):
        lmms_arguments(run, Path("/a=b"), Path("/o"), None, "cpu", 1)


def test_every_precision_has_its_dtype_here_and_there():
    assert set(DTYPES) == set(backend.DTYPES) == set(PRECISIONS)
    assert {name: str(dtype) for name, dtype in backend.DTYPES.items()} == {n: f"torch.{d}" for n, d in DTYPES.items()}


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
    base, expert = ground
    words = [
        f"model.checkpoint={base}", f"source={expert}", "logger=none",
        "tasks_general=[pope_local]", f"include={GOLDEN / 'pope_local'}", f"paths.runs={tmp_path / 'runs'}",
        f"environment={tmp_path / 'venv'}",
    ]  # fmt: skip

    def type_it(*more: str) -> str:
        run_general([compose("general", [*words, *more])])
        return capsys.readouterr().out

    return type_it


def test_a_source_is_exported_asked_and_shown_once(ground, ask, tmp_path):
    environment = fake_environment(tmp_path / "venv", LMMS_EVAL, tmp_path / "recorded")
    with pytest.raises(UserError, match="(?s)nothing came of it.*experiment=table3"):
        ask()
    (results,) = lay_out(tmp_path / "recorded", "pope").rglob("*_results.json")
    edit(results, '"original": 80', '"original": 12')  # all its questions were asked
    printed = ask()
    assert "85.7" in printed and "partial evaluation" not in printed and "(published)" in printed
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
    root, (base, source) = tmp_path / "runs" / "mini-tiny", map(address_foreign, ground)
    asked = Source(*name_source(source), source, ())
    assert list(find_scores(root, asked, base, GeneralRun("any", TEMPLATE))) == ["pope_local"]
    assert list(find_scores(root, asked, base, GeneralRun("any", TEMPLATE, "crop"))) == ["pope_local (image=pad)"]
    assert find_scores(root, asked, source, GeneralRun("any", TEMPLATE)) == {}, "of another base"


def test_of_scores_of_one_task_the_newest_is_found(ground, tmp_path):
    base, source = map(address_foreign, ground)
    asked, run = Source(*name_source(source), source, ()), GeneralRun("mytask", TEMPLATE)
    for name, day, value in (("mytask-1", "2026-01-02", 20.0), ("mytask-2", "2026-01-01", 10.0)):
        folder = tmp_path / "general" / asked.folder / name
        folder.mkdir(parents=True)
        identity = {"stage": "general", "inputs": {"base": base.fingerprint, "include": name}, "settings": vars(run)}
        (folder / "manifest.json").write_text(json.dumps({"identity": identity, "record": {"time": day}}))
        write_score(folder / "score.json", dataclasses.replace(make_score("mytask", 1), value=value))
    assert {title: score.value for title, score in find_scores(tmp_path, asked, base, run).items()} == {"mytask": 20.0}


def test_a_look_is_not_a_result_and_a_checkpoint_may_stay(ground, ask, tmp_path):
    fake_environment(tmp_path / "venv", LMMS_EVAL, lay_out(tmp_path / "recorded", "pope"))
    assert "12 of 80 questions: a partial evaluation" in ask("limit=12", "keep_checkpoint=true")
    root = tmp_path / "runs" / "mini-tiny"
    assert list(root.glob("general/adapter/*/checkpoint-*/model.safetensors"))
    base, source = map(address_foreign, ground)
    assert find_scores(root, Source(*name_source(source), source, ()), base, GeneralRun("any", TEMPLATE)) == {}


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
    monkeypatch.setattr(run_lmms, "ENVIRONMENT", folder)
    monkeypatch.setattr(run_lmms.subprocess, "run", fake_run)
    for _ in range(2):
        find_environment(None, said.append)
    assert len(said) == 1 and "GB" in said[0]
    assert sum("venv" in command for command in typed) == sum(str(LOCK) in command for command in typed) == 1
