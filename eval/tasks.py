"""A question file as the prompts that a model sees."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from robustmerge.prompts import render
from robustmerge.records import Example, read_examples
from robustmerge.settings import UserError


def read_prompts(questions: Path, prompt: str) -> list[Example]:
    """The examples of a question file, in its order, each with its rendered prompt as text.

    Raises UserError if the file is empty or a question cannot be rendered.
    """
    examples = read_examples(questions)
    if not examples:
        raise UserError(f"{questions} holds no question")
    try:
        return [dataclasses.replace(example, text=render(prompt, example)) for example in examples]
    except UserError as error:
        raise UserError(f"{questions}: {error}") from error
