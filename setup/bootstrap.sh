#!/usr/bin/env bash
# Makes this checkout's Python environment ready, then runs a command in it:
#
#     setup/bootstrap.sh [--test] [COMMAND [ARGUMENT...]]       e.g. setup/bootstrap.sh vit24h --help
#
# The environment is the first of these that holds exactly the packages of requirements.lock: .venv, the activated
# environment (venv or conda), the Python on the PATH (a container). If none does, .venv is made. --test adds the
# packages of tests/requirements.lock. When all is there already this takes a fraction of a second and no network.
#
#     VIT24H_VENV=FOLDER       this environment and no other; made if it is missing
#     VIT24H_PYTHON=PYTHON     the Python to make it with, 3.11 or 3.12; else the first that fits on the PATH
#
# This file finds a Python and knows nothing of packages; bootstrap.py does the rest.
# Exit status: the command's; 2 for what the user can mend.
set -euo pipefail

here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
supported="3.12 3.11" # best first
test_option=""        # or --test

# What runs is what the lock says: nothing from the user's site-packages or from another project's path.
unset PYTHONPATH PYTHONHOME
export PYTHONNOUSERSITE=1 PIP_DISABLE_PIP_VERSION_CHECK=1

main() {
    if [[ ${1-} == --test ]]; then
        test_option=--test
        shift
    fi
    if [[ -n ${VIT24H_PYTHON-} ]]; then
        is_supported "$VIT24H_PYTHON" || fail "VIT24H_PYTHON=$VIT24H_PYTHON is not a Python 3.11 or 3.12"
        supported=$(version_of "$VIT24H_PYTHON")
    fi
    local venv environments
    if [[ -n ${VIT24H_VENV-} ]]; then
        venv=$(readlink -m -- "$VIT24H_VENV")
        environments=("$venv")
    else
        venv=$(dirname -- "$here")/.venv
        environments=("$venv" "${VIRTUAL_ENV:-$venv}" "${CONDA_PREFIX:-$venv}")
    fi

    local environment
    for environment in "${environments[@]}"; do
        if is_supported "$environment/bin/python" && complete "$environment/bin/python"; then
            run "$@"
        fi
    done

    local pythons
    mapfile -t pythons < <(supported_pythons)
    ((${#pythons[@]})) || fail "no Python 3.11 or 3.12 found: $(how_to_get_python)"
    if [[ -z ${VIT24H_VENV-} ]] && complete "${pythons[0]}"; then
        run "$@"
    fi

    local python
    for python in "${pythons[@]}"; do
        if "$python" -I -c 'import ensurepip' 2>/dev/null; then
            "$python" -I "$here/bootstrap.py" create "$venv"
            complete "$venv/bin/python" || fail "$venv does not hold what was just installed; remove it and start again"
            run "$@"
        fi
    done
    fail "${pythons[0]} cannot make virtual environments:" \
        "sudo apt-get install python$(version_of "${pythons[0]}")-venv (or name another Python in VIT24H_PYTHON)"
}

# Brings the environment of the Python $1 up to date and sets `bin` to the folder of its commands;
# fails if it does not hold the packages of requirements.lock.
complete() {
    local status=0
    bin=$("$1" -I "$here/bootstrap.py" complete $test_option) || status=$?
    case $status in
        0 | 3) return "$status" ;; # 3: other packages
        *) exit "$status" ;;
    esac
}

# Replaces this shell by the command, so that signals reach it.
run() {
    (($#)) || exit 0
    export PATH=$bin:$PATH
    exec "$@"
}

# Every Python on the PATH that will do. A name may stand there several times, and some are pyenv's stand-ins
# for versions that are not switched on: they exist, and fail.
supported_pythons() {
    if [[ -n ${VIT24H_PYTHON-} ]]; then
        echo "$VIT24H_PYTHON"
        return
    fi
    local python
    while read -r python; do
        if is_supported "$python"; then echo "$python"; fi
    done < <(type -aP python3.12 python3.11 python3 python || true)
}

is_supported() {
    local version
    version=$(version_of "$1")
    [[ -n $version && " $supported " == *" $version "* ]]
}

# 3.12, or nothing if it does not run
version_of() {
    "$1" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true
}

how_to_get_python() {
    local version
    for version in $supported; do
        if apt-cache show "python$version-venv" &>/dev/null; then
            echo "sudo apt-get install python$version python$version-venv"
            return
        fi
    done
    echo "sudo apt-get update && sudo apt-get install python3.12 python3.12-venv (python3.11 on Debian 12);" \
        "where the system has neither, make one with conda or pyenv and name it in VIT24H_PYTHON"
}

fail() {
    echo "error: $*" >&2
    exit 2
}

main "$@"
