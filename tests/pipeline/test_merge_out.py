"""`merge.py out=FOLDER`: any adapters, one merge, a closing table."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from pipeline.plan import Plan
from pipeline.program import compose
from pipeline.stages import merge
from pipeline.sweep import make_plans
from pipeline.terminal import format_path, print_results
from robustmerge.formats.adapter import LoraPair
from robustmerge.formats.adapter_config import WEIGHTS
from robustmerge.merge_record import describe_merge
from robustmerge.merging import merge_folders
from robustmerge.method import read_method
from robustmerge.stage.address import REPOSITORY, address_foreign, run_stage
from robustmerge.stage.failures import run_guarded
from robustmerge.stage.files import BESIDE
from robustmerge.stage.settings import UserError
from tests.merge_cases import QUIET, load_with_peft, random_experts, save_expert, write_expert
from tests.original_layout import write_original


@pytest.fixture
def experts(tmp_path: Path) -> list[Path]:
    return [write_expert(tmp_path / name, pairs) for name, pairs in random_experts("ab").items()]


def merge_to(out: Path | str, experts: list[Path], *words: str) -> None:
    """What `python scripts/merge.py` does with these words."""
    named = f"experts=[{','.join(map(str, experts))}]"
    merge.merge_out(make_plans([compose("merge", [named, f"out={out}", *words])]))


def test_experts_in_llavas_own_format_are_not_said_to_be_for_the_small_base_of_no_model(tmp_path):
    originals = [write_original(tmp_path / name, seed) for seed, name in enumerate("ab")]
    merge_to(tmp_path / "out", originals, "merge=ties", f"paths.runs={tmp_path}/runs")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == ""


def test_the_command_merges_any_adapters_and_says_what_came_of_it(tmp_path):
    for number, name in enumerate(("one", "two")):
        save_expert(tmp_path / name, seed=number, modules_to_save=["projector"])
    words = ["merge=knots_ties", "experts=[first:one,two]", "out=made/here", "merge.weights={first: 0.5}", "jobs=2"]
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / "merge.py"), *words],
        cwd=tmp_path,
        env={**os.environ, "ROBUSTMERGE_RUNS": str(tmp_path / "runs")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = {line[:22].strip(): line[22:].strip() for line in done.stdout.splitlines()}
    assert "KnOTS-TIES: 2 experts merged into made/here" in done.stdout
    assert (rows["experts"], rows["modules"], rows["rank"]) == ("first, two", "4", "6")
    assert rows["effective factor"] == "0.6"
    assert rows["modules_to_save"] == "2 tensors averaged"
    assert "x the experts' mean of" in rows["norm of the update"]
    assert {"rank rows dropped", "size", "time"} <= set(rows)
    assert "source=made/here" in done.stdout
    assert torch.isfinite(load_with_peft(tmp_path / "made" / "here")).all()
    manifest = json.loads((tmp_path / "made" / "here" / "manifest.json").read_text())
    assert set(manifest["identity"]["inputs"]) == {"first", "two"}
    assert manifest["identity"]["settings"]["weights"] == {"first": 0.5}
    assert not (tmp_path / "runs").exists()
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["here"]


def test_the_folder_has_the_bytes_of_merge_folders(tmp_path, experts):
    merge_to(tmp_path / "typed", experts, "merge=ties", "jobs=2")
    merge_folders(experts, "ties", tmp_path / "called", **QUIET)
    for name in ("adapter_model.safetensors", "adapter_config.json", "README.md"):
        assert (tmp_path / "typed" / name).read_bytes() == (tmp_path / "called" / name).read_bytes()


def test_a_gpu_merges_to_the_same_address_and_is_needed_only_where_it_is_asked_for(tmp_path, experts, monkeypatch):
    words = [f"experts=[{','.join(map(str, experts))}]", "merge=ties", f"paths.runs={tmp_path}/runs"]
    (there,) = make_plans([compose("merge", [*words, f"out={tmp_path}/out", "merge_device=cuda"])])
    here = Plan(replace(there.config, merge_device="cpu"))
    assert here.merged(here.config.methods[0]).short == there.merged(there.config.methods[0]).short
    started = []
    monkeypatch.setattr(merge, "run_side_by_side", lambda *job: started.append(job))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match="merge_device=cuda merges on GPUs, and this machine shows none"):
        merge.merge([there])
    with pytest.raises(UserError, match="there is no device 'cuda' here"):
        merge.merge_out([there])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    merge.merge([there])
    ((_, _, items, _, trainer),) = started
    assert [item["device"] for item in items] == ["cuda"] and trainer.engine == "single_gpu"


def test_dense_deltas_are_written_where_no_adapter_is_exact(tmp_path, experts, capsys):
    merge_to(tmp_path / "dense", experts, "merge=ties", "merge.space=delta")
    assert (tmp_path / "dense" / "delta.safetensors").exists()
    card = (tmp_path / "dense" / "README.md").read_text()
    assert "library_name" not in card
    assert "alpha/r" not in card
    assert "none: dense updates" in capsys.readouterr().out


def test_a_folder_is_never_overwritten_and_what_a_kill_left_is_no_hindrance(tmp_path, experts, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / f".adapter_model.safetensors.1{BESIDE}").write_text("half")
    merge_to(out, experts, "merge=average")
    assert not list(out.glob(f".*{BESIDE}"))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    merge_to(out, experts, "merge=average")  # made already
    assert capsys.readouterr().out.count("it was there already, from the same experts and settings") == 1
    with pytest.raises(UserError, match="choose another folder.* made of other experts or settings"):
        merge_to(out, experts, "merge=ties")
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}
    manifest = json.loads(before["manifest.json"])
    changed = {**manifest["record"], "expert_norms": {"a": "x"}, "modules": None, "seconds": []}
    (out / "manifest.json").write_text(json.dumps({**manifest, "record": changed}))
    with pytest.raises(UserError, match="manifest.json.modules") as refused:
        merge_to(out, experts, "merge=average")
    assert "expert_norms.a" in str(refused.value) and "seconds" in str(refused.value)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([["out=x"]], r"one merge: add merge=NAME; choose one of average"),
        ([["merge=ties", "out=x"], ["merge=dare", "out=x"]], "a sweep makes several merges"),
        ([["merge=ties", f"out={Path(__file__).parent}"]], "is there already and is not empty"),
        ([["merge=ties", f"out={Path(__file__)}"]], "is there already"),
        ([["merge=ties", "merge.weights={c: 1}", "out=x"]], "weights names an unknown expert 'c'"),
    ],
)
def test_what_cannot_be_written_to_one_folder_is_refused(tmp_path, monkeypatch, experts, points, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        merge.merge_out(make_plans([compose("merge", ["experts=[a,b]", *words]) for words in points]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_links_out_of_an_experts_folder_are_said_but_for_those_of_the_hubs_cache(tmp_path, experts, capsys):
    snapshot, elsewhere = tmp_path / "models--a" / "snapshots" / "1", tmp_path / "elsewhere"
    for folder, target in ((snapshot, tmp_path / "models--a" / "blobs" / "2"), (tmp_path / "linked", elsewhere)):
        shutil.copytree(experts[0], folder)
        target.parent.mkdir(exist_ok=True)
        (folder / WEIGHTS).rename(target)
        (folder / WEIGHTS).symlink_to(target)
    merge_to(tmp_path / "out", [snapshot, tmp_path / "linked"], "merge=average")
    said = [line for line in capsys.readouterr().out.splitlines() if "link" in line and "expert" in line]
    assert said[0] == f"expert 'linked': {WEIGHTS} is a link to {elsewhere}" and not any("'1'" in line for line in said)


def test_any_error_of_a_file_is_one_message_with_its_name(tmp_path, monkeypatch, capsys):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "secret").write_text("")
    monkeypatch.setattr(os, "access", lambda file, mode: file != tmp_path / "secret")  # nothing is to root

    def refuse(number: int, file: Path | None = None) -> None:
        raise OSError(number, os.strerror(number), *[str(file)] * bool(file))

    actions: dict[str, Callable[[], object]] = {
        "No such file or directory: /proc/x. Choose another place": lambda: Path("/proc/x").mkdir(),
        "File name too long: nnn": lambda: Path("n" * 300).mkdir(),
        "Too many levels of symbolic links: ": lambda: (tmp_path / "loop").read_text(),
        "Is a directory: ": lambda: tmp_path.read_text(),
        "Not a directory: ": lambda: (tmp_path / "secret" / "x").read_text(),
        "secret cannot be read. Mend its rights": lambda: refuse(errno.EACCES, tmp_path / "secret"),
        "Permission denied: /none. Choose another place": lambda: refuse(errno.EACCES, Path("/none")),
        "Input/output error. Choose another place": lambda: refuse(errno.EIO),
        "the disk is full. Nothing finished is lost": lambda: refuse(errno.ENOSPC),
    }
    for message, action in actions.items():
        with pytest.raises(SystemExit) as ended:
            run_guarded(action, "again")
        printed = capsys.readouterr().err
        assert ended.value.code == 2 and message in printed and printed.count("\n") == 1
    with pytest.raises(ConnectionError):
        run_guarded(lambda: (_ for _ in ()).throw(ConnectionError("of a library")), "again")


def test_an_update_of_which_nothing_is_left_is_told(tmp_path, capsys):
    pair = LoraPair(torch.ones(4, 10), torch.full((7, 4), 1e-6))  # the threshold over both parts lies within A
    for name in "cd":
        write_expert(tmp_path / name, {"layers.0.q": pair})
    merge_to(tmp_path / "out", [tmp_path / "c", tmp_path / "d"], "merge=ties", "merge.prune.scope=model")
    assert "warning: almost nothing is left of the updates: one threshold" in capsys.readouterr().out


def test_the_strength_of_a_function_is_shown_as_that_of_any_method(tmp_path, experts, capsys):
    merge_to(tmp_path / "out", experts, "merge=tsv_m")
    assert "effective factor     1\n" in capsys.readouterr().out
    print_results([address_foreign(tmp_path / "out", tmp_path)])
    assert "(0 s, 2 modules, update times 1)" in capsys.readouterr().out


def test_one_expert_alone_is_merged_with_a_warning(tmp_path, experts, capsys):
    merge_to(tmp_path / "out", experts[:1], "merge=task_arithmetic")
    printed = capsys.readouterr().out
    assert "1 expert merged into" in printed
    assert "warning: there is nothing to merge with" in printed


def test_a_path_is_printed_as_it_can_be_typed_where_the_user_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert format_path(tmp_path / "runs" / "a") == "runs/a"
    assert format_path(tmp_path.parent / "a") == str(tmp_path.parent / "a")


def test_a_full_model_of_the_plans_own_experts_is_made_from_the_plans_base_and_loads_as_its_card_says(tmp_path):
    """The experts name the base by the name of its folder, which alone is no path."""
    shape = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=16, **shape))
    llama.save_pretrained(tmp_path / "short-name")
    words = ["merge=average", "merge.out.format=model", f"out={tmp_path / 'out'}", "tasks=[vqav2,rec]"]
    words += [f"paths.runs={tmp_path / 'runs'}", f"model.checkpoint={tmp_path / 'short-name'}"]
    (plan,) = plans = make_plans([compose("merge", words)])
    expert = get_peft_model(llama, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))

    def save(folder: Path) -> None:
        expert.save_pretrained(folder)
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "short-name"}))

    for address in plan.experts.values():
        run_stage(address, save, **QUIET)
    served = merge._with_base(plan, read_method("average", out__for="vllm"))
    assert served.out.base == str(tmp_path / "short-name")
    merge.merge_out(plans)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "Base model: `short-name`" in card
    assert "alpha/r" not in card
    names = {}
    exec(card.split("```python")[1].split("```")[0].replace("path/of/this/folder", str(tmp_path / "out")), names)
    assert type(names["model"]) is transformers.LlamaForCausalLM
    whole = expert.merge_and_unload().state_dict()
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        torch.testing.assert_close(names["model"].state_dict()[name], tensor)
        torch.testing.assert_close(tensor, whole[name])  # the mean of two that are the same


def test_the_table_of_a_merge_says_whose_names_were_changed():
    record = {"experts": ["a"], "modules": 1, "ranks": [2], "extras": 0, "dropped_rows": 0, "strength": 1.0}
    record |= {"effective_strength": 1.0, "norm": 1.0, "expert_norms": {"a": 1.0}}
    rows = describe_merge(read_method("ties"), record | {"renamed": ["a"]})
    assert rows["names changed"] == "of a, to those of today"
    assert "names changed" not in describe_merge(read_method("ties"), record)
