"""Counts as digits: IconQA (loose icons) and TabMWP (the cells of a table)."""

from __future__ import annotations

from random import Random

from data_prep.scenes import MARKS, Scene, sample_marks

ICON_QUESTIONS = ("How many {colour} icons are there?", "How many {colour} icons can you count?")
TABLE_QUESTIONS = (
    "The table shows toys in a shop. How many {colour} toys are there?",
    "Each cell of the table is a toy in a shop. How many {colour} toys are in the table?",
)


def make_iconqa(rng: Random) -> tuple[Scene, dict]:
    """IconQA: how many icons, of a colour that occurs or (two times in five) in all."""
    return _count(rng, sample_marks(rng), rng.choice(ICON_QUESTIONS))


def make_tabmwp(rng: Random) -> tuple[Scene, dict]:
    """TabMWP: how many cells of a table, of a colour that occurs or in all."""
    return _count(rng, sample_marks(rng, table=True), rng.choice(TABLE_QUESTIONS))


def _count(rng: Random, scene: Scene, question: str) -> tuple[Scene, dict]:
    colour = rng.choice([None, *(mark for mark in MARKS if scene.count(mark))])
    text = question.format(colour=colour or "").replace("  ", " ")
    return scene, {"text": text, "answer": str(scene.count(colour))}
