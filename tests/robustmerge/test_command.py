"""The command `robustmerge`: merges typed or in a recipe, its help, and what it refuses."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
import torch

from robustmerge.cli.program import main
from robustmerge.formats.llava.to_peft import convert_to_peft
from robustmerge.formats.tensors import TensorFile
from robustmerge.merging import merge_folders
from robustmerge.method import list_methods, read_method
from robustmerge.method_page import read_method_page
from tests.merge_cases import QUIET, load_with_peft, random_experts, save_expert, write_expert
from tests.original_layout import write_original


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with two experts in it, one of an awkward name."""
    monkeypatch.chdir(tmp_path)
    for name, (_, pairs) in zip(("a", "x=(1,2) y"), random_experts("ab").items(), strict=True):
        write_expert(tmp_path / name, pairs)
    return tmp_path


def refuse(*words: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2


def test_what_is_typed_is_merged_as_by_the_library_and_said(folder: Path, capsys) -> None:
    main(
        [
            "merge",
            "-o",
            "out",
            "ties",
            "one:a",
            "x=(1,2) y",
            "--set",
            "merge.prune.density=3e-1",
            "--weights",
            "one=0.5",
        ]
    )
    method = read_method("ties", prune={"density": 0.3}, weights={"one": 0.5})
    merge_folders({"one": "a", "x=(1,2) y": "x=(1,2) y"}, method, "library", **QUIET)
    for name in ("adapter_model.safetensors", "adapter_config.json", "README.md"):
        assert (folder / "out" / name).read_bytes() == (folder / "library" / name).read_bytes()
    printed = capsys.readouterr().out
    assert "TIES: 2 experts merged into out\n" in printed
    assert "\n  experts              one, x=(1,2) y\n" in printed
    assert '    model = PeftModel.from_pretrained(base_model, "out")\n' in printed


def test_every_option_is_a_setting_of_the_method(folder: Path) -> None:
    words = ["--set", "space=delta", "--seed", "7", "--format", "adapter", "--rank", "experts", "--dtype", "bfloat16"]
    main(["merge", "dare", "a", "x=(1,2) y", "-o", "out", "--jobs", "1", *words, "--weights", "x=(1,2) y=2"])
    settings = json.loads((folder / "out" / "manifest.json").read_text())["identity"]["settings"]
    assert (settings["space"], settings["seed"], settings["weights"]) == ("delta", 7, {"x=(1,2) y": 2.0})
    assert settings["out"] == {"rank": "experts", "dtype": "bfloat16", "format": "adapter"}


def test_what_is_written_loads_in_peft(folder: Path) -> None:
    for number, name in enumerate(("one", "two")):
        save_expert(folder / name, seed=number)
    main(["merge", "robustmerge", "one", "two", "-o", "made/here", "--set", "prune.density=0.9"])
    assert load_with_peft(folder / "made" / "here").isfinite().all()


RECIPE = """
experts: [one:a, "x=(1,2) y"]
weights: {one: 0.5}
method: {name: knots_ties, prune: {density: 0.3}}
out: out
"""


def test_a_recipe_is_the_same_as_its_words(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(RECIPE)
    words = ["--set", "prune.density=0.3", "--weights", "one=0.5"]
    main(["merge", "knots_ties", "one:a", "x=(1,2) y", "-o", "typed", *words])
    main(["merge", "recipe.yaml"])
    main(["merge", "recipe.yaml", "-o", "elsewhere", "--set", "strength=2"])
    typed, read, other = (
        (folder / name / "adapter_model.safetensors").read_bytes() for name in ("typed", "out", "elsewhere")
    )
    assert typed == read != other


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("experts: [a]\nmethod: tis\nout: o", "unknown method 'tis'; choose one of average"),
        ("experts: [a]\nmethod: {space: delta}\nout: o", "the method needs its name, as in"),
        (
            "experts: [a]\nmethod: ties\nwieghts: {a: 1}",
            "unknown key 'wieghts'; choose one of experts, method, out, weights",
        ),
        (
            "experts: [a]\nmethod: {name: ties, prune: {dense: 1}}\nout: o",
            "unknown key 'dense'; choose one of count, density",
        ),
        ("experts: [a]\nmethod: ties", "where to? give the new folder: -o FOLDER"),
        ("experts: 3\nmethod: ties", "expected a mapping, got 3 (recipe.yaml.experts)"),
        (
            "experts: [a]\nmethod: {name: ties, out: foo}\nout: o",
            "out holds settings of its own, as out.for",
        ),
        ("experts: [a]\nmethod: {name: tsv_m, params: 3}\nout: o", "expected a mapping, got 3"),
        ("method: ties", "missing value (recipe.yaml.experts)"),
        ("experts: {x: a, x: b}\nmethod: ties\nout: o", "recipe.yaml, line 1 cannot be read as a recipe or a method's"),
        (
            "experts: {x: a}\nmethod: ties\nmethod: dare\nout: o",
            "line 3 cannot be read as a recipe or a method's file: ",
        ),
        ("experts: {yes: a, no: a}\nmethod: ties\nout: o", "a key must be a text, got True: put it in quotes"),
        (
            "experts: [a]\nmethod: {name: ties, weights: {a: 1}}\nweights: {a: 2}\nout: o",
            "weights stand twice, the second time below the method; give them once (recipe.yaml.weights)",
        ),
        ("experts: [a]\nmethod: ties\nout: {for: vllm}", "out is the new folder, as in `out: path/to/merged`; what"),
    ],
)
def test_a_recipe_that_is_wrong_is_refused_with_the_choices(folder: Path, capsys, text: str, message: str) -> None:
    (folder / "recipe.yaml").write_text(text)
    refuse("merge", "recipe.yaml")
    assert message in capsys.readouterr().err


