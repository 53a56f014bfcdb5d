"""METEOR's statistics of a caption, from one Java process for all tasks and sources of a run.

Loading its tables takes the process some seconds, a caption some milliseconds. It ends with this one.
Source: https://www.cs.cmu.edu/~alavie/METEOR/, version 1.5, the jar of pycocoevalcap
"""

from __future__ import annotations

import atexit
import contextlib
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO

from eval.metrics.aggregates import METEOR_COLUMNS
from eval.metrics.caption_tokens import NEEDS_JAVA, has_java, jar
from robustmerge.stage.settings import UserError

_CHUNKS = 20
_JAR = Path("meteor") / "meteor-1.5.jar"
_SETTINGS = ("-", "-", "-stdio", "-l", "en", "-norm")  # as captions are scored everywhere
_KEPT = 2**16  # captions whose statistics are remembered: at most some 70 MB

_process: subprocess.Popen | None = None
_said: IO[bytes] | None = None


def start() -> None:
    """Start the process unless it runs; it loads its tables while the caller does something else."""
    global _process, _said
    if _process is not None and _process.poll() is None:
        return
    stop()
    _said = tempfile.TemporaryFile()  # noqa: SIM115  (not a pipe, which would fill up unread)
    _process = subprocess.Popen(_command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=_said)
    atexit.register(stop)


def _command() -> list[str]:
    if not has_java():
        raise UserError(f"METEOR {NEEDS_JAVA}")
    return ["java", "-Xmx2G", "-jar", str(jar(_JAR)), *_SETTINGS]


def stop() -> None:
    """End the process, if there is one."""
    global _process, _said
    if _process is not None:
        _process.kill()
        _process.wait()
        _process.stdout.close()
        with contextlib.suppress(BrokenPipeError):  # it had died with a line on its way
            _process.stdin.close()
    if _said is not None:
        _said.close()
    _process = _said = None


def count_matches(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[list[float]]:
    """The 23 statistics of each caption against the best of its references; all are tokens joined by spaces.

    Columns: length of the caption, of the reference, their function words (4); for the stages exact, stem, synonym
    and paraphrase each, matched content words of caption and reference, then function words (16); chunks; matched
    words of caption and reference. They add up over captions: `aggregates.meteor` makes the score of the sums.
    Where all of both is one chunk, METEOR counts none when it adds up; so do we, from the beginning.
    A caption and its references met before are not scored again: nothing else enters their statistics.
    Raises UserError if Java is not to be had or the process ends twice in a row.
    """
    return [
        list(_count(_plain(one), tuple(map(_plain, several))))
        for one, several in zip(captions, references, strict=True)
    ]


def _plain(tokens: str) -> str:
    return tokens.replace("|||", "").replace("  ", " ")


@lru_cache(maxsize=_KEPT)
def _count(caption: str, references: tuple[str, ...]) -> tuple[float, ...]:
    (answer,) = ask(" ||| ".join(("SCORE", *references, caption)))
    found = tuple(map(float, answer.split()))
    if len(found) != METEOR_COLUMNS:
        raise UserError(f"METEOR must give {METEOR_COLUMNS} statistics of a caption, got {answer!r}")
    is_whole = (sum(found[4:20:2]), sum(found[5:20:2])) == found[:2] and found[_CHUNKS] == 1
    return (*found[:_CHUNKS], 0.0, *found[_CHUNKS + 1 :]) if is_whole else found


def ask(line: str, answers: int = 1) -> list[str]:
    """Send one line and read that many. Starts the process again, once, if it has died."""
    for _attempt in range(2):
        start()
        try:
            _process.stdin.write(f"{line}\n".encode("utf-8", "replace"))
            _process.stdin.flush()
            found = [_process.stdout.readline().decode() for _ in range(answers)]
        except BrokenPipeError:
            found = [""]
        if all(answer.endswith("\n") for answer in found):
            return [answer.strip() for answer in found]
        said = _last_words()
        stop()
    raise UserError(f"METEOR ended without an answer (it needs 2 GB of memory): {said or 'it said nothing'}")


def _last_words() -> str:
    _process.wait()
    _said.seek(0)
    return _said.read().decode("utf-8", "replace").strip()[-300:]
