"""Merge LoRA experts: `python scripts/merge.py merge=ties 'experts=[path/to/a,path/to/b]' out=path/to/c`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.program import run  # noqa: E402


def walk(points: list[dict]) -> None:
    from scripts import merge_out, steps, summary

    lines = steps.plan(points)
    if any(line.config.out for line in lines):
        merge_out.merge_out(lines)
        return
    steps.check_experts(lines, multi_task=False)
    steps.merge(lines)
    summary.tell_made([line.merged(method) for line in lines for method in line.config.methods])


if __name__ == "__main__":
    run("merge", walk)
