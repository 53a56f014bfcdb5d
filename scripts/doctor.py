"""What this machine has, and what of the paper can be run on it in how many hours; nothing is changed or downloaded.

python scripts/doctor.py           one screen
python scripts/doctor.py --json    the same for programs, sizes in bytes, times in seconds

It needs no package, so that it can say which are missing. HF_HUB_OFFLINE=1 asks no network.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.doctor_machine import look  # noqa: E402
from scripts.doctor_paper import estimate  # noqa: E402
from scripts.doctor_text import Finding, describe  # noqa: E402

WIDTH = 118
MARKS = {"ok": "ok", "note": "--", "bad": "!!", "yes": "yes", "no": "no", "slow": "slow"}


def show(title: str, findings: list[Finding]) -> str:
    """A block of the screen: mark, name and text of every finding, and below it what to do."""
    widest = max(len(finding.name) for finding in findings)
    start = 2 + 6 + widest + 2
    lines = [title]
    for finding in findings:
        head = f"  {MARKS[finding.state]:<6}{finding.name:<{widest}}  "
        lines += textwrap.wrap(finding.text, WIDTH, initial_indent=head, subsequent_indent=" " * start)
        if finding.remedy:
            indent = " " * start
            lines += textwrap.wrap(finding.remedy, WIDTH, initial_indent=indent + "-> ", subsequent_indent=indent)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print facts and estimates as JSON")
    asked = parser.parse_args()
    facts = look()
    machine, paper = describe(facts), estimate(facts)
    if asked.json:
        told = {"machine": [vars(finding) for finding in machine], "paper": [vars(finding) for finding in paper]}
        print(json.dumps({"facts": facts, **told}, indent=1))
        return
    print(show("This machine", machine))
    print()
    print(show("What of the paper can be run here (~: an estimate, with where it comes from)", paper))


if __name__ == "__main__":
    main()
