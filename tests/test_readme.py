"""Every command and every Python example of README.md, CONTRIBUTING.md and docs/ runs at smoke size.

A command runs unless its comment says what it needs, or that it takes hours. One that stands twice runs once; the two
commands that everything begins with are run by the fixture `smoke`, and both in one by a test of the whole pipeline.
Most commands run in this process: as child processes each would load the libraries anew, which takes seconds.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from robustmerge.cli import program as merge_program
from robustmerge.stage.address import REPOSITORY
from tests.pages import PAGES, blocks
from tests.smoke_run import SmokeRun, run_here

SKIPPED = (
    "# needs GPUs",
    "# needs the data",
    "# needs the scores",
    "# installs lmms-eval",
    "# asks the Hub",
    "scripts/test.sh",  # runs this test
    "scripts/setup.sh",
    "pip install",
)
TAKES_HOURS = re.compile(r"# .*\bhours?\b")
RUN_ELSEWHERE = ("bash scripts/train_all.sh", "bash scripts/merge_eval.sh", "bash scripts/quickstart.sh profile=smoke")
LOGGED = re.compile(r"train_all.*peft|-m merge=")  # to W&B, offline: a command that trains, and one that reports
TYPED = re.compile(  # as a user types them; the others run in this process
    rf"{LOGGED.pattern}|--help|--cfg|(prepare|reproduce|example_task)\.sh|(doctor|runs)\.py"
    r"|robustmerge methods|robustmerge merge ties .* -o path/to/merged$"
)
DRAWN = re.compile(r"report\.py|findings\.py|inspect")  # the others build figures, but do not render them


def list_commands() -> list[str]:
    """The commands of all pages, each once, in their order."""
    lines = [line for page in PAGES for block in blocks("bash", page) for line in block.splitlines() if line.strip()]
    lines = [line for line in lines if not any(mark in line for mark in SKIPPED) and not TAKES_HOURS.search(line)]
    typed = [line.split("  # ")[0] for line in lines]
    assert len(typed) > 15
    return [line for line in dict.fromkeys(typed) if line not in RUN_ELSEWHERE]


@pytest.fixture(scope="session")
def places(smoke: SmokeRun, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What stands for path/to/... on the pages: of the smoke run the base, two experts, a picture; else a folder."""
    (vqav2,), (rec,) = ((smoke.root / "experts").glob(f"{task}-*") for task in ("vqav2", "rec"))
    (data,) = (smoke.root / "data").glob("vqav2-*")
    picture = str(data / "images" / "test_00000.png")
    rest = str(tmp_path_factory.mktemp("docs"))
    base = str(shutil.copytree(REPOSITORY / "bases" / "tiny-paper", tmp_path_factory.mktemp("base") / "tiny-paper"))
    named = {"vqav2": str(vqav2), "rec": str(rec), "base": base, "picture.png": picture}
    return {**{f"path/to/{name}": place for name, place in named.items()}, "path/to": rest}


def replace_places(places: dict[str, str], text: str) -> str:
    for place, path in places.items():
        text = text.replace(place, path)
    return text


FEW_TASKS = {  # in one process, by what stands in a command
    "experiment=table3": "'tasks=[vqav2,rec,pope_like,mme_like,mmbench_like]' methods=robustmerge",
    "experiment=table4": "'tasks=[cars,dtd]'",
    "merge_eval": "'tasks=[vqav2,rec,tabmwp]'",
    "reproduce": "'tasks=[vqav2,rec,tabmwp]' strength_grid=null",
    "peft.r=8": "",
    "choose.py": "",
    "limit=2": "",
}


