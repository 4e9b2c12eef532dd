#!/usr/bin/env bash
# The parity tests of Triton's kernels under compute-sanitizer, at small and ragged sizes: memory, races, barriers.
#   tests/sanitize_gpu.sh [PYTEST ARGUMENT...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
sanitizer=${SANITIZER:-$(command -v compute-sanitizer || true)}
[ -n "$sanitizer" ] || { echo "compute-sanitizer is not there: it comes with the CUDA toolkit" >&2; exit 2; }
# Each tensor gets memory of its own, so that one byte past its end is an error.
export PYTORCH_NO_CUDA_MEMORY_CACHING=1
for tool in memcheck racecheck synccheck; do
  echo "$tool"
  # What kernels do is at issue: libraries ask drivers for what these may not have, and go on without it.
  options=()
  [ "$tool" != memcheck ] || options=(--report-api-errors no)
  "$sanitizer" --tool "$tool" "${options[@]}" --target-processes all --error-exitcode 9 \
    "${PYTHON:-python}" -m pytest -q -p no:cacheprovider -k agrees_with_reference tests/test_triton.py "$@"
done
