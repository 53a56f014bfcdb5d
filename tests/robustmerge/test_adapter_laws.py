"""Whatever peft can make of linear LoRA is read, merged and written without a change of the function, or refused.

Property tests through real peft, over drawn configurations.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robustmerge.formats.adapter import open_adapter
from robustmerge.formats.adapter_writer import AdapterWriter
from robustmerge.merging import write_merged
from robustmerge.method import Method
from robustmerge.method_parts import Out
from robustmerge.stage.settings import UserError
from tests.merge_cases import QUIET, load_with_peft, method_of, rewrite_tensors, save_expert

# peft takes the bias of lora_B for a damaged matrix; a drawn pattern may name nothing
pytestmark = pytest.mark.filterwarnings("ignore:Adapter 'default'", "ignore:The following .*_pattern keys")
# the first pattern that matches counts, and peft sorts them when it saves: what a file says is the order of the file
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PATTERNS = st.dictionaries(
    st.sampled_from(["layers.0.q", r"\d\.v", "q", "^layers.1.v", "s.0.q"]), st.integers(1, 5), max_size=2
).map(lambda pattern: dict(sorted(pattern.items())))


@st.composite
def lora_configs(draw: st.DrawFn) -> dict[str, Any]:
    """A LoraConfig of Tiny, as its keyword arguments."""
    config: dict[str, Any] = {
        "r": draw(st.integers(1, 4)),
        "lora_alpha": draw(st.sampled_from([1, 6, 16.5])),
        "use_rslora": draw(st.booleans()),
        "target_modules": draw(st.sampled_from([["q", "v"], ["v"], r"layers\.\d\.q|projector"])),
        "rank_pattern": draw(PATTERNS),
        "alpha_pattern": draw(PATTERNS),
    }
    kind = draw(st.sampled_from(["plain", "use_dora", "lora_bias"]))
    if kind != "plain":
        config[kind] = True
    config["bias"] = draw(st.sampled_from(["none", "lora_only", "all"]))
    if config["bias"] != "all" and isinstance(config["target_modules"], list) and draw(st.booleans()):
        config["modules_to_save"] = ["projector"]
    return config


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()


def write_again(source: Path, target: Path) -> None:
    """Read an adapter and write what was read, nothing merged."""
    adapter = open_adapter(source)
    with AdapterWriter(target, adapter.config, adapter.written_names) as writer:
        for module in adapter.modules:
            writer.add_pair(module, adapter.pair(module), adapter.magnitude(module), adapter.bias(module))
        for name in adapter.extras:
            writer.add_extra(name, adapter.extra(name))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(config=lora_configs(), dtype=st.sampled_from(DTYPES), bin_file=st.booleans())
def test_what_is_read_and_written_again_is_the_same_function(
    config: dict[str, Any], dtype: torch.dtype, bin_file: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "expert", Path(folder) / "again"
        expected = save_expert(source, dtype=dtype, **config)
        rewrite_tensors(source, lambda tensors: {k: x.to(dtype) for k, x in tensors.items()}, bin_file)
        write_again(source, target)
        assert_same(load_with_peft(target), expected)
        adapter = open_adapter(target)
        assert (adapter.is_dora, adapter.has_lora_bias) == (bool(config.get("use_dora")), bool(config.get("lora_bias")))


ELECTED = {"combine": "elected", "strength": 1.0}
NEUTRAL = {
    "factors": Method("neutral", strength=1.0),
    "each": Method("neutral", product="each", strength=1.0),
    "delta": Method("neutral", space="delta", strength=1.0),
    "delta, cut": Method("neutral", space="delta", out=Out(rank="experts"), **ELECTED),
    "knots": Method("neutral", space="knots", **ELECTED),
    "core": Method("neutral", space="core", **ELECTED),
    "mean": Method("neutral", space="core", combine="mean", strength=1.0),
}


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(config=lora_configs(), neutral=st.sampled_from(sorted(NEUTRAL)), dtype=st.sampled_from(DTYPES))
def test_one_expert_and_a_neutral_method_give_back_the_same_function_in_every_space(
    config: dict[str, Any], neutral: str, dtype: torch.dtype
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        expected = save_expert(Path(folder) / "expert", dtype=dtype, **config)
        write_merged(Path(folder) / "merged", NEUTRAL[neutral], {"expert": Path(folder) / "expert"}, **QUIET)
        assert_same(load_with_peft(Path(folder) / "merged"), expected)


METHODS = {
    "robustmerge": method_of("robustmerge", scale__empty_row="drop"),
    "robustmerge_eq5": method_of("robustmerge_eq5", scale__empty_row="drop"),
    "ties": method_of("ties", space="delta", out__rank="experts"),
    "knots_ties": method_of("knots_ties"),
    "task_arithmetic": method_of("task_arithmetic", space="core", strength=0.5, weights={"b": -2.0}),
    "svd": method_of("svd", strength=0.5),
}
SHARES = {"task_arithmetic": (0.5, -1.0, 0.5), "svd": (0.5, 0.5, 0.5)}  # of the updates; other methods are not linear
OWN = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")  # what experts need not have in common


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(configs=st.tuples(lora_configs(), lora_configs(), lora_configs()), name=st.sampled_from(sorted(METHODS)))
def test_experts_of_any_ranks_and_alphas_merge_into_what_peft_loads_or_are_refused(
    configs: tuple[dict[str, Any], ...], name: str
) -> None:
    with tempfile.TemporaryDirectory() as root:
        folders = {expert: Path(root) / expert for expert in "abc"}
        for (expert, folder), dtype, config in zip(folders.items(), DTYPES, configs, strict=True):
            own = {key: config[key] for key in OWN}
            save_expert(folder, seed=ord(expert), **{**configs[0], **own})
            rewrite_tensors(folder, lambda tensors, dtype=dtype: {k: x.to(dtype) for k, x in tensors.items()})
        adapters = [open_adapter(folder) for folder in folders.values()]
        try:
            write_merged(Path(root) / "merged", METHODS[name], folders, **QUIET)
        except UserError as error:
            assert "robustmerge" in name, error
            assert "rank" in str(error)
            assert any(adapters[0].ranks != a.ranks for a in adapters)
            return
        assert torch.isfinite(load_with_peft(Path(root) / "merged")).all()
        merged = open_adapter(Path(root) / "merged")
        for extra in merged.extras:
            mean = sum(a.extra(extra).float() for a in adapters) / 3
            torch.testing.assert_close(merged.extra(extra), mean)
        for module in merged.modules if merged.is_dora else ():
            mean = sum(a.magnitude(module) for a in adapters) / 3
            torch.testing.assert_close(merged.magnitude(module), mean)
        for module in merged.modules if merged.has_lora_bias else ():
            shares = SHARES.get(name, (1 / 3, 1 / 3, 1 / 3))
            expected = sum(share * a.bias(module) for share, a in zip(shares, adapters, strict=True))
            torch.testing.assert_close(merged.bias(module), expected)
