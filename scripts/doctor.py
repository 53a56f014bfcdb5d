"""What this machine has, and what of the paper can be run on it in how many hours; nothing is changed or downloaded.

python scripts/doctor.py           one screen
python scripts/doctor.py --json    the same for programs, sizes in bytes, times in seconds

It needs no package, so that it can say which are missing. HF_HUB_OFFLINE=1 asks no network.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.tools.doctor.doctor import main  # noqa: E402

if __name__ == "__main__":
    main(__doc__)
