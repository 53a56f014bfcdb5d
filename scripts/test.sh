#!/usr/bin/env bash
# Sets everything up and runs the tests.
#   bash scripts/test.sh                            all of them, one process a core (at most four)
#   bash scripts/test.sh tests/eval                 any pytest arguments
set -e
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$repository"
"$python" -m ruff check .
"$python" -m mypy
exec "$python" -m pytest "$@"
