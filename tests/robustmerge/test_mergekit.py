"""Recipes of mergekit: what they merge to is what mergekit's formulas say, and what has no equal is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from robustmerge.cli.program import main
from robustmerge.formats.adapter import open_adapter
from robustmerge.formats.adapter_config import WEIGHTS
from robustmerge.mergekit import read_mergekit
from tests.merge_cases import random_experts, save_expert, write_expert

WEIGHTS_OF = {"a": 0.4, "b": 1.1, "c": -0.3}
EXPERTS = random_experts("abc")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, pairs in EXPERTS.items():
        write_expert(tmp_path / name, pairs)
    return tmp_path


def recipe(method: str, weights: dict[str, Any], density: float | None = None, **parameters: Any) -> dict[str, Any]:
    of_model = {} if density is None else {"density": density}
    models = [{"model": f"tiny+{name}", "parameters": {"weight": w, **of_model}} for name, w in weights.items()]
    return {"merge_method": method, "models": models, "parameters": parameters}


def merge(content: dict[str, Any]) -> dict[str, Tensor]:
    """The update that the command writes, by module."""
    Path("config.yml").write_text(json.dumps(content))  # which is YAML, too
    main(["merge", "config.yml", "-o", "out"])
    if (Path("out") / WEIGHTS).exists():
        adapter = open_adapter("out", Path("out"))
        return {name: adapter.pair(name).delta() for name in adapter.modules}
    return {name.split(".", 1)[1].removesuffix(".weight"): x for name, x in load_file("out/delta.safetensors").items()}


def updates(module: str, density: float = 1.0) -> list[Tensor]:
    """The experts' updates of a module, each trimmed as we do: the threshold's own entry is kept, too."""
    dense = [pairs[module].B @ pairs[module].A for pairs in EXPERTS.values()]
    if density == 1:
        return dense
    limits = [x.abs().flatten().sort(descending=True).values[int(density * x.numel())] for x in dense]
    return [x * (x.abs() >= limit) for x, limit in zip(dense, limits, strict=True)]


def elected_sum(xs: list[Tensor], weights: list[float], normalize: bool) -> Tensor:
    """What mergekit makes of the updates: those of the sign of their weighted sum, divided by their weights' sum."""
    weighted = torch.stack([x * w for x, w in zip(xs, weights, strict=True)])
    agrees = weighted.sign() == torch.where(weighted.sum(0) >= 0, 1.0, -1.0)
    divisor = (torch.tensor(weights)[:, None, None] * agrees).sum(0)
    divisor[divisor == 0] = 1
    return (weighted * agrees).sum(0) / (divisor if normalize else 1)


def without_both_ends(module: str, density: float, gamma: float) -> list[Tensor]:
    """The updates as mergekit's magnitude_outliers leaves them."""
    kept = []
    for x in updates(module):
        n = x.numel()
        top = min(int(gamma * n), n - int(density * n))
        order = x.abs().flatten().argsort()
        mask = torch.zeros(n)
        mask[order[n - int(density * n) - top : n - top]] = 1
        kept.append(x * mask.view_as(x))
    return kept


def selected(module: str, share: float) -> Tensor:
    """What mergekit's sce makes of the updates."""
    xs = torch.stack(updates(module))
    spread = xs.var(0, unbiased=False).flatten()
    mask = torch.zeros_like(spread)
    mask[spread.argsort(descending=True)[: int(share * len(spread))]] = 1
    xs = xs * mask.view_as(xs[0])
    agrees = xs.sign() == torch.where(xs.sum(0) >= 0, 1.0, -1.0)
    weights = xs.square().mean((1, 2), keepdim=True) * agrees
    return (weights * xs).sum(0) / weights.sum(0).clamp(min=1e-30)


def weighted_sum(xs: list[Tensor], weights: list[float]) -> Tensor:
    return sum((x * w for x, w in zip(xs, weights, strict=True)), torch.zeros_like(xs[0]))


def rescaled(xs: list[Tensor], full: list[Tensor]) -> list[Tensor]:
    return [x * (y.abs().sum() / x.abs().sum()) for x, y in zip(xs, full, strict=True)]


def without_weights(**parameters: Any) -> dict[str, Any]:
    models = [{"model": f"tiny+{name}"} for name in WEIGHTS_OF]
    return {"merge_method": "sce", "base_model": "tiny", "models": models, "parameters": parameters}


