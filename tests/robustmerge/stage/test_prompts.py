"""What every task asks, and how answers are decoded, is pinned under both protocols. Needs no model.

After a change that is meant: python -m tests.robustmerge.stage.test_prompts > tests/golden/prompts.json
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_ext.conversation import render as render_conversation
from llava_ext.generate import generation_config
from pipeline.config import read_config
from pipeline.program import compose, list_options
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.prompts import render
from robustmerge.stage.records import Example

GOLDEN = REPOSITORY / "tests/golden/prompts.json"
EXAMPLE = Example(
    question_id="q",
    text="What is on the table?\nAnswer the question using a single word or phrase.",
    answer="fork",
    image="images/q.png",
    choices=("fork", "{knife}"),
)
TOKENIZER = SimpleNamespace(bos_token_id=1, eos_token_id=2, pad_token_id=0)
TEMPLATE = "vicuna_v1"
PROTOCOLS = ("corrected", "official")  # of questions
MODELS = {"clip8": "clip_vit_b_32", "clip8_mini": "clip_tiny"}  # of the benchmarks whose answers are classes


def pinned(benchmark: str) -> dict[str, Any]:
    """By task what it asks of the one example, and how answers are decoded, by protocol; of classes their templates."""
    words = [f"benchmark={benchmark}", f"model={MODELS.get(benchmark, 'tiny')}"]
    tasks = read_config(compose("merge_eval", words)).tasks
    found: dict[str, Any] = {}
    for task in tasks:
        if task.has_classes:
            found[task.name] = {name: getattr(task, name) for name in ("prompt", "image", "parse", "metric")}
            continue
        found[task.name] = {"trained on": render(task.train_prompt or task.prompt, EXAMPLE)}
        for protocol in PROTOCOLS:
            asked = task.under(protocol)
            decoded = generation_config(TOKENIZER, asked.max_new_tokens).to_diff_dict()
            prompt = render_conversation(TEMPLATE, [(render(asked.prompt, EXAMPLE), None)], image=True)
            found[task.name][protocol] = {
                "prompt": prompt,
                "image": asked.image,
                "decoding": {name: value for name, value in decoded.items() if name != "transformers_version"},
                "parse": asked.parse,
                "metric": asked.metric,
            }
    return found


def all_pinned() -> dict[str, Any]:
    return {benchmark: pinned(benchmark) for benchmark in list_options("benchmark")}


@pytest.mark.parametrize("benchmark", list_options("benchmark"))
def test_prompts_and_decoding_are_as_pinned(benchmark):
    assert pinned(benchmark) == json.loads(GOLDEN.read_text())[benchmark]


def test_nothing_else_is_pinned():
    assert sorted(json.loads(GOLDEN.read_text())) == list_options("benchmark")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_answers_are_greedy_under_both_protocols(protocol):
    for tasks in json.loads(GOLDEN.read_text()).values():
        for task in (task for task in tasks.values() if protocol in task):
            decoded = task[protocol]["decoding"]
            assert not decoded.get("do_sample") and decoded.get("num_beams", 1) == 1 and decoded["max_new_tokens"] >= 1


def test_a_hundred_classes_are_asked_for_once_each():
    prompt = json.loads(GOLDEN.read_text())["mm_mergebench"]["imagenet"]["official"]["prompt"]
    before, _, after = prompt.partition("\nChoose an answer from the choices below: ")
    names = after.removesuffix(". ASSISTANT:").split(", ")
    assert before.endswith("USER: <image>\nWhat is on the table?")
    assert len(names) == len(set(names)) == 100


@given(text=st.text(min_size=1), more=st.text())
def test_the_first_line_is_what_stands_before_the_first_line_break(text, more):
    line = text.replace("\n", " ")
    example = Example("q", f"{line}\n{more}", "x")
    assert render("{first_line}|{text}", example) == f"{line}|{line}\n{more}"


if __name__ == "__main__":
    print(json.dumps(all_pinned(), indent=1, ensure_ascii=False))
