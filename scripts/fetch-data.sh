#!/usr/bin/env bash
# Fetch Fashion-MNIST from Debian's package into a folder, without installing it.
# Usage: scripts/fetch-data.sh FOLDER   (the loader looks in .data/usr/share/datasets/fashion-mnist)
set -euo pipefail

folder=${1:?usage: scripts/fetch-data.sh FOLDER}
package=dataset-fashion-mnist
checksums=$(cd "$(dirname "$0")" && pwd)/fashion-mnist.sha256
data=$folder/usr/share/datasets/fashion-mnist

is_whole() { [ -d "$1" ] && (cd "$1" && sha256sum --check --status "$checksums" 2>/dev/null); }
fail() { echo "error: $1" >&2; exit 2; }

if is_whole "$data"; then
    echo "Fashion-MNIST is in $data"
    exit 0
fi
if is_whole /usr/share/datasets/fashion-mnist; then
    echo "Fashion-MNIST is installed in /usr/share/datasets/fashion-mnist"
    exit 0
fi
for tool in apt-get dpkg; do
    command -v "$tool" >/dev/null || fail "no $tool here: put the four .gz files of Fashion-MNIST into $data"
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# apt would warn that its sandbox user cannot write into our private folder; say who downloads instead.
(cd "$work" && apt-get download --quiet=2 --option APT::Sandbox::User="$(id -un)" "$package" >&2) ||
    fail "apt cannot download $package: run 'apt-get update' first, or put its four .gz files into $data"
dpkg -x "$work/$package"_*.deb "$work/unpacked"
is_whole "$work/unpacked/usr/share/datasets/fashion-mnist" ||
    fail "$package holds other files than the ones this project was trained on (see scripts/fashion-mnist.sha256)"
mkdir -p "$folder"
cp -R "$work/unpacked/." "$folder/"
echo "Fashion-MNIST is in $data"
