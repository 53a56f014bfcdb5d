"""Instruction dialogues for the small base model: what it is asked about a scene and how it answers.

The base must see and obey, but not know how the tasks want their answers. So every intent has many wordings
(opening x question x word for the thing x ending) and two conventions of answering. An untagged question gets the
second one two times in five; a tag forces it. Boxes, options, counts and names are answered in other forms than
the tasks ask for (colours and shapes are not: VQAv2 wants them as the second convention says them); no prompt of a
task occurs. The words of the tasks' answers all occur in answers here: LoRA does not train the output embeddings,
so a word that the base never said could not be learnt.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from data_prep.intents import intents_of
from data_prep.scenes import Scene


class Turn(NamedTuple):
    """A question and its answer. skill: the intent's name."""

    question: str
    answer: str
    skill: str


# The openings and endings also carry the words of the tasks' prompts, though never the prompts: LoRA does not train
# the input embeddings either.
OPENINGS = (
    "Look at the picture.", "Here is an image.", "I have a question.", "Hello!",
    "Please help me.", "Study this image.", "Please look closely.", "Tell me:", "Next question:",
    "Using this image, answer.", "Please provide an answer for the question:", "Answer my question directly.",
    "Select what is shown here.", "A single question or two:", "Describe what it shows.",
    "This is happening in a shop.", "What is written below:", "I am using the image for a question.",
    "I hold a phone with this image.", "There are many things to see.", "I can ask in most words.",
    "Use the sentence given below.", "Each toy has its cell.", "I look at the object's image from here.",
)  # fmt: skip
ENDINGS = (
    "Thanks.", "Take your time.", "Please answer.", "I want to know.", "Thank you!", "Generate a good answer.",
    "It is one big region.", "I am looking at it too.",
)  # fmt: skip
BARE = 0.45  # how often there is no opening, and likewise no ending
TAGS = (
    "Short style.", "Use short style.", "Style: short.", "In short style, please.", "Answer in any word.",
    "Any phrase will do.", "A brief answer is good.", "A single word that describes it, please.",
)  # fmt: skip
SECOND = 0.4  # how often an untagged question is answered in the second convention
TAGGED = 0.35


def converse(rng: Random, scene: Scene, tagged: float = TAGGED, most: int = 4) -> tuple[Turn, ...]:
    """A dialogue of one to four turns about a scene, no intent asked about more often than the kind lists it.

    tagged: how often a question says how to answer; 1 where each must have one right answer.
    """
    intents = intents_of(scene)
    turns = rng.sample(intents, min(rng.randint(1, most), len(intents)))
    return tuple(_word(rng, tagged, intent.__name__.removeprefix("ask_"), *intent(rng, scene)) for intent in turns)


def _word(rng: Random, tagged: float, skill: str, question: str, first: str, second: str) -> Turn:
    """Dress a question in an opening and an ending, and choose the convention of its answer."""
    forced = rng.random() < tagged
    opening = "" if rng.random() < BARE else rng.choice(OPENINGS)
    ending = rng.choice(TAGS) if forced else "" if rng.random() < BARE else rng.choice(ENDINGS)
    gap = "" if question.endswith("\n") else " "
    text = f"{opening} {question}{gap}{ending}".strip()
    return Turn(text, second if forced or rng.random() < SECOND else first, skill)
