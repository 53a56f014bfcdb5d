"""How a process of ours ends: what we foresaw is one message and an exit status, never a traceback."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Callable

from robustmerge.settings import UserError

FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


def guarded(action: Callable[[], None], again: str) -> None:
    """Run `action`. Ends the process with 2 and one message for a mistake that can be mended, 130 for Ctrl-C.

    again: the command that goes on after an interrupt. Every line of an error begins with `error: `, so that it can
    be found in the output of several processes.
    """
    try:
        action()
    except KeyboardInterrupt:
        _stop([f"interrupted. Whatever was finished is kept: type the same command to go on ({again})"], 130)
    except UserError as error:
        _stop([f"error: {line}" for line in str(error).splitlines()], 2)
    except Exception as error:
        message = _explain(error)
        if message is None:
            raise
        _stop([f"error: {message}"], 2)


def _explain(error: Exception) -> str | None:
    """Words for an error of the disk; None for any other. Libraries wrap a full disk in errors of their own."""
    place = f" while writing {error.filename}" if getattr(error, "filename", None) else ""
    wrapped = re.search(r"os error 28|No space left|PytorchStreamWriter|unexpected pos", str(error))
    if getattr(error, "errno", None) in FULL or wrapped:
        return f"the disk is full{place}. Nothing finished is lost: free some space and type the same command"
    if isinstance(error, OSError) and error.errno in FORBIDDEN:
        return f"{error.strerror}: {error.filename}. Choose another place with paths.runs=FOLDER, or mend its rights"
    return None


def _stop(lines: list[str], status: int) -> None:
    print("\n".join(lines), file=sys.stderr, flush=True)
    sys.exit(status)
