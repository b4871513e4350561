#!/usr/bin/env bash
# run_all.sh in the container: looks whether Docker can do it, makes .env and the folder of results, builds the image,
# and starts a service of docker-compose.yml, so that nothing ends up owned by root.
#
#     ./run_all.sh --docker --quick                  smoke mode (service `quick`)
#     ./run_all.sh --docker --data DIR [OPTION...]   the four arms on one GPU (`reproduce`); options of `vit24h suite`
#     ./run_all.sh --docker --prepare                no start: docker compose takes it from there
#
# Ctrl-C stops and saves. A closed terminal does not: Docker goes on, and the same command shows it again.
# Exit status: the container's; 2 for what the user can mend.
set -euo pipefail

cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.."

compose=() # the command
service=   # of docker-compose.yml; empty: none is started
toolkit="install the NVIDIA Container Toolkit, then sudo nvidia-ctk runtime configure --runtime=docker && \
sudo systemctl restart docker"

main() {
    read_options "$@"
    find_docker
    prepare
    "${compose[@]}" build "${service:-quick}"
    case $service in
        "") echo "Ready: ${compose[*]} up quick, up reproduce, up notebooks" ;;
        quick) start ;;
        reproduce)
            check
            start
            ;;
    esac
}

read_options() {
    case ${1-} in
        --quick | --prepare)
            (($# == 1)) || fail "$1 takes no further options in the container; ./run_all.sh without --docker takes them"
            [[ $1 == --prepare ]] || service=quick
            return
            ;;
        -h | --help | "")
            sed -n '2,/^set/ { s/^# \{0,1\}//p }' "${BASH_SOURCE[0]}"
            exit 0
            ;;
    esac
    service=reproduce
    local options=() data
    while (($#)); do
        case $1 in
            --data | --data=*)
                data=${1#--data}
                data=${data#=}
                if [[ -z $data ]]; then
                    data=${2-}
                    shift
                fi
                [[ -d $data ]] || fail "--data $data: no such folder; expected one that has train/ and val/"
                IMAGENET_DIR=$(readlink -f -- "$data")
                export IMAGENET_DIR
                ;;
            *) options+=("$1") ;;
        esac
        (($# == 0)) || shift
    done
    if ((${#options[@]})); then
        printf -v VIT24H_OPTIONS '%q ' "${options[@]}"
        export VIT24H_OPTIONS
    fi
}

find_docker() {
    local docker said
    docker=$(command -v docker) ||
        fail "no docker here: install Docker Engine, or use ./run_all.sh without --docker, which needs none"
    [[ $docker != /snap/* ]] ||
        echo "note: Docker from a snap sees only folders below your home and often no GPU; Docker's own packages do" >&2
    said=$(docker info 2>&1) || case $said in
        *"permission denied"*) fail "you may not use Docker: sudo usermod -aG docker \"\$USER\", then log in again" ;;
        *) fail "Docker does not answer (sudo systemctl start docker): $(head -n 1 <<<"$said")" ;;
    esac
    if docker compose version &>/dev/null; then
        compose=(docker compose)
    elif command -v docker-compose >/dev/null; then
        compose=(docker-compose)
        export DOCKER_BUILDKIT=1 COMPOSE_DOCKER_CLI_BUILD=1
    else
        fail "no docker compose: install docker-compose-plugin (or docker-compose 1.29)"
    fi
}

# User ids, the folder of results, .env, and the commit for the image's label.
prepare() {
    VIT24H_UID=${SUDO_UID:-$(id -u)}
    VIT24H_GID=${SUDO_GID:-$(id -g)}
    if [[ $(docker info --format '{{.SecurityOptions}}') == *name=rootless* ]]; then
        VIT24H_UID=0 VIT24H_GID=0 # in there, that is you
    fi
    export VIT24H_UID VIT24H_GID

    local results
    results=${VIT24H_RUNS:-$(setting VIT24H_RUNS)}
    results=${results:-runs}
    mkdir -p -- "$results"
    if ((EUID == 0)); then
        chown "$VIT24H_UID:$VIT24H_GID" -- "$results"
    fi
    [[ -w $results ]] || fail "$results is not yours: sudo chown -R $(id -u):$(id -g) $results"

    if [[ ! -f .env ]]; then
        sed -e "s/^VIT24H_UID=.*/VIT24H_UID=$VIT24H_UID/" -e "s/^VIT24H_GID=.*/VIT24H_GID=$VIT24H_GID/" \
            -e "s|^IMAGENET_DIR=.*|IMAGENET_DIR=${IMAGENET_DIR-}|" .env.example >.env
        ((EUID != 0)) || chown "$VIT24H_UID:$VIT24H_GID" .env
        echo "Written: .env"
    fi
    if [[ -z ${VIT24H_COMMIT-} ]] && VIT24H_COMMIT=$(git rev-parse HEAD 2>/dev/null); then
        [[ -z $(git status --porcelain) ]] || VIT24H_COMMIT+=-dirty
        export VIT24H_COMMIT
    fi
}

# All that `reproduce` needs, without training: what Docker says in its own words gets its remedy here.
check() {
    local said
    if said=$("${compose[@]}" run --rm reproduce true 2>&1); then return; fi
    case $said in
        *"could not select device driver"* | *"nvidia-container-cli: initialization error"*)
            fail "Docker cannot give a container the GPU: $toolkit (./run_all.sh --docker --quick needs no GPU)"
            ;;
        *"unsatisfied condition: cuda"*)
            fail "the GPU's driver is too old for CUDA 13.0: update it to 580 or newer and restart the machine"
            ;;
        *"vit24h: "*) grep --max-count=1 '^vit24h: ' <<<"$said" >&2 ;;
        *) echo "$said" >&2 ;;
    esac
    exit 2
}

# Docker has the container, this only shows it: when the terminal is closed, it goes on.
start() {
    local since container follower=
    since=$(date +%s.%N)
    "${compose[@]}" up --detach "$service"
    container=$("${compose[@]}" ps --all --quiet "$service")
    trap 'trap "" INT TERM; "${compose[@]}" stop "$service"' INT TERM
    trap 'kill $follower 2>/dev/null || true' EXIT
    while true; do
        # In a session of its own: Ctrl-C is for this script, which then lets the container save.
        setsid docker logs --follow --since "$since" "$container" &
        follower=$!
        while kill -0 "$follower" 2>/dev/null; do wait "$follower" || true; done
        follower=
        since=$(date +%s.%N)
        # The log ends with the container; it may be about to start again (restart policy).
        case $(docker inspect --format '{{.State.Status}}' "$container") in
            exited | dead) exit "$(docker inspect --format '{{.State.ExitCode}}' "$container")" ;;
        esac
        sleep 0.2
    done
}

# The value of $1 in .env, if it has one.
setting() {
    if [[ -f .env ]]; then sed -n "s/^$1=//p" .env | tail -n 1; fi
}

fail() {
    echo "error: $*" >&2
    exit 2
}

main "$@"
