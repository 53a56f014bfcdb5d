"""Pictures that are read beside the work of a GPU: the same answers, and errors where they belong."""

from __future__ import annotations

import pytest

from eval.predict import predict
from eval.settings import Generation
from llava_ext.generate import Generator
from robustmerge.stage.address import Address
from robustmerge.stage.records import read_predictions, write_examples
from tests.tiny_model import TEMPLATE, draw_examples, write_base


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base") / "base")


@pytest.mark.parametrize("broken", [0, 3])
def test_what_is_read_ahead_changes_no_answer_and_no_error(base, tmp_path, broken):
    examples = [example for example in draw_examples(tmp_path, 12) if example.image is not None]
    write_examples(tmp_path / "test.jsonl", examples)
    (tmp_path / examples[broken].image).write_bytes(b"no picture")
    settings = Generation("task", "{text}", TEMPLATE, max_new_tokens=4, batch_size=3)
    generate, told = Generator(base, TEMPLATE), []
    for reads_ahead in (False, True):
        generate.reads_ahead = reads_ahead
        generate.features.clear()
        address = Address(tmp_path, tmp_path / f"{reads_ahead}.jsonl", {"stage": "predict"})
        predict(address, settings, tmp_path / "test.jsonl", generate, print, progress=False, ahead=generate.ahead)
        told.append(read_predictions(address.path))
    assert told[0] == told[1]
    assert [answer.error is not None for answer in told[0]] == [n == broken for n in range(len(examples))]
    assert len(generate.coming) <= 1


def test_on_a_cpu_nothing_is_read_ahead(base, tmp_path):
    generate = Generator(base, TEMPLATE)
    generate.ahead(draw_examples(tmp_path, 3), tmp_path)
    assert not generate.coming
