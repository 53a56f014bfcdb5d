"""Tokenizers of captions: the PTB tokenizer that caption scores are published with, and a small built-in one.

The PTB tokenizer is a jar of pycocoevalcap and needs Java. `builtin` needs nothing; it differs from it in rare words,
and in marks beyond ASCII, which it evens out, so figures made with it have other names (captions.py).
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from eval.punctuation import even_out_marks, separate_other_marks
from robustmerge.stage.settings import UserError

NEEDS_JAVA = "needs Java (java is not on PATH, or does not run)"
# What the published tokenizer leaves out. Its tokens are lower case by then, so that -lrb- and the like survive.
PUNCTUATION = frozenset(
    ("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";")
)
_PTB = Path("tokenizer") / "stanford-corenlp-3.4.1.jar"

_TYPED = str.maketrans({**dict.fromkeys("‒–—―", " -- "), "…": " ... "})  # apart, as the published tokenizer does
_BRACKETS = {"(": " -lrb- ", ")": " -rrb- ", "[": " -lsb- ", "]": " -rsb- ", "{": " -lcb- ", "}": " -rcb- "}
_TWO_WORDS = re.compile(r"\b(can)(not)\b|\b(gon|wan)(na)\b|\b(got)(ta)\b")
_SHORTENED = re.compile(r"(?<=[^\W\d])(n't\b)|(?<=\w)('(?:s|m|d|re|ve|ll)\b)")
_TOKEN = re.compile(
    r"-l[rsc]b-|-r[rsc]b-"
    r"|n't\b|'(?:s|m|d|re|ve|ll)\b"
    r"|(?:[^\W\d_]\.){2,}|\b(?:mr|mrs|ms|dr|st|vs|etc|jr|sr|ft|al)\."  # a full stop that belongs to its word
    r"|(?<!\w)-\d+(?:\.\d+)?"
    r"|\w+(?:(?:[.'/&-]|(?<=\d)[,:](?=\d))\w+)*"
    r"|\*+|[^\w\s\"'`.?!,:;\U00010000-\U0010ffff-]"  # pictographs are no tokens
)


@lru_cache(maxsize=1)
def has_java() -> bool:
    """Whether Java is installed and runs; checked once per process."""
    java = shutil.which("java")
    return java is not None and subprocess.run([java, "-version"], capture_output=True).returncode == 0


def find_jar(path: Path) -> Path:
    """The path of a file of pycocoevalcap, without importing any of it. Raises UserError if it is not installed."""
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("caption scores need the package pycocoevalcap; pip install -r requirements.lock")
    return Path(spec.submodule_search_locations[0]) / path


def one_line(text: str) -> str:
    """Collapse white space to single spaces, including every character that Java or Python takes for a line end."""
    return " ".join(text.split())


def tokenize(captions: Sequence[str], tokenizer: str) -> list[str]:
    """Lower-case tokens of each caption, joined by spaces, without punctuation. tokenizer: `ptb` or `builtin`.

    Raises UserError for an unknown tokenizer, or if `ptb` is to be used without Java.
    """
    lines = [one_line(caption) for caption in captions]
    if tokenizer == "builtin":
        return [_split_builtin(line) for line in lines]
    if tokenizer != "ptb":
        raise UserError(f"unknown tokenizer of captions '{tokenizer}'; choose one of builtin, ptb")
    if not has_java():
        raise UserError(f"the ptb tokenizer of captions {NEEDS_JAVA}")
    return list(_split_by_jar(tuple(lines)))


@lru_cache(maxsize=16)  # the references of a run's caption tasks, which are the same for every source
def _split_by_jar(lines: tuple[str, ...]) -> tuple[str, ...]:
    """Tokens by the published tokenizer.

    It needs all captions in one call and in order: whether the last full stop of `in the U.S.` is a separate token
    depends on the line after it.
    """
    command = [
        "java",
        "-cp",
        str(find_jar(_PTB)),
        "edu.stanford.nlp.process.PTBTokenizer",
        "-preserveLines",
        "-lowerCase",
    ]
    done = subprocess.run(command, input="\n".join(lines).encode("utf-8", "replace"), capture_output=True)
    tokens = done.stdout.decode("utf-8").split("\n")
    if done.returncode or len(tokens) != len(lines):
        errors = done.stderr.decode("utf-8", "replace").strip()[-300:]
        raise UserError(f"the ptb tokenizer made {len(tokens)} lines of {len(lines)} captions: {errors}")
    return tuple(_drop_punctuation(line.rstrip().split(" ")) for line in tokens)


def _split_builtin(line: str) -> str:
    plain = separate_other_marks(even_out_marks(line.lower().translate(_TYPED)))
    for sign, name in _BRACKETS.items():
        plain = plain.replace(sign, name)
    plain = _TWO_WORDS.sub(lambda match: " ".join(filter(None, match.groups())), plain)
    return _drop_punctuation(_TOKEN.findall(_SHORTENED.sub(r" \1\2", plain)))


def _drop_punctuation(tokens: Sequence[str]) -> str:
    return " ".join(token for token in tokens if token not in PUNCTUATION)
