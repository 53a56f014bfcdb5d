#!/usr/bin/env bash
# Makes every table and figure of the paper that a laptop can, and copies their reports into results/.
#   bash scripts/reproduce.sh                                        about 100 minutes on two CPU cores
#   bash scripts/reproduce.sh 'only=[table6,figure9]'                some of them
#   bash scripts/reproduce.sh profile=smoke                          the numbers mean nothing
# Interrupted? Type the same command again: everything finished is kept.
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$python" "$repository/scripts/reproduce.py" "$@"
