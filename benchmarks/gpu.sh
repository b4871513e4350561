#!/usr/bin/env bash
# Everything that only a GPU can show, in one call of under ten minutes:
#
#     benchmarks/gpu.sh [--out DIR] [--data IMAGES]     tests, step, compiling, loader and step, doctor, plan
#     benchmarks/gpu.sh --rehearse [--out DIR]          the same path in small, without a GPU; its figures mean nothing
#
# Records go to DIR (default: $OUT, else benchmarks/records/new). Without --data, images are drawn. Each part has a time
# limit of its own; what a part had measured until then stays. Installs nothing: it takes the first of $VIT24H_PYTHON,
# python3 and .venv/bin/python whose torch sees the GPU.
# Exit status: 0 all parts went well; 1 some did not, named at the end; 2 no GPU, or a wrong option.
set -uo pipefail

root=$(dirname -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")")
total_s=570
patience=1 # times the limits
out=${OUT:-$root/benchmarks/records/new}
data=""
rehearse=false
failed=()

main() {
    while (($#)); do
        case $1 in
            --out) out=${2:?--out needs a folder} && shift 2 ;;
            --data) data=${2:?--data needs a folder} && shift 2 ;;
            --rehearse) rehearse=true && shift ;;
            *) stop "$1: not an option of benchmarks/gpu.sh; see its first lines" ;;
        esac
    done
    mkdir -p -- "$out" || stop "$out: cannot be made"
    out=$(readlink -f -- "$out")
    export PYTHONUNBUFFERED=1 PYTHONPATH=$root/src${PYTHONPATH:+:$PYTHONPATH}
    find_python
    echo "python: $python ($("$python" -c 'import torch; print("torch", torch.__version__)'))"
    cd -- "$root" || exit 2

    # What is read: --data, or drawn images; the small set of these has shorter epochs than ImageNet's.
    local images=(--data "$data") both=(--data "$data") profile=full step=(--minutes 2.2) times=()
    if [[ -z $data ]]; then
        images=(--set data.synthetic=true --set data.epoch_multiple=64)
        both=(--set data.epoch_multiple=64)
    fi
    if $rehearse; then
        patience=4 # a machine without a GPU may be slow, and nothing there counts the minutes
        profile=quick
        step=(--small --sizes 32 --batch 2 --rounds 2)
        times=(--backend aot_eager)
        both+=(--sizes 16 --seconds 0.1 --set runtime.workers=1 --set optimizer.batch_size=8)
    else
        both+=(--minutes 0.6 --seconds 2 --sizes "224,128,32")
    fi
    times+=(--profile "$profile")
    both+=(--profile "$profile")

    # limit in seconds, name, command; the most wanted first
    part 120 tests "$python" -m pytest -q -p no:cacheprovider tests/test_gpu.py
    part 180 step "$python" benchmarks/step.py --out "$out" "${step[@]}"
    part 130 compile_times "$python" benchmarks/compile_times.py --out "$out" "${times[@]}"
    part 50 end_to_end "$python" benchmarks/end_to_end.py --out "$out" "${both[@]}"
    part 40 doctor "$python" -m vit24h doctor --profile "$profile" "${images[@]}"
    if "$python" -m vit24h plan --help >/dev/null 2>&1; then
        part 50 plan "$python" -m vit24h plan paper/combined --profile "$profile" --out "$out/plan.json" "${images[@]}"
    else
        echo "== plan: this checkout has no such command yet"
    fi

    echo "== $SECONDS s in all; records in $out: $(cd -- "$out" && echo *.json)"
    if ((${#failed[@]})); then
        printf 'failed: %s\n' "${failed[@]}" >&2
        exit 1
    fi
}

# The python whose torch sees a GPU; for a rehearsal, any that has torch.
find_python() {
    local candidate test='import torch, sys; sys.exit(not torch.cuda.is_available())'
    if $rehearse; then
        test='import torch'
    fi
    for candidate in ${VIT24H_PYTHON:+"$VIT24H_PYTHON"} python3 "$root/.venv/bin/python"; do
        if "$candidate" -c "$test" 2>/dev/null; then
            python=$candidate
            return
        fi
    done
    stop "no GPU found: neither \$VIT24H_PYTHON nor python3 nor .venv/bin/python has a torch that sees one; \
--rehearse runs the same path in small without one"
}

# part LIMIT NAME COMMAND...: runs it for at most LIMIT seconds, and never past the end of the whole.
part() {
    local limit=$((patience * $1)) name=$2 left=$((patience * total_s - SECONDS)) begin=$SECONDS status
    shift 2
    if ((left < 5)); then
        failed+=("$name: no time left")
        return
    fi
    if ((limit > left)); then
        limit=$left
    fi
    printf '\n== %s, at most %d s\n' "$name" "$limit"
    # INT first, so that Python writes what it has; KILL if that does not help
    timeout --signal=INT --kill-after=5 "$limit" "$@" 2>&1 | tee "$out/$name.log"
    status=${PIPESTATUS[0]}
    printf '== %s: %d s, exit status %d\n' "$name" $((SECONDS - begin)) "$status"
    case $status in
        0) ;;
        124 | 137) failed+=("$name: longer than $limit s") ;;
        *) failed+=("$name: exit status $status") ;;
    esac
}

stop() {
    echo "error: $1" >&2
    exit 2
}

main "$@"
