"""The doctor's screen: what this machine has, and what of the paper it can run."""

from __future__ import annotations

import argparse
import json

from pipeline.tools.doctor.machine import look
from pipeline.tools.doctor.paper import estimate
from pipeline.tools.doctor.text import describe, show


def main(description: str | None) -> None:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
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
