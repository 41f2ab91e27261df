#!/usr/bin/env bash
# Build and check the native library with the tools of the virtual environment ($VENV, default .venv). Called by the Makefile and by tests/native.
# Usage: scripts/native.sh build PRESET [TARGET...]   configure and build into build/<preset> (release: build/native)
#        scripts/native.sh ctest PRESET               run its C++ tests
#        scripts/native.sh asan | tsan                build and run the tests under sanitizers
#        scripts/native.sh fuzz SECONDS               run every fuzzer over a copy of its corpus
#        scripts/native.sh soak COUNT                 that many generations under LeakSanitizer
#        scripts/native.sh wheel                      install arcflow-native into the virtual environment
# Exit code 77: this machine lacks what the check needs (clang); the reason is printed.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${VENV:-.venv}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
export PATH=$venv/bin:$PATH # cmake, ninja
jobs=${JOBS:-2}
deps() { PYTHON=$venv/bin/python scripts/native-deps.sh; }
fail() { echo "error: $1" >&2; exit 2; }
skip() { echo "skipped: $1" >&2; exit 77; }
folder() { if [ "$1" = release ]; then echo build/native; else echo "build/$1"; fi; }
onnxruntime() { find "$venv"/lib/python3*/site-packages/onnxruntime/capi -name 'libonnxruntime.so.*' 2>/dev/null | head -n 1; }

log=$(mktemp)
trap 'rm -f "$log"' EXIT
logged() { # logged MESSAGE COMMAND...: what the command prints goes into $log, and is shown where it fails
    "${@:2}" >"$log" 2>&1 || { grep -v -E '^\[[0-9]+/[0-9]+\] (Building|Linking)' "$log" >&2 || true; fail "$1 (above)"; }
}
configure() { # configure PRESET OPTIONS...
    local library
    library=$(onnxruntime)
    deps
    mkdir -p build
    logged "cmake cannot configure preset $1" \
        cmake --preset "$1" ${library:+-DARCFLOW_ONNXRUNTIME_LIBRARY="$library"} "${@:2}"
    grep -E '^-- (Host|CUDA|ArcFlow)' "$log" || true
}
build() { # build PRESET TARGETS...
    logged "the build failed" cmake --build "$(folder "$1")" --parallel "$jobs" ${2:+--target "${@:2}"}
}
clang() { # the compiler for preset asan or tsan, as options of cmake
    deps >&2
    local name
    name=${ARCFLOW_CLANG:-$(cat .deps/clang)}
    [ -n "$name" ] || skip "there is no clang++ with sanitizers: install clang-14 and libclang-rt-14-dev"
    name=$(command -v "$name")
    clang_options=(-DCMAKE_CXX_COMPILER="$name" -DCMAKE_C_COMPILER="${name/clang++/clang}")
}
run_ctest() { # run_ctest PRESET OPTIONS...
    logged "C++ tests failed" \
        ctest --test-dir "$(folder "$1")" --output-on-failure --no-tests=error --parallel "$jobs" "${@:2}"
    tail -n 4 "$log" | grep 'tests passed' || true
}
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_stack_use_after_return=1:strict_string_checks=1}
export UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1}
export TSAN_OPTIONS=${TSAN_OPTIONS:-halt_on_error=1:second_deadlock_stack=1}

check=${1:-}
[ $# -gt 0 ] && shift
case $check in
build)
    configure "$1"
    build "$@"
    ;;
ctest)
    run_ctest "$1"
    ;;
asan)
    clang
    configure asan "${clang_options[@]}"
    build asan
    run_ctest asan
    ;;
tsan)
    clang
    configure tsan "${clang_options[@]}"
    build tsan test_threads test_serve_scheduler test_serve_stream test_serve_models arcflow_host_fake
    run_ctest tsan --tests-regex '^test_(threads|serve_(scheduler|stream|models))$'
    ;;
fuzz)
    seconds=${1:?usage: scripts/native.sh fuzz SECONDS}
    clang
    configure asan "${clang_options[@]}"
    build asan
    for fuzzer in build/asan/bin/fuzz_*; do
        name=$(basename "$fuzzer")
        work=build/asan/fuzz/$name
        mkdir -p "$work/corpus"
        # What is found goes into the first folder; the committed corpus is read only.
        "$fuzzer" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 -verbosity=0 \
            -artifact_prefix="$work/" "$work/corpus" "runtime/native/fuzz/corpus/${name#fuzz_}" >"$work/log" 2>&1 ||
            { cat "$work/log" >&2; fail "$name found a fault; the input is in $work"; }
        echo "$name: $(sed -nE 's/^stat::number_of_executed_units: *//p' "$work/log") inputs, no fault"
    done
    ;;
soak)
    count=${1:?usage: scripts/native.sh soak COUNT}
    clang
    configure asan "${clang_options[@]}"
    build asan probe_soak arcflow_runtime arcflow_host_ort
    build/asan/bin/probe_soak "$PWD/engines/bundles/tiny-fp16-cpu" "$(onnxruntime)" "$count"
    ;;
wheel)
    deps
    # The GPU's host is built where a wheel is made for users; here it would only be compiled once more.
    export CMAKE_PREFIX_PATH=$PWD/.deps/usr CMAKE_BUILD_PARALLEL_LEVEL=$jobs
    logged "arcflow-native cannot be built" "$venv/bin/python" -m pip install \
        --disable-pip-version-check --no-build-isolation --no-deps --force-reinstall \
        --config-settings=cmake.define.ARCFLOW_CUDA=OFF --config-settings=cmake.define.ARCFLOW_HOST_TENSORRT=OFF \
        runtime/native/python
    ;;
*)
    sed -n '2,9p' "$0" | sed 's/^# \{0,1\}//' >&2
    exit 2
    ;;
esac
