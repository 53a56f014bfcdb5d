"""Every published method but RobustMerge against what its authors' own code makes of the same experts.

The cases in tests/golden/merging say where they come from, with which settings and within which tolerance. Updates in
delta space are merged whole and again a row at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from robustmerge import rules, spaces
from robustmerge.algebra import merge_models
from robustmerge.formats.adapter import LoraPair
from robustmerge.method import Method, read_method
from tests.merge_cases import Case, assert_within, cases

Settings = dict[str, Any]  # hyperparameters as the authors name them


class Row(NamedTuple):
    """A kind of output: how its tensors are named in a case, and our method for the case's hyperparameters."""

    folder: str
    output: str
    method: Callable[[Settings], Method]
    blocks: bool = False  # whether it is merged in blocks
    parts: tuple[str, ...] = ("delta",)
    mask: str = ""  # of stored random masks, the name


def ties(space: str) -> Callable[[Settings], Method]:
    return lambda h: read_method(
        "ties",
        space=space,
        prune__scope="model",
        prune__density=h["topk_percent"] / 100,
        disjoint=h["merge_func"].removeprefix("dis-"),
        strength=h["lambda"],
    )


def variant(h: Settings, name: str) -> Settings:
    return next(v for v in h["variants"] if v["name"] == name)


def dare(h: Settings) -> Method:
    v = variant(h, "dare_linear")
    return read_method("dare", space="delta", prune__density=1 - v["drop_rate"], strength=v["lambda"])


def dare_ties(h: Settings) -> Method:
    v = variant(h, "dare_ties")
    return read_method(
        "dare_ties",
        space="delta",
        first__density=1 - v["drop_rate"],
        prune__density=1 - v["param_value_mask_rate"],
        strength=v["lambda"],
    )


def pcb(h: Settings) -> Method:
    return read_method("pcb", space="delta", balance__density=h["pcb_ratio"], strength=h["lambda"])


def pcb_vision(h: Settings) -> Method:
    v = h["vision"]
    balance = {"balance__variant": "vision", "balance__density": v["att_ratio"]}
    return read_method("pcb", space="delta", strength=v["lams"], **balance)


def knots(name: str) -> Callable[[Settings], Method]:
    def method(h: Settings) -> Method:
        first = {"first__density": 1 - h["dare_pruning_coeffs"]} if h["dare"] else {}
        density, strength = h["topK"] / 100, h["scaling_coeffs"]
        return read_method(name, prune__density=density, disjoint=h["merging_type"], strength=strength, **first)

    return method


def core_sum(h: Settings) -> Method:
    return read_method("task_arithmetic", space="core", strength=variant(h, "ta")["scaling_coeffs"])


def core_ties(h: Settings) -> Method:
    v = variant(h, "ties")
    return read_method("core_ties", strength=v["scaling_coeffs"], prune__density=v["topK"] / 100)


def breadcrumbs(name: str) -> Callable[[Settings], Method]:
    def method(h: Settings) -> Method:
        v = h["variants"][name]
        elects = {"combine": "elected", "disjoint": "sum"} if v["sign_consensus"] else {}
        prune = {"prune__density": v["density"], "prune__skip": v["gamma"]}
        return read_method("breadcrumbs", space="delta", strength=v["lam"], **prune, **elects)

    return method


def della(name: str) -> Callable[[Settings], Method]:
    def method(h: Settings) -> Method:
        v = h["variants"][name]
        combine = "elected" if v["sign_consensus"] else "sum"
        prune = {"prune__density": v["density"], "prune__epsilon": v["epsilon"]}
        return read_method("della", space="delta", combine=combine, strength=v["lam"], **prune)

    return method


def sce(h: Settings) -> Method:
    return read_method("sce", space="delta", prune__density=h["variants"]["top0.3"]["select_topk"])


def sce_of_all(h: Settings) -> Method:
    return read_method("sce", space="delta", prune={"rule": "none", "density": h["variants"]["top1.0"]["select_topk"]})


