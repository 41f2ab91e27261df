#!/usr/bin/env bash
# Get Chromium and its driver, which the tests of arcflow-serve's page drive: as root on Debian by apt. Elsewhere say so;
# those tests are then skipped. Quick where both are there.
set -euo pipefail

command -v chromium >/dev/null && command -v chromedriver >/dev/null && exit 0

lacks() { echo "browser: no $1: the tests of arcflow-serve's page are skipped (Debian: chromium, chromium-driver)" >&2; exit 0; }
command -v apt-get >/dev/null && grep -qx 'ID=debian' /etc/os-release || lacks "Chromium here, and this is not Debian"
[ "$(id -u)" = 0 ] || lacks "Chromium here, and only root may install it"

log=$(mktemp)
trap 'rm -f "$log"' EXIT
install() { DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends chromium chromium-driver; }
echo "browser: installing chromium and chromium-driver"
{ install || { apt-get -qq update && install; }; } >"$log" 2>&1 || { tail -n 5 "$log" >&2; lacks "Chromium from apt (above)"; }
