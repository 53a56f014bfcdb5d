"""Statistics of captions for METEOR, from one Java process that serves all tasks and sources of a run.

Loading its tables takes the process some seconds, a caption some milliseconds. It ends with this Python process.
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
from typing import IO, cast

from eval.metrics.aggregates import METEOR_COLUMNS
from eval.metrics.caption_tokens import NEEDS_JAVA, find_jar, has_java
from robustmerge.stage.settings import UserError

_CHUNKS = 20  # the column of chunks
_JAR = Path("meteor") / "meteor-1.5.jar"
_SETTINGS = ("-", "-", "-stdio", "-l", "en", "-norm")  # as captions are scored everywhere
_CACHED = 2**16  # captions whose statistics are remembered: at most some 70 MB


class MeteorProcess:
    """METEOR's Java process, which answers each line of input with one or more lines."""

    def __init__(self, command: Sequence[str]):
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  (not a pipe, which would fill up unread)
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors)
        self.requests = cast(IO[bytes], self.process.stdin)
        self.answers = cast(IO[bytes], self.process.stdout)

    def ask(self, line: str, count: int) -> list[str] | None:
        """Send one line and read `count` lines; None if the process has died."""
        try:
            self.requests.write(f"{line}\n".encode("utf-8", "replace"))
            self.requests.flush()
            answers = [self.answers.readline().decode() for _ in range(count)]
        except BrokenPipeError:
            return None
        return [answer.strip() for answer in answers] if all(answer.endswith("\n") for answer in answers) else None

    def read_errors(self) -> str:
        """The end of what the process wrote to its standard error; it must have died."""
        self.process.wait()
        self.errors.seek(0)
        return self.errors.read().decode("utf-8", "replace").strip()[-300:]

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.answers.close()
        with contextlib.suppress(BrokenPipeError):  # a line that it did not read any more
            self.requests.close()
        self.errors.close()


_process: MeteorProcess | None = None


def start() -> MeteorProcess:
    """Return the METEOR process, started if need be; it loads its tables while the caller does something else."""
    global _process
    if _process is None or _process.process.poll() is not None:
        stop()
        _process = MeteorProcess(_command())
        atexit.register(stop)
    return _process


def _command() -> list[str]:
    if not has_java():
        raise UserError(f"METEOR {NEEDS_JAVA}")
    return ["java", "-Xmx2G", "-jar", str(find_jar(_JAR)), *_SETTINGS]


def stop() -> None:
    """End the process, if there is one."""
    global _process
    if _process is not None:
        _process.stop()
    _process = None


def count_matches(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[list[float]]:
    """The 23 statistics of each caption against the best of its references; all are tokens joined by spaces.

    Columns: length of the caption, of the reference, their function words (4); for the stages exact, stem, synonym
    and paraphrase each, matched content words of caption and reference, then function words (16); chunks; matched
    words of caption and reference. They add up over captions: `aggregates.meteor` computes the score of the sums.
    If caption and reference match entirely, as one chunk, METEOR counts no chunk when it adds up; so do we per caption.
    Statistics are cached by caption and references, on which alone they depend.

    Raises UserError without Java, or if the process ends twice in a row.
    """
    return [
        list(_count(_clean(caption), tuple(map(_clean, accepted))))
        for caption, accepted in zip(captions, references, strict=True)
    ]


def _clean(tokens: str) -> str:
    return tokens.replace("|||", "").replace("  ", " ")


@lru_cache(maxsize=_CACHED)
def _count(caption: str, references: tuple[str, ...]) -> tuple[float, ...]:
    (answer,) = ask(" ||| ".join(("SCORE", *references, caption)))
    counts = tuple(map(float, answer.split()))
    if len(counts) != METEOR_COLUMNS:
        raise UserError(f"METEOR must give {METEOR_COLUMNS} statistics of a caption, got {answer!r}")
    is_one_chunk = (sum(counts[4:20:2]), sum(counts[5:20:2])) == counts[:2] and counts[_CHUNKS] == 1
    return (*counts[:_CHUNKS], 0.0, *counts[_CHUNKS + 1 :]) if is_one_chunk else counts


def ask(line: str, count: int = 1) -> list[str]:
    """Send one line and read `count` lines. Starts the process again, once, if it has died."""
    errors = ""
    for _attempt in range(2):
        process = start()
        answers = process.ask(line, count)
        if answers is not None:
            return answers
        errors = process.read_errors()
        stop()
    raise UserError(f"METEOR ended without an answer (it needs 2 GB of memory): {errors or 'it printed no error'}")
