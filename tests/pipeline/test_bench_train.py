"""The benchmark of training on a tiny model: that it trains by both ways and compares; never how long it takes."""

from __future__ import annotations

import dataclasses

import pytest

from pipeline.tools.bench import training
from pipeline.tools.bench.processes import Cost
from pipeline.tools.bench.training import SMALL, Way, Workload
from pipeline.tools.bench.training_work import train
from robustmerge.stage.settings import UserError

QUICK = dataclasses.replace(SMALL, seconds=0.01, rows=8, ways=(Way("plain", True, 2), Way("cpu", True, 2)))


def run_in_this_process(work, inputs):
    assert work == training.WORK
    return [Cost(0.0, 0.0, 1.0, train(**values)) for values in inputs]


def test_our_training_and_the_plain_loop_train_on_the_same_rows(tmp_path):
    *_, table = training.bench(QUICK, tmp_path, run_in_this_process)
    plain, ours = table["rows"]
    assert plain["tokens"] / plain["rows"] == ours["tokens"] / ours["rows"] > 16
    assert all(row["steps"] >= 1 and row["rows"] == 4 * row["steps"] and row["operations"] > 0 for row in table["rows"])
    assert (next(tmp_path.glob("expert-*")) / "adapter_model.safetensors").exists()
    markdown = training.format_table({**table, "peak": plain["operations"] / plain["wall"]})
    assert "| peft and transformers, by hand |" in markdown and "| `trainer=cpu`" in markdown
    assert " 1.00 | 100 % |" in markdown


def test_a_way_that_fails_is_a_row_that_says_why(tmp_path):
    def run(work, inputs):
        raise UserError("CUDA out of memory")

    *_, table = training.bench(QUICK, tmp_path, run)
    assert training.format_table(table).count("CUDA out of memory") == 2


def test_on_a_gpu_every_way_has_its_counterpart_and_zero_3_is_measured():
    ways = Workload().ways
    ours = [(way.checkpointing, way.batch) for way in ways if way.engine == "single_gpu"]
    assert ours == [(way.checkpointing, way.batch) for way in ways if way.engine == "plain"]
    assert {"zero3", "zero3_offload"} < {way.engine for way in ways}
    with pytest.raises(UserError, match="there is no GPU here; --small"):
        training.find_gpu()
