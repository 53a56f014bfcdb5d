"""What is missing on this machine, what of the paper it has room for, and what to type; nothing is changed.

python scripts/doctor.py           one screen
python scripts/doctor.py --json    the same for programs, sizes in bytes

It needs no package, so that it can say which are missing. HF_HUB_OFFLINE=1 asks no network.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.tools.doctor.screen import main  # noqa: E402

if __name__ == "__main__":
    main(__doc__)
