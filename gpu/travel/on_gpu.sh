#!/bin/sh
# What runs on the machine with a GPU, in the repository's root: sh gpu/travel/on_gpu.sh first|second [PREPARED] [OUT]
#
# PREPARED is what gpu/prepare.sh made for that command, OUT gets the figures, after every record. Neither command needs
# a network, and each ends by itself within seven minutes. The first keeps models and bundles in a folder outside the
# repository, so that the second can do without sending them again.
#
# PYTHON: the interpreter (python3). ARCFLOW_KEPT: that folder. ARCFLOW_REHEARSE=1: toy sizes, where there is no GPU.
set -eu
case ${1:-} in
first | second) which=$1 ;;
*)
	echo "usage: sh gpu/travel/on_gpu.sh first|second [PREPARED] [OUT]" >&2
	exit 2
	;;
esac
prepared=${2:-.work/gpu/$which} out=${3:-out/gpu}
python=${PYTHON:-python3}
kept=${ARCFLOW_KEPT:-${TMPDIR:-/tmp}/arcflow-gpu-$(id -u)}
umask 077 # The cache holds code: the runtime takes it only from a folder that nobody else can write to.
mkdir -p "$out" "$kept"
export PYTHONUNBUFFERED=1 TORCHINDUCTOR_CACHE_DIR="$kept/inductor" ARCFLOW_CACHE="$kept/cache"

case $which in
first)
	rm -rf "$kept/cache" && cp -r "$prepared/cache" "$kept/cache" && chmod -R go-w "$kept/cache"
	for folder in models engines/bundles; do
		if [ -d "$folder" ] && [ ! -d "$kept/$folder" ]; then
			mkdir -p "$kept/$folder.part" && cp -r "$folder/." "$kept/$folder.part" && mv "$kept/$folder.part" "$kept/$folder"
		fi
	done
	set -- --part scenarios,machine,graphs,solver,sanitizer --total 390
	;;
second)
	for folder in models engines/bundles; do
		if [ ! -d "$folder" ] && [ -d "$kept/$folder" ]; then
			cp -r "$kept/$folder" "$folder"
		fi
	done
	rm -rf "$kept/site"
	"$python" -m tarfile --filter data -e "$prepared/site.tar.xz" "$kept/site" ||
		echo "the packages of $prepared cannot be unpacked: parts that need them are skipped" >&2
	export PYTHONPATH="$kept/site${PYTHONPATH:+:$PYTHONPATH}"
	set -- --part provider,flux,training,distil --modes eager,fp8,cudnn,image,fp8-attention --total 390
	;;
esac
[ -z "${ARCFLOW_REHEARSE:-}" ] || set -- "$@" --rehearse --modes eager,image
exec "$python" gpu/run.py "$@" --out "$out/$which.json" --work "$kept/work"
