"""Prefetching of pictures during the work of a GPU: the same answers, and errors where they belong."""

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
def test_prefetching_changes_no_answer_and_no_error(base, tmp_path, broken):
    examples = [example for example in draw_examples(tmp_path, 12) if example.image is not None]
    write_examples(tmp_path / "test.jsonl", examples)
    (tmp_path / examples[broken].image).write_bytes(b"no picture")
    settings = Generation("task", "{text}", TEMPLATE, max_new_tokens=4, batch_size=3)
    generate, answers = Generator(base, TEMPLATE), []
    for prefetches in (False, True):
        generate.prefetches = prefetches
        generate.features.clear()
        address = Address(tmp_path, tmp_path / f"{prefetches}.jsonl", {"stage": "predict"})
        predict(address, settings, tmp_path / "test.jsonl", generate, print, progress=False)
        answers.append(read_predictions(address.path))
    assert answers[0] == answers[1]
    assert [answer.error is not None for answer in answers[0]] == [n == broken for n in range(len(examples))]
    assert len(generate.prefetched) <= 1


def test_on_a_cpu_nothing_is_prefetched(base, tmp_path):
    generate = Generator(base, TEMPLATE)
    generate.prefetch(draw_examples(tmp_path, 3), tmp_path)
    assert not generate.prefetched