def test_experts_beside_a_recipe_are_refused_but_beside_the_file_of_a_method_merged_by_it(folder: Path, capsys) -> None:
    (folder / "recipe.yaml").write_text(RECIPE)
    refuse("merge", "recipe.yaml", "a", "-o", "o")
    assert "recipe.yaml is a recipe, which names its experts; leave out a" in capsys.readouterr().err
    (folder / "mine.yaml").write_text("defaults: [ties, _self_]\nname: mine\nprune: {density: 0.3}")
    main(["merge", "mine.yaml", "a", "x=(1,2) y", "-o", "o", "--weights", "a=[0.5, 1.0]"])
    settings = json.loads((folder / "o" / "manifest.json").read_text())["identity"]["settings"]
    assert (settings["prune"]["density"], settings["weights"]) == (0.3, {"a": [0.5, 1.0]})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["mrge"],
            "unknown command 'mrge'; choose one of check, convert, extract, inspect, merge, methods, push (did",
        ),
        (["merge", "ties", "-o", "o"], "which experts? robustmerge merge ties EXPERT EXPERT -o FOLDER"),
        (["merge", "ties", "a"], "where to? give the new folder: -o FOLDER"),
        (["merge", "tis", "a", "-o", "o"], "(did you mean 'ties'?)"),
        (
            ["merge", "ties", "a", "-o", "o", "--set", "prune.densty=1"],
            "(did you mean 'density'?) (merge.prune.densty)",
        ),
        (
            ["merge", "ties", "a", "-o", "o", "--set", "strength"],
            "--set takes pairs, as --set strength=0.7, got 'strength'",
        ),
        (["merge", "ties", "a", "-o", "o", "--weights", "a=x"], "expected a number, got 'x' (merge.weights.a)"),
        (["merge", "ties", "a", "-o", "o", "--weights", "b=1"], "weights names an unknown expert 'b'"),
        (["merge", "ties", "a", "-o", "o", "--weights", "a=1", "a=2"], "--weights has 'a' twice; give it once"),
        (["merge", "svd", "a", "-o", "o", "--rank", "016"], "rank must be null, a whole number or experts, got '016'"),
        (["merge", "ties", "a", "-o", "o", "--set", "strength=1:30"], "expected a number, got '1:30' (merge.strength)"),
        (["merge", "ties", "a", "-o", "o", "--set", "strength=1e155"], "the merged update is too large for float32"),
        (["merge", "tsv_m", "a", "-o", "o", "--set", "params.strength=.inf"], "must be a finite number, got inf"),
        (["merge", "tsv_m", "a", "-o", "o", "--set", "target=x.y"], "a function is named once, by _target_"),
        (["merge", "ties", "a", "-o", "o", "--jobs", "0"], "there must be at least 1 job"),
        (
            ["merge", "ties", "a", "-o", "o", "--frmat", "x"],
            "unrecognized arguments: --frmat x; robustmerge merge --help",
        ),
        (["merge", "ties", "a", "./a", "-o", "o"], "two experts are called 'a', a and ./a; name them as name:folder"),
        (["merge", "ties", "no/such/x", "-o", "o"], "expert 'x': there is no folder no/such/x"),
        (["merge", "ties", "", "-o", "o"], "the path is empty; give a folder"),
        (["merge", "ties", "a", "-o", ""], "where to? give the new folder: -o FOLDER"),
        (["merge", "ties", "a", "-o", "a"], "a is there already and is not empty"),
        (["merge", "ties", "a", "-o", "o", "--set", "merge.name=x"], "the method is the first word, as in robustmerge"),
        (["merge", "ties", "a", "-o", "a/o"], "a/o lies in the folder of 'a'; choose a folder beside it"),
        (
            ["merge", "ties", "a", "-o", "o", "--set", "name=dare"],
            "robustmerge merge dare EXPERT EXPERT (--set name)",
        ),
        (
            ["merge", "ties", "a", "-o", "o", "--device", "gpu"],
            "there is no device 'gpu' here: it is called",
        ),
        (
            ["merge", "iso_c", "a", "-o", "o", "--weights", "a=2"],
            "iso_c is a function, which has no weights; its",
        ),
        (
            ["merge", "iso_c", "a", "-o", "o", "--set", "params.strength=[a, 2]"],
            "expected a number, got ['a', 2] (merge.params.strength)",
        ),
        (["extract", "no/such/base", "a", "-r", "2", "-o", "o"], "there is no folder no/such/base"),
        (["methods", "tis"], "(did you mean 'ties'?)"),
        (["inspect", "a", "--density", "2"], "density must be in (0, 1], got 2.0"),
        (["inspect", "a", "-o", "a/o"], "a/o is in the folder of 'a', which would change; choose one beside it"),
    ],
)
def test_what_is_typed_wrongly_is_one_message_with_the_choices(
    folder: Path, capsys, words: list[str], message: str
) -> None:
    refuse(*words)
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.startswith("error: ") and "Traceback" not in printed.err
    assert not (folder / "o").exists()


