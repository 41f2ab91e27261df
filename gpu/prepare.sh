#!/bin/sh
# Make what a machine with a GPU and no network needs, on one without a GPU: sh gpu/prepare.sh [OUT]
#
# TARGET_PYTHON: the Python there (3.12). CAPABILITY: of its GPU (90, an H100). LIMIT_MB: what may travel at once (60).
# Prints the two commands to run there. OUT is .work/gpu unless another folder is named.
set -eu
cd "$(dirname "$0")/.."
out=${1:-.work/gpu}
python=${PYTHON:-${VENV:-.venv}/bin/python}
version=${TARGET_PYTHON:-3.12} capability=${CAPABILITY:-90} limit=${LIMIT_MB:-60}

mkdir -p "$out/first" "$out/second" "$out/tools" "$out/packages"
rm -rf "$out/first/cache"
echo "Compiling the kernels for sm_$capability"
ARCFLOW_CACHE="$out/first/cache" "$python" -m gpu.travel.kernels --capability "$capability"

echo "Fetching packages for CPython $version"
"$python" -m pip --disable-pip-version-check install -q --target "$out/tools" --upgrade zstandard==0.25.0
PYTHONPATH="$out/tools${PYTHONPATH:+:$PYTHONPATH}" "$python" -m gpu.travel.site --python "$version" \
	--capability "$capability" --out "$out/packages"
mv "$out/packages/site.tar.xz" "$out/second/"

exec "$python" -m gpu.travel.send --out "$out" --limit "$limit"
