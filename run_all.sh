#!/usr/bin/env bash
# Reproduces the paper: sets up the environment (once), trains the arms one after another, writes tables and figures.
#
#     ./run_all.sh --quick      the same path in minutes on any machine, on images drawn by the program
#     ./run_all.sh --data DIR   the four 24-hour arms on ImageNet-1k in DIR/train and DIR/val; needs one GPU
#     ./run_all.sh --docker ... the same in the container: setup/docker.sh
#     ./run_all.sh --help       all options: they are those of `vit24h suite`
#
# Started again it goes on where it stopped. Settings of the environment: setup/bootstrap.sh.
set -euo pipefail

root=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
if [[ ${1-} == --docker ]]; then
    exec "$root/setup/docker.sh" "${@:2}"
fi
exec "$root/setup/bootstrap.sh" vit24h suite "$@"
