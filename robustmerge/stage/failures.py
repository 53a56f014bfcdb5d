"""Exit of a program on errors: foreseen ones become one message and an exit status, never a traceback."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from robustmerge.stage.settings import UserError
from robustmerge.stage.terminal import protect_terminal
from robustmerge.stage.text import format_message

FULL = (errno.ENOSPC, errno.EDQUOT)
OF_THE_DISK = (errno.EIO, errno.EFBIG, errno.EROFS, errno.ESTALE)  # writing fails with these without a file's name


def print_error(text: str) -> None:
    print(f"error: {format_message(text)}", file=sys.stderr, flush=True)


def run_guarded(action: Callable[[], None], again: str, report_error: Callable[[str], None] = print_error) -> None:
    """Run `action`; on a UserError or a disk error exit with status 2 and one message, on Ctrl-C with 130.

    again: the command that goes on after an interrupt.
    """
    try:
        with protect_terminal():
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
    number, name = (error.errno, error.filename) if isinstance(error, OSError) else (None, None)
    file = os.fsdecode(name) if isinstance(name, (str, bytes)) else ""
    if number in FULL or re.search(r"os error 28|No space left|PytorchStreamWriter|unexpected pos", str(error)):
        place = f" while writing {file}" if file else ""
        text = f"the disk is full{place}. Nothing finished is lost: free some space and type the same command"
    elif not isinstance(error, OSError) or not (file or number in OF_THE_DISK):
        return None
    elif isinstance(error, PermissionError) and (unreadable := _find_unreadable(file)):
        text = f"{error.strerror}: {unreadable} cannot be read. Mend its rights (chmod u+rX), or give another"
    else:
        place = f": {file}" if file else ""
        text = f"{error.strerror}{place}. Choose another place to write to (out, paths.runs), or mend its rights"
    return format_message(text)


def _find_unreadable(file: str) -> str | None:
    """The file, or the folder in its path, whose rights forbid reading; None where they forbid writing."""
    nearest = next((path for path in (Path(file), *Path(file).parents) if os.path.lexists(path)), Path())
    return None if os.access(nearest, os.R_OK | os.X_OK * nearest.is_dir()) else str(nearest)
