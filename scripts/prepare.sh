#!/usr/bin/env bash
# Draws the data of the small benchmark, or reads that of the paper from what was downloaded, and checks every row of it.
#   bash scripts/prepare.sh                                          a minute; train_all.sh does it too
#   bash scripts/prepare.sh benchmark=mm_mergebench raw=FOLDER       the authors' question files, and pictures
#   bash scripts/prepare.sh benchmark=mm_mergebench raw=FOLDER benchmark.source=release    the owners' own files
#   bash scripts/prepare.sh benchmark=mm_mergebench raw=FOLDER fetch=true    what to get where; fetches what the Hub has
# Interrupted? Type the same command again: everything finished is kept. What came of it: scripts/verify.py.
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$python" "$repository/scripts/prepare.py" "$@"
