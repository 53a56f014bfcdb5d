#!/usr/bin/env bash
# A task of your own on the small base, end to end: draws its question files and pictures in data/shapes, trains an expert
# on them, and reports it beside the base alone and the commonest answer.
#   bash scripts/example_task.sh                  about 3 minutes on two CPU cores
#   bash scripts/example_task.sh profile=smoke    about half a minute; the numbers mean nothing
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
"$python" -m data_prep.shapes data/shapes &&
    exec bash "$repository/scripts/quickstart.sh" experiment=expert_only +task=shapes 'tasks=[shapes]' "$@"
