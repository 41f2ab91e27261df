#!/bin/sh
# Make what a machine with a GPU and no network needs, on one without a GPU: sh gpu/prepare.sh [OUT]
#
# TARGET_PYTHON: the Python there (3.12). CAPABILITY: of its GPU (90, an H100). LIMIT_MB: what may travel at once (66).
# Prints the two commands to run there. OUT is .work/gpu unless another folder is named.
set -eu
cd "$(dirname "$0")/.."
out=${1:-.work/gpu}
python=${PYTHON:-${VENV:-.venv}/bin/python}

rm -rf "$out/first/cache"
mkdir -p "$out/first" "$out/second"
"$python" -m pip --disable-pip-version-check install -q --target "$out/tools" --upgrade zstandard==0.25.0
export ARCFLOW_CACHE="$out/first/cache" PYTHONPATH="$out/tools${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m gpu.travel.prepare --out "$out" --python "${TARGET_PYTHON:-3.12}" \
	--capability "${CAPABILITY:-90}" --limit "${LIMIT_MB:-66}"
