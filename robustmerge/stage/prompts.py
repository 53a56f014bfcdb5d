"""Prompts: from a question to the text that a model sees, the same in training and evaluation."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from robustmerge.stage.records import Example
from robustmerge.stage.settings import UserError

# A task's settings refuse any other word in braces as misspelt; braces around anything else stay as they are.
PLACEHOLDERS = ("choices", "first_line", "text")
LABEL = "{label}"  # for the name of a class, in the templates of a classifier; no question fills it
_PLACEHOLDER = re.compile(rf"\{{({'|'.join(PLACEHOLDERS)})\}}")


def show_choices(choices: Sequence[str]) -> str:
    """Format choices as lines `A. red`, `B. blue`, ... Raises UserError beyond 26 choices."""
    if len(choices) > len(string.ascii_uppercase):
        raise UserError(f"a question can have at most 26 choices, got {len(choices)}")
    lines = zip(string.ascii_uppercase, choices, strict=False)
    return "\n".join(f"{letter}. {choice}" for letter, choice in lines)


def render(prompt: str, example: Example) -> str:
    """Render the prompt of a question; braces inside the question and its choices stay as they are.

    `{text}` is the question, `{first_line}` its first line, `{choices}` its options as lines `A. red`.

    Raises UserError if the prompt wants choices and the question has none.
    """
    if "{choices}" in prompt and not example.choices:
        raise UserError(f"the prompt wants {{choices}} but question {example.question_id} has none")
    first_line = example.text.partition("\n")[0]
    filled = {"text": example.text, "choices": show_choices(example.choices), "first_line": first_line}
    return _PLACEHOLDER.sub(lambda match: filled[match[1]], prompt)
