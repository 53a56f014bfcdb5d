#!/usr/bin/env bash
# Makes .venv once, with plain pip; does nothing when it is up to date. The other scripts source this file.
#   bash scripts/setup.sh
# Reads requirements.lock and pyproject.toml. Needs Python 3.11 or newer with its venv module; about 2 GB of disk.
# An active conda environment named robustmerge (environment.yml) is used as it is.

repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
environment="$repository/.venv"

find_python() {
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3 python; do
        if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "setup: Python 3.11 or newer is needed and was not found; install it or set PYTHON=/path/to/python" >&2
    return 1
}

install_environment() {
    local found stamp
    stamp="$(cat "$repository/requirements.lock" "$repository/pyproject.toml" | cksum) $repository"
    [ "$(cat "$environment/.installed" 2>/dev/null)" = "$stamp" ] && return
    found="$(find_python)" || return 1
    echo "setup: installing the packages of requirements.lock into .venv (once; a few minutes)"
    if [ ! -x "$environment/bin/pip" ] && ! "$found" -m venv "$environment"; then
        echo "setup: '$found -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv" >&2
        return 1
    fi
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check -r "$repository/requirements.lock" &&
        "$environment/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -e "$repository" &&
        echo "$stamp" >"$environment/.installed" && return
    echo "setup: installing failed (see above); run the same command again to go on" >&2
    return 1
}

if [ "${CONDA_DEFAULT_ENV:-}" = robustmerge ] && [ -x "${CONDA_PREFIX:-}/bin/python" ]; then
    python="$CONDA_PREFIX/bin/python"
else
    install_environment || exit 1
    python="$environment/bin/python"
fi
