#!/usr/bin/env bash
# Builds and checks the package on a machine with an NVIDIA GPU; needs no network.
#
#   scripts/gpu_check.sh OUT [PHASE]     PHASE: build, tests, sanitizer, benchmarks; without it all four
#
# Each phase ends within 10 minutes and leaves three files in the folder OUT: PHASE.log, PHASE.json, PHASE.txt (a
# table). PYTHON names the interpreter that has torch (default python3). The first failing phase ends the script.
set -uo pipefail
if [ $# -lt 1 ] || [ $# -gt 2 ]; then
  sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
limit=570
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "$python sees no CUDA device (PYTHON names another interpreter)" >&2
  exit 3
fi

phase_build() {
  # Only for the GPU at hand: a third of the time of the three default architectures.
  TORCH_CUDA_ARCH_LIST=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
  export TORCH_CUDA_ARCH_LIST
  SNNET_CUDA=1 timeout $limit "$python" setup.py --verbose build_ext --inplace && "$python" -m snnet_kernels
}

phase_tests() {
  timeout $limit "$python" -m pytest tests/kernels/test_gpu.py -q -p no:cacheprovider --junitxml="$out/tests.xml"
}

# The small tests, each kernel through both tools; torch's caching allocator would hide an access past an end.
phase_sanitizer() {
  local tool status=0
  for tool in memcheck racecheck; do
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout $((limit / 2)) compute-sanitizer --tool $tool --error-exitcode 9 \
      --target-processes all "$python" -m pytest tests/kernels/test_gpu.py -q -x -p no:cacheprovider \
      -k "small and (7-3 or 257-33 or head)" --junitxml="$out/$tool.xml" || status=$?
  done
  return $status
}

phase_benchmarks() {
  timeout $limit "$python" -m pytest benchmarks --benchmark-only --device cuda --time-limit 420 -q -p no:cacheprovider \
    --benchmark-json="$out/benchmarks-raw.json"
}

run_phase() {
  echo "== $1"
  local started=$SECONDS status=0
  "phase_$1" >"$out/$1.log" 2>&1 || status=$?
  "$python" scripts/gpu_summary.py "$1" "$out" --status $status --seconds $((SECONDS - started)) || status=1
  cat "$out/$1.txt"
  return $status
}

case ${2:-all} in
  build | tests | sanitizer | benchmarks) run_phase "$2" ;;
  all)
    for phase in build tests sanitizer benchmarks; do
      run_phase $phase || exit 1
    done
    ;;
  *)
    echo "PHASE must be build, tests, sanitizer or benchmarks, got $2" >&2
    exit 2
    ;;
esac
