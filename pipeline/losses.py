"""The losses that trainings have left, as the report and the end of a training read them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from eval.report.results import Training
from llava_ext.settings import LOSSES, TRAINING_RECORD
from robustmerge.stage.address import Address
from robustmerge.stage.files import parse_json, read_json, read_text


def read_training(address: Address) -> Training | None:
    """How a model was trained; None where it was not trained here, or its losses are not at hand."""
    file = address.path / LOSSES
    if address.identity["stage"] != "train" or not file.exists():
        return None
    steps = [parse_json(line) for line in read_text(file, "the losses of a training").splitlines()]
    samples = len(steps) * address.identity["settings"]["recipe"]["global_batch"]
    losses, rates = (tuple(float(step[key]) for step in steps) for key in ("loss", "learning_rate"))
    return Training(samples, losses, rates, _count_left_out(address.path / TRAINING_RECORD))


def _count_left_out(file: Path) -> int:
    """The rows that a training's record says were not trained on; without a record nothing is known of any."""
    record = read_json(file, "the record of a training") if file.exists() else {}
    counts = record.get("rows", {}).values()
    unread = record.get("unread_pictures", {}).get("rows", 0)
    return unread + sum(of_task["skipped"] + of_task["ignored"] for of_task in counts)


def describe_losses(addresses: Iterable[Address]) -> list[str]:
    """By how much the losses of trained models fell, in a line; and a warning for each whose loss did not."""
    trainings = {address.short: training for address in addresses if (training := read_training(address)) is not None}
    if not trainings:
        return []
    falls = sorted(training.fell_by for training in trainings.values())
    span = f"{falls[0]:.0f} %" if len(falls) == 1 else f"{falls[0]:.0f} to {falls[-1]:.0f} %"
    return [f"losses fell by {span}, from the first to the last tenth of the steps"] + [
        f"warning: {name} may have learned nothing: its loss did not fall, from {one.first:.3g} in the first tenth of "
        f"the steps to {one.last:.3g} in the last"
        for name, one in trainings.items()
        if one.fell_by <= 0
    ]
