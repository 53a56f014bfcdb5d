#!/usr/bin/env bash
# Makes .venv once, with plain pip; does nothing when it is up to date. The other scripts source this file.
#   bash scripts/setup.sh
# Needs Python 3.11 or newer; about 2 GB of disk. An active conda environment named robustmerge is used as it is.
repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
environment="$repository/.venv"

stop() { printf 'setup: %s\n' "$@" >&2 && exit 1; }

find_python() {
    for python in "${PYTHON:-}" python3.11 python3.12 python3.13 python3 python; do
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && return
    done
    stop "Python 3.11 or newer is needed and was not found; install it or set PYTHON=/path/to/python"
}

refuse_foreign_environment() { # installing would point that of another checkout at this one
    local link owner remove="rm -rf"
    link="$(readlink "$environment")" && remove="rm"
    owner="$(sed 's/^[^ ]* [^ ]* //' "$environment/.installed" 2>/dev/null)"
    [ "$owner" = "$repository" ] || [ -z "$owner$link" ] ||
        stop "$environment is not this checkout's${link:+; it is a link to $link}${owner:+; it was made for $owner}" \
            "nothing is installed into it. Remove it ($remove '$environment') and type the same command again," \
            "or activate a conda environment named robustmerge (environment.yml), which is used as it is"
}

install="-m pip install --quiet --disable-pip-version-check"
stamp="$(cat "$repository/requirements.lock" "$repository/pyproject.toml" | cksum) $repository"
if [ "${CONDA_DEFAULT_ENV:-}" = robustmerge ] && [ -x "${CONDA_PREFIX:-}/bin/python" ]; then
    environment="$CONDA_PREFIX"
elif [ "$(cat "$environment/.installed" 2>/dev/null)" != "$stamp" ]; then
    refuse_foreign_environment && find_python
    echo "setup: installing the packages of requirements.lock into .venv (once; a few minutes)"
    [ -x "$environment/bin/pip" ] || "$python" -m venv "$environment" ||
        stop "'$python -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv"
    "$environment/bin/python" $install -r "$repository/requirements.lock" &&
        "$environment/bin/python" $install --no-deps -e "$repository" && echo "$stamp" >"$environment/.installed" ||
        stop "installing failed (see above); run the same command again to go on"
fi
python="$environment/bin/python"