EQUAL = dict.fromkeys(WEIGHTS_OF, 0.5)
ALL = list(WEIGHTS_OF.values())


@pytest.mark.parametrize(
    ("content", "reference"),
    [
        (recipe("linear", WEIGHTS_OF), lambda m: weighted_sum(updates(m), ALL) / sum(ALL)),
        (
            recipe("linear", {"a": 0.2, "b": 0.5, "c": 0.3}, normalize=False),
            lambda m: weighted_sum(updates(m), [0.2, 0.5, 0.3]),
        ),
        (recipe("task_arithmetic", WEIGHTS_OF, **{"lambda": 0.5}), lambda m: 0.5 * weighted_sum(updates(m), ALL)),
        (recipe("task_arithmetic", WEIGHTS_OF, normalize=True), lambda m: weighted_sum(updates(m), ALL) / sum(ALL)),
        (recipe("dare_linear", WEIGHTS_OF, density=1), lambda m: weighted_sum(updates(m), ALL)),
        (recipe("ties", EQUAL, 0.5, **{"lambda": 0.7}), lambda m: 0.7 * elected_sum(updates(m, 0.5), [0.5] * 3, True)),
        (recipe("ties", WEIGHTS_OF, 0.5, normalize=False), lambda m: elected_sum(updates(m, 0.5), ALL, False)),
        (recipe("dare_ties", WEIGHTS_OF, 1.0, int8_mask=True), lambda m: elected_sum(updates(m), ALL, False)),
        (
            recipe("breadcrumbs", WEIGHTS_OF, 0.6, gamma=0.1, **{"lambda": 0.5}),
            lambda m: 0.5 * weighted_sum(without_both_ends(m, 0.6, 0.1), ALL),
        ),
        (
            recipe("breadcrumbs", WEIGHTS_OF, 0.8, gamma=0.3, rescale=True, normalize=True),
            lambda m: weighted_sum(rescaled(without_both_ends(m, 0.8, 0.3), updates(m)), ALL) / sum(ALL),
        ),
        (recipe("breadcrumbs", WEIGHTS_OF), lambda m: weighted_sum(updates(m), ALL)),
        (
            recipe("breadcrumbs_ties", WEIGHTS_OF, 0.6, gamma=0.1),
            lambda m: elected_sum(without_both_ends(m, 0.6, 0.1), ALL, False),
        ),
        (recipe("della_linear", WEIGHTS_OF), lambda m: weighted_sum(updates(m), ALL)),
        (recipe("della", EQUAL, 1.0, **{"lambda": 0.7}), lambda m: 0.7 * elected_sum(updates(m), [0.5] * 3, True)),
        (without_weights(), lambda m: selected(m, 1.0)),
        (without_weights(select_topk=0.3), lambda m: selected(m, 0.3)),
    ],
    ids=lambda value: value["merge_method"] if isinstance(value, dict) else "",
)
def test_a_recipe_merges_to_what_mergekits_formula_gives(content, reference) -> None:
    merged = merge(content)
    assert merged.keys() == EXPERTS["a"].keys()
    for module, update in merged.items():
        torch.testing.assert_close(update, reference(module), rtol=1e-4, atol=1e-5)


LISTS = {"a": [0.2, 1.0], "b": [1.0, 0.2], "c": 0.3}  # from layers.0.q to layers.1.q


@pytest.mark.parametrize(
    ("content", "reference"),
    [
        (recipe("linear", LISTS), lambda m, ws, t: weighted_sum(updates(m), ws) / 1.5),
        (
            recipe("task_arithmetic", LISTS, **{"lambda": [2.0, 4.0]}),
            lambda m, ws, t: (2 + 2 * t) * weighted_sum(updates(m), ws),
        ),
        (
            recipe("task_arithmetic", LISTS, normalize=True, **{"lambda": [2.0, 4.0]}),
            lambda m, ws, t: (2 + 2 * t) * weighted_sum(updates(m), ws) / 1.5,
        ),
        (recipe("ties", LISTS, 0.5, normalize=False), lambda m, ws, t: elected_sum(updates(m, 0.5), ws, False)),
        (
            recipe("ties", dict.fromkeys("abc", [0.5, 2.0]), 0.5),
            lambda m, ws, t: elected_sum(updates(m, 0.5), [0.5 + 1.5 * t] * 3, True),
        ),
    ],
    ids=lambda value: value["merge_method"] if isinstance(value, dict) else "",
)
def test_lists_of_numbers_go_over_the_layers_as_in_mergekit(content, reference, capsys) -> None:
    merged = merge(content)
    for t, module in enumerate(("layers.0.q", "layers.1.q")):
        weights = [w[t] if isinstance(w, list) else w for w in LISTS.values()]
        torch.testing.assert_close(merged[module], reference(module, weights, t), rtol=1e-4, atol=1e-5)
    has_note = "note: a list of numbers ends at the last layer that an adapter adapts" in capsys.readouterr().out
    assert has_note == (content["models"][0] != content["models"][1] | {"model": "tiny+a"})  # equal weights cancel


