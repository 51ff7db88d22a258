#!/usr/bin/env bash
# Builds and checks the package on a machine with an NVIDIA GPU; needs no network.
#
#   scripts/gpu_check.sh OUT [PHASE]     PHASE: build, tests, floors, sanitizer, benchmarks; without it all five
#
# Each phase ends within LIMIT seconds (default 570) and leaves three files in the folder OUT: PHASE.log, PHASE.json,
# PHASE.txt (a table). PYTHON names the interpreter that has torch (default python3). Only a build that fails ends the
# script: the other phases run whatever became of those before.
set -uo pipefail
if [ $# -lt 1 ] || [ $# -gt 2 ]; then
  sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
limit=${LIMIT:-570}
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "$python sees no CUDA device (PYTHON names another interpreter)" >&2
  exit 3
fi

# within SECONDS COMMAND...: ended in time it still writes its report, and is killed where it hangs.
within() { timeout --kill-after=20 "$@"; }

phase_build() {
  # Only for the GPU at hand: a third of the time of the three default architectures.
  TORCH_CUDA_ARCH_LIST=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
  export TORCH_CUDA_ARCH_LIST
  SNNET_CUDA=1 within "$limit" "$python" setup.py --verbose build_ext --inplace || return
  "$python" -m snnet_kernels
  SNNET_BACKEND=cuda "$python" -c 'import snnet_kernels'  # an error where the library does not load
}

# Side by side where pytest-xdist is there: a fault of the device fails the tests of one process, not of all.
phase_tests() {
  local parallel=()
  "$python" -c 'import xdist' 2>/dev/null && parallel=(--numprocesses 8 --max-worker-restart 8)
  OMP_NUM_THREADS=2 within "$limit" "$python" -m pytest tests/kernels/test_gpu.py -v -p no:cacheprovider \
    "${parallel[@]}" -o faulthandler_timeout=120 --durations 15 --junitxml="$out/tests.xml"
}

# What floors.yaml states, without torch.compile: minutes.
phase_floors() {
  within "$limit" "$python" -m pytest benchmarks --benchmark-only --device cuda --floors-only -v -p no:cacheprovider \
    -o faulthandler_timeout=120 --benchmark-json="$out/floors-raw.json"
}

# The small tests, each kernel through both tools; torch's caching allocator would hide an access past an end. What a
# library's start asks the driver in vain is no error of a kernel.
phase_sanitizer() {
  local tool sanitizer status=0
  sanitizer=$(command -v compute-sanitizer || echo "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer")
  for tool in memcheck racecheck; do
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 within $((limit / 2 - 20)) "$sanitizer" --tool $tool --error-exitcode 9 \
      --report-api-errors no "$python" -m pytest tests/kernels/test_gpu.py -v -x -p no:cacheprovider \
      -k "small and (7-3 or 257-33 or head)" --junitxml="$out/$tool.xml" || status=$?
  done
  return $status
}

# Everything against torch.compile too, the stated ratios first.
phase_benchmarks() {
  within "$limit" "$python" -m pytest benchmarks --benchmark-only --device cuda --time-limit $((limit * 7 / 10)) -v \
    -p no:cacheprovider --benchmark-json="$out/benchmarks-raw.json"
}

run_phase() {
  echo "== $1"
  local started=$SECONDS status=0
  "phase_$1" >"$out/$1.log" 2>&1 || status=$?
  "$python" scripts/gpu_summary.py "$1" "$out" --status $status --seconds $((SECONDS - started)) || status=1
  cat "$out/$1.txt"
  return $status
}

phases=(build tests floors sanitizer benchmarks)
case ${2:-all} in
  build | tests | floors | sanitizer | benchmarks) run_phase "$2" ;;
  all)
    failed=0
    for phase in "${phases[@]}"; do
      run_phase "$phase" || failed=1
      [ "$phase" != build ] || [ $failed = 0 ] || break
    done
    exit $failed
    ;;
  *)
    echo "PHASE must be one of ${phases[*]}, got $2" >&2
    exit 2
    ;;
esac
