#!/usr/bin/env bash
# Checks the package on a machine with an NVIDIA GPU, in two calls; needs no network.
#
#   scripts/gpu_check.sh OUT                   8 minutes at most: libraries, small tests, probe, stated figures, large tests
#   scripts/gpu_check.sh OUT second [TEST...]  6 minutes at most: the tests named (pytest ids), ncu, memcheck
#
# A step that fails or runs out of time does not end the call. After each step its last lines are printed and the one
# file OUT/gpu_check.tar.gz is written anew, so a call that is killed keeps what it had. PYTHON names the interpreter
# that has torch (default python3), LIMIT the seconds of the call. Libraries that were built elsewhere are used where
# they load. The exit status is 0 where all steps passed, 1 where one failed, 2 for wrong usage, 3 without a CUDA
# device.
set -uo pipefail
if [ $# -lt 1 ] || { [ $# -gt 1 ] && [ "$2" != second ]; }; then
  sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
mode=${2:-first}
[ "$mode" = first ] && limit=${LIMIT:-470} || limit=${LIMIT:-350} # seconds of the whole call
shift $(($# < 2 ? $# : 2))
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python3}
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "$python sees no CUDA device (PYTHON names another interpreter)" >&2
  exit 3
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD OMP_NUM_THREADS=2
failed=0

keep() { tar -C "$work" -czf "$out/.gpu_check.$$" . && mv "$out/.gpu_check.$$" "$out/gpu_check.tar.gz"; }

# step NAME SECONDS LINES COMMAND...: a command that is ended in time still writes its report; one that hangs is killed.
step() {
  local name=$1 seconds=$2 lines=$3 started=$SECONDS left=$((limit - SECONDS)) status
  shift 3
  if [ $left -lt 5 ]; then
    failed=1
    echo "== $name: skipped, no time is left"
    return
  fi
  timeout --signal=INT --kill-after=10 $((seconds < left ? seconds : left)) "$@" >"$work/$name.log" 2>&1
  status=$?
  [ $status = 0 ] || failed=1
  echo "== $name: status $status after $((SECONDS - started)) s"
  tail -n "$lines" "$work/$name.log"
  keep
}

# Side by side where pytest-xdist is there: a fault of the device fails the tests of one process, not of all.
tests() {
  local name=$1 seconds=$2 parallel=()
  shift 2
  "$python" -c 'import xdist' 2>/dev/null && parallel=(--numprocesses 8 --max-worker-restart 8)
  step "$name" "$seconds" 25 "$python" -m pytest -q -p no:cacheprovider "${parallel[@]}" --durations 8 "$@"
}

figures() {
  step "floors-$1" "$2" 45 "$python" -m pytest benchmarks --benchmark-only --device cuda --floors-only --size "$1" -q \
    -p no:cacheprovider --benchmark-json="$work/floors-$1.json"
}

machine() {
  nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit --format=csv,noheader
  "$python" -m pip list 2>/dev/null | grep -iE '^(torch|triton|numpy|setuptools|pytest|pytest-benchmark|pytest-xdist) '
} >"$work/machine.txt" 2>&1

libraries() {
  # A library that loads may have no code for the GPU.
  if ! SNNET_BACKEND=cuda timeout 60 "$python" -c 'import sys, torch
from snnet_kernels.backends.loaded import without_code
sys.exit("cuda" in without_code(torch.cuda.current_device()))' >"$work/load.log" 2>&1; then
    tail -n 3 "$work/load.log"
    export SNNET_CUDA=1
    TORCH_CUDA_ARCH_LIST=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
    export TORCH_CUDA_ARCH_LIST # only the GPU at hand: a third of the time
    step build 150 12 "$python" setup.py build_ext --inplace
  fi
  step libraries 30 22 "$python" -m snnet_kernels
}

# Wrong results first, small sizes before large; then where the time goes; then the stated figures, cheapest first.
first() {
  tests tests-small 150 tests/kernels/test_gpu.py tests/kernels/test_gpu_head.py -k "not 12936"
  step probe 80 100 "$python" scripts/gpu_probe.py market
  figures market 90
  figures million 100
  [ $((limit - SECONDS)) -lt 70 ] || tests tests-large 70 tests/kernels/test_gpu.py -k 12936
}

second() {
  [ $# = 0 ] || tests tests-again 90 "$@"
  local kernel # the clocks are others' too: ncu leaves them alone
  for kernel in follow_lists_kernel mplp_lists_look_kernel similarity_kernel rank_count_kernel; do
    step "ncu-$kernel" 40 30 ncu --kernel-name "$kernel" --launch-skip 2 --launch-count 1 --set basic --clock-control none \
      "$python" scripts/gpu_probe.py market "$kernel"
  done
  # Sizes 7-3 and 257-33. torch's caching allocator would hide an access past an end; what a library's start asks in
  # vain is no error.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  step memcheck 100 15 "$(command -v compute-sanitizer || echo "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer")" \
    --tool memcheck --error-exitcode 9 --report-api-errors no \
    "$python" -m pytest tests/kernels/test_gpu.py -q -p no:cacheprovider -k "small and 7-3"
}

machine
cat "$work/machine.txt"
keep
libraries
"$mode" "$@"
echo "total $SECONDS s"
exit $failed
