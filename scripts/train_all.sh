#!/usr/bin/env bash
# Prepares the data, trains the eight experts and the multi-task model on a base that is shipped.
#   bash scripts/train_all.sh                                   about 5 minutes on two CPU cores
#   bash scripts/train_all.sh profile=smoke                     about 1 minute; the numbers mean nothing
#   bash scripts/train_all.sh peft.r=8 'tasks=[vqav2,rec]'      anything of configs/ can be changed here
# Interrupted? Type the same command again: everything finished is kept. --help shows what can be changed.
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$python" "$repository/scripts/train_all.py" "$@"