# What commands print, by a pattern of the command: each matches one.
PRINTED = {
    r"robustmerge merge \w+ ": r"\n  modules +28\n",
    r"robustmerge merge --help": r"\n  robustmerge merge ties ",
    r"robustmerge methods$": r"\nties: TIES, ",
    r"robustmerge methods ties": r"\n  prune\.density +0\.2\n",
    r"robustmerge inspect": r"\nWhat follows\n",
    r"robustmerge check": r"/knots: moves the logits of .*; 28 of 28 adapted modules have an update other than zero\n",
    r"quickstart\.sh experiment=table4": r"\nSource .* Cars ",
    r"inspect_adapters\.py": r"\npicture: .*/inspection\.png",
    r"merge\.py merge=ties": r"\n  modules +28\n",
    r"doctor\.py": r"bash scripts/quickstart\.sh",
    r"plan=true": r"\nTrained: [\d,]+ parameters of LoRA",
    r"train_all\.sh peft\.r=8": r"\n  experts/rec-\w+ ",
    r"-m merge=task_arithmetic": r"\nTask Arithmetic \(strength=0\.5\) ",
    r"\.sh --help$": r"\nmerge: average, ",
    r"--cfg job$": r"\nstrength_grid:",
    r"prepare\.sh": r"\n  data/vqav2-\w+ ",
    r"verify\.py": r"VQAv2  \(data/vqav2-\w+, drawn here\)",
    r"train\.py": r"\n  experts/vqav2-\w+ ",
    r"merge\.py merge=robustmerge$": r"\n  merged/robustmerge-\w+ ",
    r"predict\.py source=merged/robustmerge$": r"\n  predictions/merged/robustmerge-\w+/rec-\w+\.jsonl ",
    r"score\.py source=merged/robustmerge$": r"merged/robustmerge +vqav2 .*24 of 24 scored",
    r"report\.py": r"\nreport: .*/reports/main/report\.md",
    r"choose\.py": r"\n(TIES|KnOTS-TIES|Iso-C) +chosen +\d",
    r"runs\.py": r"\n  merged/robustmerge-\w+ ",
    r"show\.py": r"gallery: .*/reports/main/gallery\.html",
    r"findings\.py": r"findings: .*/findings\.md",
    r"limit=2$": r"\n  tabmwp-test-\d+: ",
    r"protocol=official$": r"merged/robustmerge +vqav2 .*24 of 24 scored",
    r"partial=true$": r"merged/robustmerge +vqav2 .*24 of 24 scored",
    r"ask\.py": r"\w",
    r"compare\.py": r"\nUnseen avg ",
    r"example_task\.sh": r"\nIndividual .*[0-9]",
    r"experiment=table3": r"\nSource .* MMBench-like\n(.*\n)+RobustMerge .*\d\n",
    r"experiment=figure5b": r"\nRobustMerge: pruning by sign ",
    r"reproduce\.sh": r"\nreproduce: 2 steps in .*/reproduced/README\.md",
}


def type_line(line: str) -> None:
    """Type a command in a shell, and wait for its end."""
    typed = re.sub(r"^robustmerge ", ".venv/bin/python -m robustmerge ", line).replace(
        ".venv/bin/python", sys.executable
    )
    assert subprocess.run(["bash", "-c", typed], timeout=600).returncode == 0


def do_line(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do in this process what a command does."""
    first, *words = shlex.split(line)
    if first == "robustmerge":
        merge_program.main(words)
        return
    name = Path(words[0]).stem
    for program in ("train_all", "merge_eval") if name == "quickstart" else (name,):
        run_here(monkeypatch, program, *words[1:])


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("command", list_commands())
def test_a_command_of_the_pages_runs(
    command: str,
    smoke: SmokeRun,
    places: dict[str, str],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    line = replace_places(places, command)
    knows_no_profile = line.startswith("robustmerge ") or any(
        word in line for word in ("--help", "runs.py", "doctor.py")
    )
    if "profile=smoke" not in line and not knows_no_profile:
        line += " profile=smoke"
    if "--" not in line:  # two processes take longer to start than one takes for a few tasks
        line += next((f" jobs=1 multi_task=false {words}" for name, words in FEW_TASKS.items() if name in line), "")
    monkeypatch.chdir(REPOSITORY)
    mode = "offline" if LOGGED.search(command) else "disabled"
    for name, value in {"ROBUSTMERGE_RUNS": str(smoke.runs), "WANDB_MODE": mode, "BROWSER": "true"}.items():
        monkeypatch.setenv(name, value)
    if TYPED.search(command):
        type_line(line)
    else:
        if not DRAWN.search(command):
            request.getfixturevalue("undrawn")
        do_line(line, monkeypatch)
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err
    (expected,) = [pattern for words, pattern in PRINTED.items() if re.search(words, command)]
    assert re.search(expected, printed.out), printed.out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page: Path, places: dict[str, str]) -> None:
    for block in blocks("python", page):
        exec(compile(replace_places(places, block), str(page), "exec"), {})
