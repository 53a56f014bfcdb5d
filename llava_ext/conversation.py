"""Conversation templates as data, and their token ids with labels.

A conversation is a list of segments; each knows whether it is to be learned. Text between two special tokens is
tokenised once, as a whole, and labels follow from character offsets: no prefix is ever tokenised again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from robustmerge.stage.settings import choose

IGNORE = -100  # what PyTorch's cross entropy leaves out


@dataclass(frozen=True)
class Template:
    """The texts around questions and answers; `end` of an answer is the tokenizer's end-of-sequence token."""

    system: str
    user: str = "USER: "
    image: str = "\n"  # follows the picture, which stands right after `user`
    assistant: str = " ASSISTANT:"
    answer: str = " "  # between `assistant` and the answer; learned with it


TEMPLATES = {
    "vicuna_v1": Template(
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. "
    ),
    "vicuna_v1_short": Template(""),  # without the system sentence, which costs a small model half of its tokens
}


class Segment(NamedTuple):
    """kind: `text`, `image` or `end`."""

    kind: str
    text: str = ""
    learned: bool = False


class Encoded(NamedTuple):
    """Token ids and labels of one conversation, `IGNORE` where nothing is to be learned; both [length]."""

    ids: list[int]
    labels: list[int]


def segments_of(template: str, turns: Sequence[tuple[str, str | None]], image: bool) -> list[Segment]:
    """The segments of a conversation; a last answer of None leaves the prompt open for generation.

    Raises UserError for an unknown template.
    """
    style = TEMPLATES[choose(template, TEMPLATES, "template")]
    segments = [Segment("text", style.system)] if style.system else []
    for index, (question, answer) in enumerate(turns):
        segments.append(Segment("text", style.user))
        if image and index == 0:
            segments += [Segment("image"), Segment("text", style.image)]
        segments.append(Segment("text", question + style.assistant))
        if answer is not None:
            segments += [Segment("text", style.answer + answer, True), Segment("end", learned=True)]
    return segments


def render(template: str, turns: Sequence[tuple[str, str | None]], image: bool) -> str:
    """The conversation as one readable string, `<image>` for the picture and `</s>` for an answer's end."""
    shown = {"image": "<image>", "end": "</s>"}
    return "".join(shown.get(segment.kind, segment.text) for segment in segments_of(template, turns, image))


def encode(tokenizer: PreTrainedTokenizerBase, segments: Sequence[Segment], image_ids: Sequence[int]) -> Encoded:
    """Token ids and labels of a conversation.

    image_ids: what stands for the picture, one id a patch. Special tokens written out in a question stay text.
    """
    ids, labels = [tokenizer.bos_token_id], [IGNORE]
    for run in _runs(segments):
        if run[0].kind == "image":
            ids += image_ids
            labels += [IGNORE] * len(image_ids)
        elif run[0].kind == "end":
            ids.append(tokenizer.eos_token_id)
            labels.append(tokenizer.eos_token_id if run[0].learned else IGNORE)
        else:
            found = _encode_run(tokenizer, run)
            ids += found.ids
            labels += found.labels
    return Encoded(ids, labels)


def _runs(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Neighbouring texts together, special tokens alone."""
    runs: list[list[Segment]] = []
    for segment in segments:
        if runs and segment.kind == "text" and runs[-1][0].kind == "text":
            runs[-1].append(segment)
        else:
            runs.append([segment])
    return runs


def _encode_run(tokenizer: PreTrainedTokenizerBase, run: Sequence[Segment]) -> Encoded:
    ids, offsets = _tokenise(tokenizer, "".join(segment.text for segment in run))
    labels = [IGNORE] * len(ids)
    start = 0
    for segment in run:
        end = start + len(segment.text)
        if segment.learned:
            labels = [
                token if start <= first and last <= end and first < last else label
                for token, label, (first, last) in zip(ids, labels, offsets, strict=True)
            ]
        start = end
    return Encoded(ids, labels)


@lru_cache(maxsize=4096)
def _tokenise(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True)
    return list(found["input_ids"]), [tuple(pair) for pair in found["offset_mapping"]]
