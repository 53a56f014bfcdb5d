"""The process of one measurement, started by processes.py, never typed.

    python -m pipeline.tools.bench.child pipeline.tools.bench.merging_work:sum_files '{"experts": [...]}'

It loads its libraries, prints its CPU seconds so far, waits for the end of its input, works, and prints what the work
returns; both as JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time

if __name__ == "__main__":
    module, _, function = sys.argv[1].partition(":")
    work = getattr(importlib.import_module(module), function)
    print(json.dumps(time.process_time()), flush=True)
    sys.stdin.read()
    print(json.dumps(work(**json.loads(sys.argv[2]))), flush=True)
    os._exit(0)  # Python's own end takes down every library, for a third of a CPU second, and varies