def test_lists_are_refused_for_modules_where_mergekit_takes_other_numbers(folder: Path, capsys) -> None:
    for name, module in {"deep": "layers.3.q", "head": "head"}.items():
        write_expert(folder / name, random_experts(name[0], (module,))[name[0]])
    with pytest.raises(SystemExit):
        merge(recipe("task_arithmetic", {"deep": [0, 1], "head": 1}))
    error = capsys.readouterr().err
    assert "'head' is in no numbered layer" in error and "the layers 'layers' begin with 3" in error


def test_random_pruning_is_that_of_dare_with_a_note_on_what_differs(capsys) -> None:
    read = read_mergekit(recipe("dare_ties", WEIGHTS_OF, 0.5), "config.yml")
    assert read.settings["prune"] == {"rule": "random", "density": 0.5, "rescale": True, "scope": "tensor"}
    assert (read.method, read.settings["first"], read.settings["disjoint"]) == ("dare_ties", None, "sum")
    merge(recipe("dare_linear", WEIGHTS_OF, 0.5))
    assert capsys.readouterr().out.count("note: ") == 2


def test_random_pruning_by_ranks_restores_the_sum_of_magnitudes(capsys) -> None:
    read = read_mergekit(recipe("della", EQUAL, 0.5, rescale=False), "config.yml")
    assert read.settings["prune"] == {"density": 0.5, "epsilon": 0.15, "rescale": False}
    assert (read.method, read.settings["disjoint"]) == ("della", "mean")
    alone = merge(recipe("della_linear", {"a": 1.0}, 0.5, epsilon=0.4))
    assert capsys.readouterr().out.count("note: ") == 1
    for module, pair in EXPERTS["a"].items():
        torch.testing.assert_close(alone[module].abs().sum(), pair.delta().abs().sum())
        assert 0.25 < float((alone[module] != 0).float().mean()) < 0.75


def test_the_base_among_the_models_has_no_update_but_a_weight_in_a_linear_merge() -> None:
    base = {
        "base_model": "tiny",
        "models": [{"model": "tiny", "parameters": {"weight": 2.0}}, *recipe("", EQUAL)["models"]],
    }
    read = read_mergekit({"merge_method": "task_arithmetic", **base}, "config.yml")
    assert (read.experts, read.base, read.settings["weights"]) == ({"a": "a", "b": "b", "c": "c"}, "tiny", EQUAL)
    linear = read_mergekit({"merge_method": "linear", **base}, "config.yml")
    assert linear.settings["weights"] == dict.fromkeys("abc", pytest.approx(3 * 0.5 / 3.5))


def test_parameters_of_the_merge_stand_for_those_of_its_models_and_adapters_of_one_name_keep_their_places() -> None:
    models = [{"model": "x/base+ann/lora@v1"}, {"model": "x/base+bob/lora", "parameters": {"weight": 1}}]
    content = {
        "merge_method": "ties",
        "models": models,
        "parameters": {"weight": 1.0, "density": 0.3},
        "dtype": "float16",
    }
    read = read_mergekit(content, "config.yml")
    assert read.experts == {"ann/lora@v1": "ann/lora@v1", "bob/lora": "bob/lora"}
    assert read.settings["prune"] == {"rule": "magnitude", "density": 0.3, "scope": "tensor"}
    assert (read.settings["out"], read.base) == ({"dtype": "float16"}, "x/base")


