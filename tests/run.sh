#!/usr/bin/env bash
# Runs all tests, after setting up the environment and what only the tests need (once).
#
#     tests/run.sh                          all
#     tests/run.sh -k curriculum -x         any options of pytest; paths are relative to the project
set -euo pipefail

root=$(dirname -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")")
cd -- "$root"
exec setup/bootstrap.sh --test pytest "$@"
