"""What is read of the losses that a training has left, and what its end says of them. Needs nothing."""

from __future__ import annotations

import json
from pathlib import Path

from llava_ext.settings import LOSSES, TRAINING_RECORD
from pipeline.losses import describe_losses, read_training
from robustmerge.stage.address import Address, address_foreign
from tests.plans import make_plan


def write_losses(address: Address, *losses: float) -> None:
    address.path.mkdir(parents=True)
    lines = [{"step": step, "loss": loss, "learning_rate": 0.1} for step, loss in enumerate(losses, start=1)]
    (address.path / LOSSES).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_end_of_a_training_says_by_how_much_losses_fell_and_warns_where_one_did_not(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "tasks=[vqav2,rec,ocrvqa]")
    one, other, unfinished = plan.experts.values()
    write_losses(one, 2.0, 1.0, 0.5)
    assert describe_losses([one, unfinished]) == ["losses fell by 75 %, from the first to the last tenth of the steps"]
    write_losses(other, 0.5, 0.1, 0.6)
    assert describe_losses([one, other]) == [
        "losses fell by -20 to 75 %, from the first to the last tenth of the steps",
        f"warning: {other.short} may have learned nothing: its loss did not fall, from 0.5 in the first tenth of the "
        "steps to 0.6 in the last",
    ]
    assert describe_losses([unfinished]) == []


def test_samples_are_those_of_the_steps_and_an_adapter_from_elsewhere_has_no_training(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "tasks=[vqav2]", "model.recipe.global_batch=16")
    (expert,) = plan.experts.values()
    write_losses(expert, 2.0, 1.0)
    training = read_training(expert)
    assert training is not None and training.samples == 32 and training.learning_rates == (0.1, 0.1)
    assert read_training(address_foreign(expert.path)) is None
    counts = {"trained": 32, "truncated": 1, "skipped": 2, "ignored": 4}
    record = {"rows": {"vqav2": counts}, "unread_pictures": {"rows": 8, "samples": 9}}
    (expert.path / TRAINING_RECORD).write_text(json.dumps(record))
    left_out = read_training(expert)
    assert left_out is not None and (training.left_out, left_out.left_out) == (0, 14)
