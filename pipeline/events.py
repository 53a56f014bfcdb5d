"""Events that a child process reports to its parent: one line of JSON each, on its standard output.

Whatever else the child prints belongs in its log. Under torchrun all processes write to the same pipe, each event in
one piece: a text is cut to less than a pipe takes at once (4096 bytes), and terminal control codes are escaped.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, replace

from robustmerge.stage.files import parse_json
from robustmerge.stage.settings import UserError, build
from robustmerge.stage.text import format_message

START = '{"event": '
EVENTS = ("item", "progress", "message", "error")


@dataclass(frozen=True)
class Event:
    """event: `item` begun (number, from 1), `progress` of it (fraction, text), `message` or `error` (text).

    A message is for the user; an error is why the child fails.
    """

    event: str
    text: str = ""
    fraction: float = 0.0
    number: int = 0


def write_event(event: Event) -> None:
    line = json.dumps(asdict(replace(event, text=format_message(event.text))), ensure_ascii=False)
    # The event gets a line of its own even if a library has left one unfinished, such as an interrupted progress bar.
    sys.stdout.flush()
    sys.stdout.buffer.write(f"\n{line}\n".encode())
    sys.stdout.flush()


def read_event(line: str) -> Event | None:
    """The event in a line of a child's output; None for any other line."""
    if not line.startswith(START):
        return None
    try:
        event = build(Event, parse_json(line), "")
    except (ValueError, UserError):
        return None
    return replace(event, text=format_message(event.text)) if event.event in EVENTS else None


def report_progress(fraction: float, status: str) -> None:
    write_event(Event("progress", status, fraction))


def report_error(text: str) -> None:
    write_event(Event("error", text))


def say(text: str) -> None:
    """Report a message, which the parent process shows to the user."""
    write_event(Event("message", text))
