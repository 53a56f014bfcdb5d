#!/usr/bin/env bash
# Makes .venv once, with plain pip; does nothing when it is up to date. The other scripts source this file.
#   bash scripts/setup.sh
# Reads requirements.lock and pyproject.toml. Needs Python 3.11 or newer with its venv module; about 2 GB of disk.
# An active conda environment named robustmerge (environment.yml) is used as it is.

repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
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

# An environment of another checkout would be pointed at this one: it is left as it is.
refuse_foreign_environment() {
    local owner link remove="rm -rf"
    owner="$(cat "$environment/.installed" 2>/dev/null)"
    owner="${owner#* * }"
    link="$(readlink "$environment")" && remove="rm"
    if [ "$owner" = "$repository" ] || [ -z "$owner$link" ]; then
        return 0
    fi
    echo "setup: $environment is not this checkout's${link:+; it is a link to $link}${owner:+; it was made for $owner}" >&2
    echo "setup: nothing is installed into it. Remove it ($remove '$environment') and type the same command again," >&2
    echo "setup: or activate a conda environment named robustmerge (environment.yml), which is used as it is" >&2
    return 1
}

install_environment() {
    local interpreter stamp
    stamp="$(cat "$repository/requirements.lock" "$repository/pyproject.toml" | cksum) $repository"
    [ "$(cat "$environment/.installed" 2>/dev/null)" = "$stamp" ] && return
    refuse_foreign_environment || return 1
    interpreter="$(find_python)" || return 1
    echo "setup: installing the packages of requirements.lock into .venv (once; a few minutes)"
    if [ ! -x "$environment/bin/pip" ] && ! "$interpreter" -m venv "$environment"; then
        echo "setup: '$interpreter -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv" >&2
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
