"""The steps before everything else where something comes from elsewhere: fetch it, bring it into our format."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from pipeline.jobs import Job, run_jobs, say
from pipeline.plan import Plan
from pipeline.todo import item_of, logs_of
from robustmerge.hub.places import HUB
from robustmerge.stage.address import Address, run_stage

ADAPTER_FILES = (
    "adapter_config.json", "adapter_model.*", "non_lora_trainables.bin", "config.json", "README.md",
)  # fmt: skip


def fetch(address: Address, files: Sequence[str]) -> None:
    """Have what an address of the Hub names on this machine; of any other nothing is to be done."""
    if address.identity.get("stage") != HUB:
        return
    from robustmerge.hub.download import fetch_pinned, is_fetched
    from robustmerge.hub.pins import Pinned

    found = Pinned(address.identity["repository"], address.identity["revision"])
    if not is_fetched(found, files):
        fetch_pinned(found, files, print)


def convert(plans: Sequence[Plan], only: Collection[Path] | None = None) -> None:
    """Bring every adapter that the lines name in LLaVA's own format into ours, those of the Hub fetched before.

    only: the folders that are wanted of what becomes of them.
    """
    items = {}
    for plan in plans:
        for address, original in plan.conversions.values():
            if (only is None or address.path in only) and not address.is_complete():
                base = address.identity["settings"]["base"]
                fetch(original, ADAPTER_FILES)
                items[address.path] = item_of("convert", address, original=str(original.path), base=base)
    run_jobs("convert", [Job("experts", list(items.values()))] if items else [], 1, logs_of(plans))


def work_convert(item: dict) -> None:
    from llava_ext.original.to_peft import convert_to_peft

    original, base = Path(item["original"]), item["base"]
    run_stage(Address.from_json(item["address"]), lambda folder: convert_to_peft(original, folder, base), say)
