#!/usr/bin/env bash
# Fetch the pictures of Fluent Emoji from npm's package into a folder, without installing it.
# Usage: scripts/fetch-data.sh FOLDER   (the loader looks in .data/fluent-emoji)
set -euo pipefail

folder=${1:?usage: scripts/fetch-data.sh FOLDER}
checksums=$(cd "$(dirname "$0")" && pwd)/emoji.sha256
package=@lobehub/fluent-emoji-3d@1.1.0

fail() { echo "error: $1" >&2; exit 2; }

if [ -f "$folder/complete" ]; then
    echo "Fluent Emoji is in $folder"
    exit 0
fi
command -v npm >/dev/null || fail "no npm here: install Node.js, or copy $folder from a machine that has it"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
(cd "$work" && npm pack --silent "$package" >&2) || fail "npm cannot download $package; try again later"
(cd "$work" && sha256sum --check --quiet "$checksums" >&2) ||
    fail "$package holds other files than the ones this project was trained on (see scripts/emoji.sha256)"
mkdir "$work/new"
tar -xzf "$work"/lobehub-*.tgz -C "$work/new" --strip-components 2 package/assets
rm -rf "$folder"
mkdir -p "$folder"
cp -R "$work/new/." "$folder/"
touch "$folder/complete"
echo "Fluent Emoji is in $folder"
