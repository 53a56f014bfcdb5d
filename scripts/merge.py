"""Merge LoRA experts: `python scripts/merge.py merge=ties 'experts=[path/to/a,path/to/b]' out=path/to/c`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.program import run  # noqa: E402


def main(points: list[dict]) -> None:
    from pipeline.stages.merge import check_experts, merge, merge_out
    from pipeline.sweep import make_plans
    from pipeline.terminal import print_results

    plans = make_plans(points)
    if any(plan.config.out for plan in plans):
        merge_out(plans)
        return
    check_experts(plans, multi_task=False)
    merge(plans)
    print_results([plan.merged(method) for plan in plans for method in plan.config.methods])


if __name__ == "__main__":
    run("merge", main)
