#!/usr/bin/env bash
# Fetch Fluent Emoji and the table of what each shows, from npm's packages, into a folder, without installing them.
# Usage: scripts/fetch-emoji.sh FOLDER   (the loader looks in .data/fluent-emoji)
set -euo pipefail

folder=${1:?usage: scripts/fetch-emoji.sh FOLDER}
checksums=$(cd "$(dirname "$0")" && pwd)/emoji.sha256
packages=(@lobehub/fluent-emoji-3d@1.1.0 emojibase-data@17.0.0)

fail() { echo "error: $1" >&2; exit 2; }

if [ -f "$folder/complete" ]; then
    echo "Fluent Emoji is in $folder"
    exit 0
fi
command -v npm >/dev/null || fail "no npm here: install Node.js, or copy $folder from a machine that has it"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
(cd "$work" && npm pack --silent "${packages[@]}" >&2) || fail "npm cannot download ${packages[*]}; try again later"
(cd "$work" && sha256sum --check --quiet "$checksums" >&2) ||
    fail "the packages are others than the ones this project was trained on (see scripts/emoji.sha256)"
mkdir -p "$work/new/images"
tar -xzf "$work"/lobehub-*.tgz -C "$work/new/images" --strip-components 2 package/assets
tar -xzf "$work"/emojibase-*.tgz -C "$work/new" --strip-components 2 package/en/data.json package/en/messages.json
rm -rf "$folder"
mkdir -p "$folder"
cp -R "$work/new/." "$folder/"
touch "$folder/complete"
echo "Fluent Emoji is in $folder"