SLICES = {"merge_method": "ties", "slices": []}
TWO = recipe("ties", {"a": 1, "b": 1}, 0.5)
FOREIGN = [*TWO["models"], {"model": "other+c", "parameters": {"weight": 1, "density": 0.5}}]
RANKED = [TWO["models"][0], {"model": "tiny+b", "parameters": {"weight": 1, "density": 0.5, "epsilon": 0.1}}]
APART = [*TWO["models"], {"model": "tiny+c", "parameters": {"weight": 1, "density": 0.7}}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (SLICES, "slices has no equal here: adapters are merged whole"),
        ({**TWO, "tokenizer_source": "union"}, "tokenizer_source has no equal here: an adapter has no tokenizer"),
        ({**TWO, "merge_method": "slerp"}, "mergekit's 'slerp' has no equal here; choose one of breadcrumbs"),
        ({**TWO, "models": FOREIGN}, "the adapters must have one base, got tiny, other"),
        ({**TWO, "models": APART}, "the models must have one density here, got 0.5, 0.7"),
        ({**TWO, "models": [*TWO["models"], TWO["models"][0]]}, "'a' stands there twice"),
        ({**TWO, "base_model": "tiny", "models": [{"model": "tiny"}]}, "there is no adapter to merge"),
        ({**TWO, "models": [{"model": "tiny+a"}]}, "every model needs a weight"),
        ({**TWO, "dtype": "int64"}, "unknown dtype 'int64'"),
        (
            {**TWO, "parameters": {"density": [0, 1]}},
            "density must be one number for the whole model, no list, got [0, 1]",
        ),
        ({**TWO, "parameters": {"weight": True}}, "weight must be one number"),
        ({**TWO, "parameters": {"weight": [1, "a"]}}, "or a list of numbers over the layers, got [1, 'a']"),
        ({**TWO, "parameters": {"weight": [{"filter": "mlp", "value": 1}]}}, "weight must be one number, or a list of"),
        (recipe("linear", {"a": [0, 1], "b": [0.5, 1]}), "add up to one number in all layers, got 0.5, 2"),
        (recipe("task_arithmetic", {"a": [0, 1], "b": [1, 0, 1]}, normalize=True), "must be equally long"),
        (recipe("ties", {"a": [-1, 1], "b": [-1, 1]}, 0.5), "with normalize the weights must be equal and not 0"),
        (recipe("breadcrumbs", EQUAL, 0.5, gamma=0), "with gamma 0 mergekit drops every entry"),
        (recipe("della", EQUAL, 0.9), "must be in (0, 1], got 0.9 and 0.15"),
        (recipe("della", EQUAL, 0.5, gamma=0.1), "'gamma' has no equal with della; choose one of density, epsilon"),
        (recipe("sce", EQUAL), "'weight' has no equal with sce"),
        ({**TWO, "merge_method": "della", "models": RANKED}, "the models must have one epsilon here, got 0.1, 0.15"),
        ({**TWO, "parameters": {"normalize": 1}}, "normalize must be true or false, got 1"),
        ({**TWO, "parameters": {"rescale": True}}, "'rescale' has no equal with ties; choose one of density"),
        (recipe("task_arithmetic", EQUAL, 0.5), "'density' has no equal with task_arithmetic; choose one of weight"),
        (recipe("ties", WEIGHTS_OF, 0.5), "with normalize the weights must be equal and not 0"),
        (recipe("ties", EQUAL, 1.5), "density must be in (0, 1], got 1.5"),
        (recipe("linear", EQUAL, normalize=False), "without normalize the weights must add up to 1"),
        (recipe("linear", {"a": 1, "b": -1}), "the weights add up to 0"),
        ({**recipe("linear", EQUAL), "base_model": "tiny"}, "linear has no base, unless as one of the models"),
    ],
)
def test_what_has_no_equal_is_refused(capsys, content: dict[str, Any], message: str) -> None:
    with pytest.raises(SystemExit) as ended:
        merge(content)
    assert ended.value.code == 2 and message in capsys.readouterr().err
    assert not Path("out").exists()


def test_adapters_that_are_more_than_lora_are_refused(folder: Path, capsys) -> None:
    save_expert(folder / "dora", use_dora=True)
    save_expert(folder / "saved", modules_to_save=["projector"])
    with pytest.raises(SystemExit):
        merge(recipe("linear", {"dora": 1, "saved": 1}))
    error = capsys.readouterr().err
    assert "expert 'dora' has DoRA, which mergekit" in error and "expert 'saved' has modules_to_save" in error
