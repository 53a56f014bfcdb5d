"""The convert stage: brings adapters in LLaVA's format into that of PEFT, after fetching those of the Hub."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.addresses import Adapter
from pipeline.events import say
from pipeline.plan import Plan
from pipeline.work_items import describe_item, drop_finished, run_in_turn
from robustmerge.formats.llava.names import ADAPTER_FILES
from robustmerge.hub.download import fetch_pinned
from robustmerge.hub.pins import Pinned
from robustmerge.hub.places import HUB
from robustmerge.stage.address import Address, run_stage


def convert(plan: Plan, adapters: Iterable[Adapter]) -> None:
    """Convert the adapters that are in LLaVA's format; leave the others alone."""
    originals = ((adapter.address, adapter.original) for adapter in adapters if adapter.original is not None)
    items = []
    for address, original in drop_finished(originals):
        fetch(original, ADAPTER_FILES)
        base = address.identity["settings"]["base"]
        items.append(describe_item("convert", address, original=str(original.path), base=base))
    run_in_turn(plan, "convert", "experts", items)


def fetch(address: Address, files: Sequence[str]) -> None:
    """Fetch what an address on the Hub names; no-op for any other address."""
    if address.identity.get("stage") != HUB:
        return
    fetch_pinned(Pinned(address.identity["repository"], address.identity["revision"]), files)


def work_convert(item: dict) -> None:
    from robustmerge.formats.llava.to_peft import convert_to_peft

    original, base = Path(item["original"]), item["base"]
    run_stage(Address.from_json(item["address"]), lambda folder: convert_to_peft(original, folder, base), say)
