#!/usr/bin/env bash
# On a machine with a GPU, network or not: the CUDA tests, kernels, network and overhead, within 10 minutes. `make gpu`.
# One line for each: what was written, or why it was left out. Status 1 where any was left out.
#
#   OUT      folder of gpu-*.json and gpu-*.log                        (benchmarks/notes)
#   MINUTES  it ends by then                                           (9.5)
#   PYTHON   has torch, and for the tests pytest and mpi4py            (.venv/bin/python, else python3)
#   TINY     1: smallest sizes, on the CPU, to try every line of this  (0)
set -u
cd "$(dirname "$0")/.." || exit 1
OUT=${OUT:-benchmarks/notes} TINY=${TINY:-0}
SECONDS=0 limit=$(awk "BEGIN { print int(60 * ${MINUTES:-9.5}) }") left_out=0
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 SLIDEFIELD_GPU=cuda device=cuda
mkdir -p "$OUT"

images=() kernels=() overhead=()
if [ "$TINY" = 1 ]; then
    device=cpu SLIDEFIELD_GPU=cpu
    images=(--dim 16 --side 16 --batch 2 --rounds 2)
    kernels=(--side 128 --count-side 128 --repeats 1)
    overhead=(--size 256 --large-size 512 --levels 3 --large-levels 3 --gflop 0.2 --batch 2)
elif ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "error: $PYTHON sees no GPU through torch; PYTHON=... names another, TINY=1 tries all this on the CPU" >&2
    exit 1
fi

# try NAME SECONDS COMMAND...: run it that long at most; its words go to gpu-NAME.log
try() {
    local name=$1 most=$2 log=$OUT/gpu-$1.log status began=$SECONDS
    shift 2
    [ $((limit - SECONDS)) -lt "$most" ] && most=$((limit - SECONDS - 5))
    if [ "$most" -lt 10 ]; then
        status=124
    else
        timeout -k 5 "$most" "$@" >"$log" 2>&1
        status=$?
    fi
    case $status in
        0) echo "$name: done in $((SECONDS - began)) s: $(tail -n 1 "$log")" ;;
        124 | 137) echo "$name: left out: out of time after $((SECONDS - began)) s" ;;
        *) echo "$name: left out: status $status: $(grep . "$log" | tail -n 1)" ;;
    esac
    [ "$status" -eq 0 ] || left_out=1
}
bench() { try "$1" "$2" "$PYTHON" -m "benchmarks.$3" --json "$OUT/gpu-$1.json" "${@:4}"; }

# What is worth most comes first; what compiles, and may take longest, last.
try tests 180 "$PYTHON" -m pytest -p no:cacheprovider -m gpu tests/test_gpu.py -k "not compiled"
bench kernels 60 kernels "${kernels[@]}"
bench images 60 images --device "$device" "${images[@]}"
bench overhead 90 overhead --device "$device" "${overhead[@]}"
bench overhead-bfloat16 60 overhead --device "$device" --dtype bfloat16 "${overhead[@]}"
[ "$TINY" = 1 ] && images=(--dim 8 --side 16 --batch 1 --rounds 1 --dtypes float32) # to compile takes minutes there
bench images-compiled 180 images --device "$device" --compile "${images[@]}"
try tests-compiled 120 "$PYTHON" -m pytest -p no:cacheprovider -m gpu tests/test_gpu.py -k compiled
echo "$SECONDS s; reports are in $OUT"
exit "$left_out"
