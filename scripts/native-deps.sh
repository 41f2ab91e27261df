#!/usr/bin/env bash
# Fetch what the native build needs and this machine lacks, into a folder, installing nothing but, as root,
# the tools of the tests: clang and pkg-config.
# Usage: scripts/native-deps.sh [FOLDER]     (FOLDER: .deps; the build reads FOLDER/usr and FOLDER/trt)
#
# Debian's packages are downloaded with apt-get and unpacked with dpkg. ONNX Runtime's headers come from a
# newer suite than the machine's, through package lists of our own; the mirror is the one that apt is set up with
# ($ARCFLOW_DEBIAN_MIRROR names another). TensorRT's headers are for a compile check only. On other systems the script
# says what to install. Versions that the newer suite moves are not pinned: what is there is taken, held to the least
# that the sources need, and printed.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-$root/.deps}
suite=${ARCFLOW_DEBIAN_SUITE:-forky}
python=${PYTHON:-$root/.venv/bin/python}
tensorrt_wheel=kernel-lens==2.0.1 # the one package of the index that carries NvInferRuntime.h (10.14, Apache-2.0)
least_onnxruntime_api=20
clangs="14 19 18 17 16 15"

fail() { echo "error: $1" >&2; exit 2; }
say() { echo "native-deps: $*"; }
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
include=$folder/usr/include
stamp=$folder/.complete
key=$(sha256sum "$0" | cut -d' ' -f1)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
has_apt() { command -v apt-get >/dev/null && command -v dpkg >/dev/null; }
as_root() { [ "$(id -u)" = 0 ]; }
quietly() { "$@" >"$work/log" 2>&1 || { cat "$work/log" >&2; return 1; }; }
# apt would warn that its sandbox user cannot write into our private folder; say who downloads instead.
apt() { quietly apt-get --quiet --option APT::Sandbox::User="$(id -un)" "$@"; }
known() { apt-cache policy "$1" 2>/dev/null | grep 'Candidate: [^(]' >/dev/null; }
lists() { # lists PACKAGE: apt's package lists are there
    known "$1" && return
    as_root || fail "apt does not know $1: run 'apt-get update' as root, or install it"
    say "fetching package lists"
    apt update || fail "apt-get update failed (above): check the network and /etc/apt"
}
finds() { printf '#include <cstdio>\n#include <%s>\n' "$1" | ${CXX:-c++} -x c++ -std=c++17 -E - >/dev/null 2>&1; }
macro() { sed -nE "s/^#define[[:space:]]+$2[[:space:]]+\"?([0-9.]+).*/\1/p" "$1" | head -n 1; }
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }
unpack() { # unpack ARCHIVES...: into $folder, headers of the machine's architecture beside the others
    local archive path
    for archive; do dpkg -x "$archive" "$folder"; done
    for path in "$include"/*-linux-gnu*; do
        [ -d "$path" ] && cp -R "$path/." "$include/" && rm -rf "$path"
    done
    # Links to shared libraries, which were not unpacked: the static ones are used.
    find "$folder/usr" -type l -name '*.so*' -delete
}

whole() { # whether a run before this one fetched all, and what it left to the system is still there
    local header
    [ "$(cat "$stamp" 2>/dev/null)" = "$key" ] || return
    while read -r header _; do [ -e "$include/$header" ] || finds "$header" || return; done <<<"$libraries"
}
libraries='nlohmann/json.hpp nlohmann-json3-dev
openssl/evp.h libssl-dev
zlib.h zlib1g-dev
utf8proc.h libutf8proc-dev
CLI/CLI.hpp libcli11-dev
jpeglib.h libjpeg62-turbo-dev
webp/encode.h libwebp-dev
doctest/doctest.h doctest-dev
boost/beast/http.hpp libboost-dev'
whole && exit 0

command -v "${CXX:-c++}" >/dev/null ||
    fail "there is no C++ compiler (${CXX:-c++}): on Debian and Ubuntu install the package g++ (12 or newer)"

# --- libraries of the core and of the tests: header, Debian package ---
lacking=()
while read -r header package; do
    [ -e "$include/$header" ] || finds "$header" || lacking+=("$package")
done <<<"$libraries"
if [ ${#lacking[@]} -gt 0 ]; then
    has_apt || fail "install what gives these headers (Debian's names): ${lacking[*]}; then run this again"
    lists "${lacking[0]}"
    # From Debian 13 on a part of libwebp is a package of its own.
    case " ${lacking[*]} " in *" libwebp-dev "*) known libsharpyuv-dev && lacking+=(libsharpyuv-dev) ;; esac
    # Boost's headers are in the package of its version, which libboost-dev only names.
    boost=$(apt-cache depends libboost-dev 2>/dev/null | sed -nE 's/.*Depends: (libboost[0-9.]+-dev).*/\1/p' | head -n 1)
    lacking=("${lacking[@]/#libboost-dev/${boost:-libboost-dev}}")
    say "fetching ${lacking[*]}"
    (cd "$work" && apt download "${lacking[@]}") || {
        as_root && apt update && (cd "$work" && apt download "${lacking[@]}") # the lists were older than the mirror
    } || fail "apt cannot download ${lacking[*]} (above): run 'apt-get update', or install them"
    unpack "$work"/*.deb
fi

# --- ONNX Runtime's headers, from a newer suite of the machine's own mirror ---
mirror() { # the first mirror of Debian itself, in either style of list
    if [ -n "${ARCFLOW_DEBIAN_MIRROR:-}" ]; then echo "$ARCFLOW_DEBIAN_MIRROR"; return; fi
    {
        sed -nE 's/^URIs:[[:space:]]*//p' /etc/apt/sources.list.d/*.sources 2>/dev/null
        sed -nE 's/^deb[[:space:]]+(\[[^]]*\][[:space:]]*)?([^[:space:]]+).*/\2/p' \
            /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null
    } | tr -s ' \t' '\n' | sed -E 's,/+$,,' | grep -m 1 -E '/debian$' || true
}
newer() { # newer VERB...: apt-get with that suite's lists alone
    apt --option Dir::Etc::SourceList="$work/suite.sources" --option Dir::Etc::SourceParts=/dev/null \
        --option Dir::State::Lists="$work/lists" --option Dir::Cache="$work/cache" --option Dir::State::status=/dev/null \
        --option Acquire::Languages=none --option Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false "$@"
}
use_newer() {
    [ -e "$work/suite.sources" ] && return
    local uri keyring=/usr/share/keyrings/debian-archive-keyring
    has_apt || fail "put ONNX Runtime's headers into $include/onnxruntime"
    uri=$(mirror)
    [ -n "$uri" ] || fail "apt is not set up with a mirror of Debian: name one in \$ARCFLOW_DEBIAN_MIRROR, or put ONNX \
Runtime's headers into $include/onnxruntime"
    for keyring in "$keyring".pgp "$keyring".gpg; do [ -e "$keyring" ] && break; done
    [ -e "$keyring" ] || fail "Debian's keys are not here: install the package debian-archive-keyring"
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
    printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n' "$uri" "$suite" "$keyring" \
        >"$work/suite.sources"
    say "fetching the package lists of Debian $suite"
    newer update || fail "cannot read Debian $suite from $uri (above)"
}
ort=$include/onnxruntime/onnxruntime_c_api.h
if [ ! -e "$ort" ]; then
    use_newer
    say "fetching ONNX Runtime's headers"
    mkdir "$work/ort"
    (cd "$work/ort" && newer download libonnxruntime-dev) || fail "Debian $suite has no libonnxruntime-dev (above)"
    dpkg -x "$work"/ort/*.deb "$work/ort/unpacked"
    found=$(find "$work/ort/unpacked" -name onnxruntime_c_api.h | head -n 1)
    [ -n "$found" ] || fail "libonnxruntime-dev of Debian $suite holds no onnxruntime_c_api.h"
    mkdir -p "$include/onnxruntime"
    cp -R "$(dirname "$found")/." "$include/onnxruntime/"
fi
api=$(macro "$ort" ORT_API_VERSION)
at_least "${api:-0}" $least_onnxruntime_api || fail "$ort is of API ${api:-unknown}; $least_onnxruntime_api is needed"

# --- TensorRT's headers, for a compile check ---
if [ ! -e "$folder/trt/NvInferRuntime.h" ]; then
    say "fetching TensorRT's headers ($tensorrt_wheel)"
    if quietly "$python" -m pip --disable-pip-version-check download --quiet --no-deps --dest "$work" "$tensorrt_wheel"; then
        "$python" -m zipfile -e "$work"/kernel_lens-*.whl "$work/wheel"
        header=$(find "$work/wheel" -name NvInferRuntime.h | head -n 1)
        [ -n "$header" ] || fail "$tensorrt_wheel holds no NvInferRuntime.h"
        mkdir -p "$folder/trt" && cp "$(dirname "$header")"/*.h "$folder/trt/"
    else
        fail "cannot download $tensorrt_wheel (above); or put the headers of your TensorRT into $folder/trt"
    fi
fi

# --- tools of the tests: clang with its sanitizers and libFuzzer, pkg-config ---
works() { # whether that clang++ can link a fuzzer with AddressSanitizer
    printf 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }' |
        "$1" -x c++ -fsanitize=fuzzer,address - -o "$work/fuzzer" 2>/dev/null
}
clang=
for version in $clangs; do
    for name in "clang++-$version"; do works "$name" && clang=$name && break 2; done
done
[ -z "$clang" ] && works clang++ && clang=clang++
if [ -z "$clang" ] && has_apt && as_root; then
    lists clang
    for version in $clangs; do
        known "libclang-rt-$version-dev" || continue
        say "installing clang-$version (sanitizers, fuzzers)"
        DEBIAN_FRONTEND=noninteractive apt install --yes --no-install-recommends \
            "clang-$version" "libclang-rt-$version-dev" "llvm-$version" || fail "apt cannot install clang-$version (above)"
        clang=clang++-$version
        break
    done
fi
if ! command -v pkg-config >/dev/null && has_apt && as_root; then
    lists pkg-config
    say "installing pkg-config (a test of the installed package)"
    DEBIAN_FRONTEND=noninteractive apt install --yes --no-install-recommends pkg-config || fail "apt cannot install pkg-config"
fi

echo "$clang" >"$folder/clang" # read by the tests and the Makefile; empty: none
say "ONNX Runtime's headers: API $api;" \
    "TensorRT's $(sed -nE 's/^#define [A-Z_]*TR?T?_(MAJOR|MINOR)(_ENTERPRISE)? ([0-9]+).*/\3/p' \
        "$folder/trt/NvInferVersion.h" | sed -n 1,2p | paste -sd.);" \
    "clang: ${clang:-none (sanitizers and fuzzers are left out: install clang-14 and libclang-rt-14-dev)}"
if [ -n "$clang" ]; then echo "$key" >"$stamp"; fi # without clang, look again the next time
