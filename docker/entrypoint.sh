#!/usr/bin/env bash
# Starts every command in the container: first looks whether what the service needs is there, so that a wrong set-up is
# one line with its remedy and not a traceback from deep inside.
#
#     VIT24H_NEEDS="results dataset gpu"      set by each service of docker-compose.yml; nothing is checked without it
#
# What holds on every machine, container or not, is for `vit24h doctor`, with which every suite begins; here only what
# the container adds: user ids, mounts, devices. Exit status: the command's; 2 for what the user can mend; 75 where the
# GPU is lost and a new start of the container may bring it back.
set -euo pipefail

here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
root=$(dirname -- "$here")

results=${VIT24H_RUNS:-$root/runs}
dataset=/data/imagenet
dataset_on_host=${IMAGENET_DIR-}
oldest_driver=580 # of CUDA 13.0, as in src/vit24h/doctor.py
gpu_lost=75       # exit status, as in src/vit24h/gpu_loss.py

main() {
    VIT24H_IMAGE=$(cat -- "$root/build-id" 2>/dev/null || true)
    export VIT24H_IMAGE

    local need
    for need in ${VIT24H_NEEDS-}; do
        case $need in
            results | dataset | gpu) "check_$need" ;;
            *) refuse "VIT24H_NEEDS: unknown need $need; there are results, dataset, gpu" ;;
        esac
    done
    exec "$@"
}

check_results() {
    [[ -w $results ]] || refuse "user $(id -u):$(id -g) may not write to the folder of results (runs/ beside" \
        "docker-compose.yml, or VIT24H_RUNS): make it yours, and set VIT24H_UID and VIT24H_GID in .env to the output of" \
        "\`id -u\` and \`id -g\`; ./run_all.sh --docker does both. $(selinux_hint)"
}

check_dataset() {
    local mend="set IMAGENET_DIR in .env to the folder that has train/ and val/"
    [[ -n $dataset_on_host ]] || refuse "no dataset: $mend (\`docker compose up quick\` needs none)"
    [[ -r $dataset && -x $dataset ]] || refuse "IMAGENET_DIR=$dataset_on_host: user $(id -u):$(id -g) may not read it:" \
        "give that user the right to. $(selinux_hint)"
    [[ -n $(ls -A -- "$dataset") ]] || refuse "IMAGENET_DIR=$dataset_on_host is empty: $mend; if it is a disk of its" \
        "own, mount it first, then start again with \`docker compose up --force-recreate reproduce\`"
    local part
    for part in train val; do # folders of images, or packed
        compgen -G "$dataset/$part*" >/dev/null || refuse "IMAGENET_DIR=$dataset_on_host has no $part/" \
            "(it has: $(first_entries "$dataset")): $mend, each with a folder of images for every class"
    done
}

check_gpu() {
    compgen -G "/dev/nvidia[0-9]*" >/dev/null || [[ -e /dev/dxg ]] ||
        refuse "no GPU in this container: install the NVIDIA Container Toolkit, then" \
            "\`sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker\`;" \
            "\`docker compose up quick\` needs no GPU"
    local driver
    if ! driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>&1); then
        refuse_with "$gpu_lost" "the GPU does not answer (nvidia-smi: ${driver%%$'\n'*}): if it stays so, restart" \
            "Docker, or the machine"
    fi
    driver=${driver%%$'\n'*}
    if ((${driver%%.*} < oldest_driver)); then
        refuse "the GPU's driver is $driver, and CUDA 13.0 needs $oldest_driver or newer: update it on the host" \
            "(ubuntu-drivers install, or the distribution's nvidia-driver package) and restart the machine"
    fi
}

selinux_hint() {
    echo "Where SELinux is on (Fedora, RHEL), VIT24H_SELINUX=disable in .env lets the container at its folders."
}

first_entries() {
    local entries
    mapfile -t entries < <(ls -A -- "$1")
    echo "${entries[*]:0:5}"
}

refuse() {
    refuse_with 2 "$@"
}

# Docker starts a container of the policy `on-failure` again at once, a few times, whatever the reason: what was said
# seconds ago is not said again.
refuse_with() {
    local status=$1 said=/tmp/vit24h-refused line
    shift
    line="vit24h: $*"
    line=${line% }
    if [[ $(cat -- "$said" 2>/dev/null) != "$line" || -z $(find "$said" -newermt "-15 seconds" 2>/dev/null) ]]; then
        echo "$line" >&2
        echo "$line" >"$said"
    fi
    exit "$status"
}

main "$@"
