"""The steps before everything else where something comes from elsewhere: fetch it, bring it into our format."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from robustmerge.runs import Address
from scripts.given import HUB
from scripts.items import item_of, logs_of
from scripts.jobs import Job, run_jobs
from scripts.line import Line

ADAPTER_FILES = (
    "adapter_config.json", "adapter_model.*", "non_lora_trainables.bin", "config.json", "README.md",
)  # fmt: skip
MODEL_FILES = ("*.json", "*.model", "*.txt", "*.jinja", "model*.safetensors")


def fetch(address: Address, files: Sequence[str]) -> None:
    """Have what an address of the Hub names on this machine; of any other nothing is to be done."""
    if address.identity.get("stage") != HUB:
        return
    from robustmerge.downloads import fetch_pinned, is_fetched
    from robustmerge.pins import Pinned

    found = Pinned(address.identity["repository"], address.identity["revision"])
    if not is_fetched(found, files):
        fetch_pinned(found, files, print)


def fetch_bases(lines: Sequence[Line]) -> None:
    """Fetch the bases that are checkpoints of the Hub."""
    for address in {line.base.path: line.base for line in lines if line.config.model.base is None}.values():
        fetch(address, MODEL_FILES)


def convert(lines: Sequence[Line], only: Collection[Path] | None = None) -> None:
    """Bring every adapter that the lines name in LLaVA's own format into ours, those of the Hub fetched before.

    only: the folders that are wanted of what becomes of them.
    """
    items = {}
    for line in lines:
        for address, original in line.conversions.values():
            if (only is None or address.path in only) and not address.is_complete():
                base = address.identity["settings"]["base"]
                fetch(original, ADAPTER_FILES)
                items[address.path] = item_of("convert", address, original=str(original.path), base=base)
    run_jobs("convert", [Job("experts", list(items.values()))] if items else [], 1, logs_of(lines))
