#!/usr/bin/env bash
# Writes requirements.lock and tests/requirements.lock anew from pyproject.toml; needs uv (`pip install uv`).
#
#     setup/lock.sh                          after a change in pyproject.toml: all else keeps its version
#     setup/lock.sh --upgrade-package timm   the newest timm that pyproject.toml allows
#     setup/lock.sh --upgrade                the newest of everything
#
# Commit both files together: the second holds what only the tests need on top of the first.
set -euo pipefail

cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.."

export UV_CUSTOM_COMPILE_COMMAND=setup/lock.sh # what the first lines of the locks name as their origin

# One file for Python 3.11 and 3.12 (markers where they differ), hashes for all, and no index: that is the user's choice.
compile=(uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url "$@")

"${compile[@]}" pyproject.toml --output-file requirements.lock
"${compile[@]}" --group test --constraint requirements.lock --output-file tests/requirements.lock