def test_the_help_teaches_with_an_example(capsys) -> None:
    commands = ("merge", "methods", "inspect", "extract", "check")
    for words in ([], *([command, "--help"] for command in commands)):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0
        assert "\n  robustmerge " in capsys.readouterr().out


def test_all_methods_are_listed_with_what_they_do_and_one_with_every_setting(capsys) -> None:
    main(["methods"])
    printed = capsys.readouterr().out
    assert [
        line.partition(":")[0] for line in printed.splitlines() if ": " in line and line[0] != " "
    ] == list_methods()
    assert "ties: TIES, https://arxiv.org/abs/2306.01708\n    Trim each expert to its largest entries," in printed
    assert "\n    λ Σ X_n\n    defaults: strength=0.55\n" in printed and "λ is the strength." in printed
    assert "defaults: strength=0.55, prune.rule=random, prune.density=0.8" in " ".join(printed.split())
    main(["methods", "dare"])
    page = capsys.readouterr().out
    for name in ("space", "prune.density", "scale.floor", "basis.cut", "out.rank", "seed"):
        assert f"\n  {name} " in page
    assert "fraction kept, in (0, 1]; drop rate 0.2, as" in " ".join(page.split())


@pytest.mark.parametrize("name", list_methods())
def test_a_page_gives_the_settings_that_make_the_method(name: str) -> None:
    page = read_method_page(name)
    assert page.summary.endswith(".") and len(page.summary) < 200 and "bash" not in page.description
    assert page.formula and len(page.formula) < 110
    changes = {key.replace(".", "__"): value for key, value in page.settings.items() if key != "first"}
    assert read_method(name, **changes) == page.method


