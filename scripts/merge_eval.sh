#!/usr/bin/env bash
# Merges the experts, answers the questions of all tasks with every source, scores them and writes the report.
#   bash scripts/merge_eval.sh                                              about 5 minutes on two CPU cores
#   bash scripts/merge_eval.sh merge=robustmerge merge.prune.density=0.3    one method, changed
#   bash scripts/merge_eval.sh -m merge=task_arithmetic merge.strength=0.3,0.5      a sweep, in one table
# Needs the experts of train_all.sh (the same overrides), or your own: 'experts=[name:folder,...]'.
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$python" "$repository/scripts/merge_eval.py" "$@"
