"""Exit of a program on errors: foreseen ones become one message and an exit status, never a traceback."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Callable

from robustmerge.stage.settings import UserError

FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def print_error(text: str) -> None:
    print(f"error: {text}", file=sys.stderr, flush=True)


def run_guarded(action: Callable[[], None], again: str, report_error: Callable[[str], None] = print_error) -> None:
    """Run `action`; on a UserError or a disk error exit with status 2 and one message, on Ctrl-C with 130.

    again: the command that goes on after an interrupt.
    """
    try:
        action()
    except KeyboardInterrupt:
        interrupted = f"interrupted. Whatever was finished is kept: type the same command to go on ({again})"
        print(interrupted, file=sys.stderr, flush=True)
        sys.exit(130)
    except UserError as error:
        report_error(str(error))
        sys.exit(2)
    except Exception as error:
        message = _explain(error)
        if message is None:
            raise
        report_error(message)
        sys.exit(2)


def _explain(error: Exception) -> str | None:
    """The message for a disk error, which libraries may wrap in errors of their own; None for any other error."""
    filename = error.filename if isinstance(error, OSError) else None
    place = f" while writing {filename}" if filename else ""
    wrapped = re.search(r"os error 28|No space left|PytorchStreamWriter|unexpected pos", str(error))
    if getattr(error, "errno", None) in FULL or wrapped:
        return f"the disk is full{place}. Nothing finished is lost: free some space and type the same command"
    if isinstance(error, OSError) and error.errno in FORBIDDEN:
        elsewhere = "Choose another place (paths.runs=FOLDER, or out=FOLDER), or mend its rights"
        return f"{error.strerror}: {error.filename}. {elsewhere}"
    return None
