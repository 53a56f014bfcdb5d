"""Whatever peft can make of linear LoRA is read, merged and written without a change of the function, or refused.

Property tests through real peft, over drawn configurations. `pytest tests/test_adapter_laws.py`
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robustmerge.adapter import AdapterWriter, open_adapter
from tests.merge_cases import load_with_peft, rewrite_tensors, save_expert

# peft takes the bias of lora_B for a damaged matrix; a drawn pattern may name nothing
pytestmark = pytest.mark.filterwarnings("ignore:Adapter 'default'", "ignore:The following .*_pattern keys")
# the first pattern that matches counts, and peft sorts them when it saves: what a file says is the order of the file
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PATTERNS = st.dictionaries(
    st.sampled_from(["layers.0.q", r"\d\.v", "q", "^layers.1.v"]), st.integers(1, 5), max_size=2
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
    kept = draw(st.sampled_from(["nothing", "projector", "lora_only", "all"]))
    if kept == "projector" and isinstance(config["target_modules"], list):
        config["modules_to_save"] = ["projector"]
    elif kept in ("lora_only", "all"):
        config["bias"] = kept
    return config


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()


def write_again(source: Path, target: Path) -> None:
    """Read an adapter and write what was read, nothing merged."""
    adapter = open_adapter(source)
    with AdapterWriter(target, adapter.config) as writer:
        for module in adapter.modules:
            writer.add_pair(module, adapter.pair(module), adapter.magnitude(module), adapter.bias(module))
        for name in adapter.extras:
            writer.add_extra(name, adapter.extra(name))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
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
