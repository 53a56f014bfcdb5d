"""The words that the small base reads and says as wholes, whether a task needs them or not: those of `words.txt`."""

from __future__ import annotations

from pathlib import Path

WORDS = tuple(Path(__file__).with_name("words.txt").read_text(encoding="utf-8").split())
