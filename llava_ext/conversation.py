"""Conversation templates, and the token ids and labels of a conversation.

A conversation is a list of segments, each learned or not. Text between two special tokens is tokenised once, as a
whole, and labels follow from character offsets: no prefix is ever tokenised again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from robustmerge.stage.settings import UserError, choose

IGNORE = -100  # what PyTorch's cross entropy leaves out


class Segment(NamedTuple):
    """A piece of a conversation.

    kind: `text`; `answer`, a text that is tokenised apart; `token`, a special token by its name; `begin` and `end`,
    those of a sequence; `image`. learned: whether training predicts its tokens.
    """

    kind: str
    text: str = ""
    learned: bool = False


class Encoded(NamedTuple):
    """Token ids and labels of one conversation, `IGNORE` where nothing is learned; both [length]."""

    ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Template:
    """The texts around questions and answers; an answer ends with the tokenizer's end-of-sequence token.

    tokens: the special tokens among these texts. begins: whether a conversation begins with the tokenizer's
    beginning-of-sequence token.
    """

    system: str
    user: str = "USER: "
    image: str = "\n"  # after the picture, which comes right after `user`
    assistant: str = " ASSISTANT:"
    answer: str = " "  # between `assistant` and the answer; learned with it. "": the answer is tokenised apart
    after: str = ""  # after the end token of an answer; not learned
    tokens: tuple[str, ...] = ()
    begins: bool = True

    def split(self, text: str) -> list[Segment]:
        """The segments of one of these texts, none of them learned."""
        pieces = re.split(f"({'|'.join(map(re.escape, self.tokens))})", text) if self.tokens else [text]
        return [Segment("token" if piece in self.tokens else "text", piece) for piece in pieces if piece]


CHATML = Template(
    "",
    user="<|im_start|>user\n",
    assistant="<|im_end|>\n<|im_start|>assistant\n",
    answer="",
    after="\n",
    tokens=("<|im_start|>", "<|im_end|>"),
    begins=False,
)
TEMPLATES = {
    "vicuna_v1": Template(
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. "
    ),
    "vicuna_v1_short": Template(""),  # without the system sentence, which costs a small model half of its tokens
    "qwen_1_5": replace(CHATML, system="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"),
    "chatml": CHATML,  # SmolLM2's, too, without its system sentence
}


def check_template(template: str, tokenizer: PreTrainedTokenizerBase, base: object) -> None:
    """Raises UserError for an unknown template, or one with special tokens that the tokenizer of a base lacks."""
    choose(template, TEMPLATES, "template")
    lacking = {name: _list_lacking(texts, tokenizer) for name, texts in TEMPLATES.items()}
    if missing := lacking[template]:
        fitting = ", ".join(name for name in lacking if not lacking[name]) or "none"
        raise UserError(
            f"the tokenizer of {base} has no {' and no '.join(missing)}, which model.template '{template}' needs; "
            f"templates that fit it: {fitting}"
        )


def _list_lacking(texts: Template, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    special = tokenizer.get_added_vocab()
    begin = ["beginning-of-sequence token"] if texts.begins and tokenizer.bos_token_id is None else []
    return [*begin, *(token for token in texts.tokens if token not in special)]


def build_segments(template: str, turns: Sequence[tuple[str, str | None]], image: bool) -> list[Segment]:
    """The segments of a conversation; a last answer of None leaves the prompt open for generation.

    Raises UserError for an unknown template.
    """
    texts = TEMPLATES[choose(template, TEMPLATES, "template")]
    segments = [Segment("begin")] if texts.begins else []
    segments += texts.split(texts.system)
    for index, (question, answer) in enumerate(turns):
        segments += texts.split(texts.user)
        if image and index == 0:
            segments += [Segment("image"), Segment("text", texts.image)]
        segments += [Segment("text", question), *texts.split(texts.assistant)]
        if answer is not None:
            spoken = Segment("text" if texts.answer else "answer", texts.answer + answer, learned=True)
            segments += [spoken, Segment("end", learned=True), *texts.split(texts.after)]
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
    ids: list[int] = []
    labels: list[int] = []
    for group in _group_texts(segments):
        first = group[0]
        if first.kind == "image":
            found = Encoded([*image_ids], [IGNORE] * len(image_ids))
        elif first.kind in ("text", "answer"):
            found = _encode_texts(tokenizer, group)
        else:
            names = {"begin": tokenizer.bos_token, "end": tokenizer.eos_token, "token": first.text}
            token = tokenizer.convert_tokens_to_ids(names[first.kind])
            found = Encoded([token], [token if first.learned else IGNORE])
        ids += found.ids
        labels += found.labels
    return Encoded(ids, labels)


def _group_texts(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Segments grouped: neighbouring texts together, any other alone."""
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
