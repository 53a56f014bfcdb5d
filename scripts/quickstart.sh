#!/usr/bin/env bash
# The whole pipeline on a laptop: set up, train, merge, evaluate, report.
#   bash scripts/quickstart.sh                  about 10 minutes on two CPU cores, installing not counted
#   bash scripts/quickstart.sh profile=smoke    about 90 seconds; the numbers mean nothing
set -e
here="$(dirname "${BASH_SOURCE[0]}")"
bash "$here/train_all.sh" "$@"
bash "$here/merge_eval.sh" "$@"
