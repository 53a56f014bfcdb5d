"""How a process of ours ends: what we foresaw is one message and an exit status, never a traceback."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

from robustmerge.settings import UserError


def guarded(action: Callable[[], None], again: str) -> None:
    """Run `action`. Ends the process with 2 and one message for a mistake that can be mended, 130 for Ctrl-C.

    again: the command that goes on after an interrupt.
    """
    try:
        action()
    except UserError as error:
        _stop(f"error: {error}", 2)
    except KeyboardInterrupt:
        _stop(f"\ninterrupted. Whatever was finished is kept: type the same command to go on ({again})", 130)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" while writing {error.filename}" if error.filename else ""
        _stop(
            f"error: the disk is full{where}. Nothing finished is lost: free some space and type the same command",
            2,
        )


def _stop(message: str, status: int) -> None:
    print(message, file=sys.stderr, flush=True)
    sys.exit(status)
