"""Conversation templates, and the token ids and labels of a conversation.

A conversation is a list of segments, each learned or not. Text between two special tokens is tokenised once, as a
whole, and labels follow from character offsets: no prefix is ever tokenised again.
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
    """The texts around questions and answers; an answer ends with the tokenizer's end-of-sequence token."""

    system: str
    user: str = "USER: "
    image: str = "\n"  # after the picture, which comes right after `user`
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
    """A piece of a conversation. kind: `text`, `image` or `end`; learned: whether training predicts its tokens."""

    kind: str
    text: str = ""
    learned: bool = False


class Encoded(NamedTuple):
    """Token ids and labels of one conversation, `IGNORE` where nothing is learned; both [length]."""

    ids: list[int]
    labels: list[int]


def build_segments(template: str, turns: Sequence[tuple[str, str | None]], image: bool) -> list[Segment]:
    """The segments of a conversation; a last answer of None leaves the prompt open for generation.

    Raises UserError for an unknown template.
    """
    texts = TEMPLATES[choose(template, TEMPLATES, "template")]
    segments = [Segment("text", texts.system)] if texts.system else []
    for index, (question, answer) in enumerate(turns):
        segments.append(Segment("text", texts.user))
        if image and index == 0:
            segments += [Segment("image"), Segment("text", texts.image)]
        segments.append(Segment("text", question + texts.assistant))
        if answer is not None:
            segments += [Segment("text", texts.answer + answer, True), Segment("end", learned=True)]
    return segments


def render(template: str, turns: Sequence[tuple[str, str | None]], image: bool) -> str:
    """The conversation as one readable string, `<image>` for the picture and `</s>` for the end of an answer."""
    symbols = {"image": "<image>", "end": "</s>"}
    return "".join(symbols.get(segment.kind, segment.text) for segment in build_segments(template, turns, image))


def encode(tokenizer: PreTrainedTokenizerBase, segments: Sequence[Segment], image_ids: Sequence[int]) -> Encoded:
    """Token ids and labels of a conversation.

    image_ids: the ids of the picture's placeholder tokens, one for each patch. Special tokens that are written out in a
    question stay text.
    """
    ids, labels = [tokenizer.bos_token_id], [IGNORE]
    for group in _group_texts(segments):
        if group[0].kind == "image":
            ids += image_ids
            labels += [IGNORE] * len(image_ids)
        elif group[0].kind == "end":
            ids.append(tokenizer.eos_token_id)
            labels.append(tokenizer.eos_token_id if group[0].learned else IGNORE)
        else:
            text_ids, text_labels = _encode_texts(tokenizer, group)
            ids += text_ids
            labels += text_labels
    return Encoded(ids, labels)


def _group_texts(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Segments grouped: neighbouring texts together, an image or an end alone."""
    groups: list[list[Segment]] = []
    for segment in segments:
        if groups and segment.kind == "text" and groups[-1][0].kind == "text":
            groups[-1].append(segment)
        else:
            groups.append([segment])
    return groups


def _encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Segment]) -> Encoded:
    ids, offsets = _tokenise(tokenizer, "".join(segment.text for segment in texts))
    labels = [IGNORE] * len(ids)
    start = 0
    for segment in texts:
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
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True)
    return list(encoding["input_ids"]), [tuple(pair) for pair in encoding["offset_mapping"]]
