#!/usr/bin/env bash
# Print constraints.txt from an environment that has the dev extra installed: exact versions, no local builds.
# Usage: scripts/freeze.sh PYTHON > constraints.txt
set -euo pipefail

cat <<'HEADER'
# The exact versions that are tested, dependencies of dependencies included; written by `make constraints`.
# Use: pip install -c constraints.txt -e '.[dev]'
# Versions carry no build tag: torch's CPU build ("+cpu") and its CUDA builds satisfy the same line. The CUDA libraries
# that a CUDA build of torch needs are pinned by that build itself.
HEADER
"${1:?usage: scripts/freeze.sh PYTHON}" -m pip freeze --disable-pip-version-check --exclude-editable --exclude arcflow |
    grep -v -i -E '^(nvidia-|cuda-|triton|-e |.* @ )' | sed -E 's/\+[A-Za-z0-9.]+$//' | LC_ALL=C sort -f