def test_an_inspection_is_printed_and_nothing_is_written(folder: Path, capsys) -> None:
    main(["merge", "average", "a", "x=(1,2) y", "-o", "out"])
    before = sorted(folder.rglob("*"))
    main(["inspect", "a", "two:x=(1,2) y", "--merged", "mean:out"])
    printed = capsys.readouterr().out
    assert "\nWhat follows\n" in printed and "\nmean " in printed
    assert sorted(folder.rglob("*")) == before


def test_tables_are_written_where_no_picture_can_be_drawn(folder: Path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    refuse("inspect", "a", "x=(1,2) y", "--kind", "q", "--out", "inspection")
    assert "pictures need matplotlib, which cannot be imported: pip install matplotlib, or" in capsys.readouterr().err
    (first, *_) = csv.DictReader((folder / "inspection" / "figure8.csv").open())
    assert (first["layer"], first["module"], first["role"], first["name"]) == ("1", "layers.0.q", "expert", "a")
    assert "figure7 is not drawn: it needs merged" in (folder / "inspection" / "figures.txt").read_text()
    assert not [*(folder / "inspection").glob("*.png")]


def test_an_adapter_of_llavas_own_trainer_becomes_an_expert_and_comes_back(folder: Path, capsys) -> None:
    write_original(folder / "llava-lora")
    main(["convert", "llava-lora", "-o", "peft"])
    main(["convert", "llava-lora", "-o", "peft"])
    printed = capsys.readouterr().out
    assert "of the projector, for " in printed and "peft: complete, left alone\n" in printed
    assert "merge it: robustmerge merge METHOD peft EXPERT -o FOLDER\n" in printed
    convert_to_peft(folder / "llava-lora", folder / "called", "")
    for name in ("adapter_model.safetensors", "adapter_config.json", "conversion.json"):
        assert (folder / "peft" / name).read_bytes() == (folder / "called" / name).read_bytes()
    main(["merge", "average", "peft", "-o", "merged"])
    main(["convert", "peft", "-o", "llava-lora-again", "--to", "original"])
    for name in ("adapter_model.bin", "non_lora_trainables.bin"):
        before, after = (TensorFile(folder / place / name) for place in ("llava-lora", "llava-lora-again"))
        assert before.names == after.names
        assert all(torch.equal(before.get(tensor), after.get(tensor)) for tensor in before.names)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["llava-lora", "-o", "out"], "without it the projector of the base is taken"),
        (["llava-lora", "-o", "out", "--like", "a"], "like is for to=original (like)"),
        (["a", "-o", "out"], "a is no adapter in LLaVA's own format"),
        (["llava-lora", "-o", "a"], "holds an adapter already, and no conversion.json"),
        (["nowhere", "-o", "out"], "there is no folder nowhere"),
    ],
)
def test_what_cannot_be_converted_is_one_message(folder: Path, capsys, words: list[str], message: str) -> None:
    write_original(folder / "llava-lora", projector=None)
    refuse("convert", *words)
    assert message in capsys.readouterr().err
    assert not (folder / "out").exists()
