"""How a process of ours ends: what we foresaw is one message and an exit status, never a traceback."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Callable

from robustmerge.stage.settings import UserError

FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def guarded(action: Callable[[], None], again: str, mark_lines: bool = False) -> None:
    """Run `action`. Ends the process with 2 and one message for a mistake that can be mended, 130 for Ctrl-C.

    again: the command that goes on after an interrupt. mark_lines: begin every line of an error with `error: `, so
    that a parent finds it in the output of several processes.
    """
    try:
        action()
    except KeyboardInterrupt:
        _stop(f"interrupted. Whatever was finished is kept: type the same command to go on ({again})", 130)
    except UserError as error:
        _stop(_as_error(str(error), mark_lines), 2)
    except Exception as error:
        message = _explain(error)
        if message is None:
            raise
        _stop(_as_error(message, mark_lines), 2)


def _explain(error: Exception) -> str | None:
    """Words for an error of the disk; None for any other. Libraries wrap a full disk in errors of their own."""
    place = f" while writing {error.filename}" if getattr(error, "filename", None) else ""
    wrapped = re.search(r"os error 28|No space left|PytorchStreamWriter|unexpected pos", str(error))
    if getattr(error, "errno", None) in FULL or wrapped:
        return f"the disk is full{place}. Nothing finished is lost: free some space and type the same command"
    if isinstance(error, OSError) and error.errno in FORBIDDEN:
        elsewhere = "Choose another place (paths.runs=FOLDER, or out=FOLDER), or mend its rights"
        return f"{error.strerror}: {error.filename}. {elsewhere}"
    return None


def _as_error(message: str, mark_lines: bool) -> str:
    return "error: " + (message.replace("\n", "\nerror: ") if mark_lines else message)


def _stop(message: str, status: int) -> None:
    print(message, file=sys.stderr, flush=True)
    sys.exit(status)
