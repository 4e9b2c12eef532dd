#!/usr/bin/env bash
# The C++ tests with AddressSanitizer and UBSan, then with ThreadSanitizer, in a folder to keep the builds in; then the
# Python tests of the native ops on a module with the first two:  tests/csrc/sanitize.sh [FOLDER] [PYTEST ARGUMENT...]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
builds=${1:-$(mktemp -d)}
shift || true
mkdir -p "$builds"
python=${PYTHON:-python}
tests=("$root"/tests/test_native*.py)

build() {  # name, sanitizers; with -O3 it takes several times as long
  cmake -S "$root" -B "$builds/$1" -DFASTDREAM_CUDA=OFF -DFASTDREAM_TESTS=ON -DFASTDREAM_SANITIZE="$2" \
    -DCMAKE_CXX_FLAGS_RELEASE=-O1 -DPython_EXECUTABLE="$(command -v "$python")" >"$builds/$1.log" || { cat "$builds/$1.log"; exit 1; }
  cmake --build "$builds/$1" --parallel "${JOBS:-2}" >"$builds/$1.log" || { cat "$builds/$1.log"; exit 1; }
}

build memory address,undefined
build threads thread
# A kernel may be given no memory at all, for which Python has an error.
export ASAN_OPTIONS=allocator_may_return_null=1
ctest --test-dir "$builds/memory" --output-on-failure
ctest --test-dir "$builds/threads" --output-on-failure

# Python itself is not instrumented: the runtime comes first, and what the interpreter never frees is no leak of ours.
package=$builds/package
rm -rf "$package"
mkdir "$package"
cp -r "$root/fastdream" "$package/fastdream"
rm -f "$package"/fastdream/_C.*.so
cp "$builds"/memory/_C.*.so "$package/fastdream/"
compiler=$(sed -n 's/^CMAKE_CXX_COMPILER:[A-Z]*=//p' "$builds/memory/CMakeCache.txt")
runtime=$("$compiler" -print-file-name=libasan.so):$("$compiler" -print-file-name=libubsan.so)
cd "$root"
export PYTHONPATH=$package LD_PRELOAD=$runtime:$("$compiler" -print-file-name=libstdc++.so)
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1
"$python" -P -c "import fastdream._C as C; assert C.__file__.startswith('$package/'), C.__file__"
# nvcc does not run under the runtime; no kernel of a test of it is instrumented.
"$python" -P -m pytest -q -p no:cacheprovider -k "not spill" "${tests[@]}" "$@"