ROWS = {
    "ties": Row("ties_official", "output", ties("delta"), blocks=True),
    "ties_factors": Row("ties_official", "output", ties("factors"), parts=("lora_A", "lora_B")),
    "dare": Row("dare_official", "output.dare_linear", dare, blocks=True, mask="mask.dare_linear.{}.{}.delta"),
    "dare_ties": Row("dare_official", "output.dare_ties", dare_ties, blocks=True, mask="mask.dare_ties.{}.{}.delta"),
    "pcb": Row("pcb_official", "output", pcb, blocks=True),
    "pcb_vision": Row("pcb_official", "output_vision", pcb_vision, blocks=True),
    "knots_ties": Row("knots_ties", "output", knots("knots_ties")),
    "knots_dare_ties": Row("knots_dare_ties", "output", knots("knots_dare_ties"), mask="mask.{}.{}.sV"),
    **{
        name: Row("breadcrumbs", f"output.{name}", breadcrumbs(name), blocks=True)
        for name in ("breadcrumbs", "breadcrumbs_ties", "breadcrumbs_top_only")
    },
    **{
        name: Row("della", f"output.{name}", della(name), blocks=True, mask=f"mask.{name}.{{}}.{{}}.delta")
        for name in ("della", "della_linear")
    },
    "sce": Row("sce", "output.top0.3", sce, blocks=True),
    "sce_of_all": Row("sce", "output.top1.0", sce_of_all, blocks=True),
    "core_sum": Row("core_space", "output.ta", core_sum),
    "core_ties": Row("core_space", "output.ties", core_ties),
}
FROBENIUS = 1e-5  # relative, of the whole module


def stored_masks(monkeypatch: pytest.MonkeyPatch, case: Case, name: str) -> None:
    """Random pruning takes the entries that the case says, row after row, instead of drawing."""

    class Rows:
        def __init__(self, mask: Tensor):
            self.mask, self.taken = mask, 0

        def take(self, n: int) -> Tensor:
            self.taken += n
            return self.mask[self.taken - n : self.taken]

    def keep_stored(xs: list[Tensor], prune: object, limits: object, draws: list[Rows]) -> list[Tensor]:
        return [x * draw.take(len(x)) for x, draw in zip(xs, draws, strict=True)]

    def rows_of(seed: int, expert: str, module: str, part: str) -> Rows:
        return Rows(case.tensors[name.format(expert, module)])

    monkeypatch.setattr("robustmerge.thresholds.generator_for", rows_of)
    monkeypatch.setitem(rules.PRUNE, "random", keep_stored)


def merged(row: Row, case: Case) -> dict[str, LoraPair | Tensor]:
    experts = {e: {m: case.pair(e, m) for m in case.modules} for e in case.experts}
    return merge_models(experts, row.method(case.about["hyperparameters"]))


def part_of(update: LoraPair | Tensor, part: str) -> Tensor:
    if part == "delta":
        return update.delta() if isinstance(update, LoraPair) else update
    return getattr(update, part.removeprefix("lora_"))


def test_all_cases_are_here() -> None:
    authors = ("ties_official", "dare_official", "pcb_official", "knots_ties", "knots_dare_ties", "core_space")
    of_mergekit = {"breadcrumbs": 3, "della": 2, "sce": 3}
    found = {row.folder: len(cases(row.folder)) for row in ROWS.values()}
    assert found == dict.fromkeys(authors, 5) | of_mergekit


@pytest.mark.parametrize("path", cases("della"), ids=lambda path: path.stem)
def test_dellas_probabilities_are_mergekits(path: Path) -> None:
    case = Case(path)
    prune = della("della")(case.about["hyperparameters"]).prune
    stored = case.group("aux.keep_prob.della.expert0.")
    assert stored
    for module, probabilities in stored.items():
        found = rules.keep_probability(case.pair("expert0", module).delta(), prune)
        torch.testing.assert_close(found, probabilities, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("row", "path", "block"),
    [
        pytest.param(row, path, block, id=f"{name}-{path.stem}-{'whole' if block is None else 'rows'}")
        for name, row in ROWS.items()
        for path in cases(row.folder)
        for block in ([None, 1] if row.blocks else [None])
    ],
)
def test_a_method_equals_its_authors_code(
    row: Row, path: Path, block: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(path)
    if block is not None:
        monkeypatch.setattr(spaces, "BLOCK", block)
    if row.mask:
        stored_masks(monkeypatch, case, row.mask)
    for module, update in merged(row, case).items():
        for part in row.parts:
            name = f"{row.output}.{module}.{part}"
            found, reference = part_of(update, part), case.tensors[name]
            if case.about["output_has_nan"]:  # of an expert of zeros; ours leaves it out
                assert reference.isnan().all()
                assert found.isfinite().all()
                assert found.any()
                continue
            assert_within(found, reference, case.about["tolerance"], name)
            assert torch.linalg.norm(found - reference) <= FROBENIUS * torch.linalg.norm(reference), name
