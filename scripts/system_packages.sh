#!/usr/bin/env bash
# Installs the system packages that the full test suite wants, on Debian, as root or by sudo.
#
#   chromium   a real browser that attacks the server from a foreign page
#   strace     watches every connection of a whole session
#   python3-venv, git, make   what README names
#
# and llama.cpp's llama-server, which is unpacked and not installed: scripts/llama_cpp.sh
set -euo pipefail

packages=(chromium git make python3-venv strace util-linux)
missing=()
for package in "${packages[@]}"; do
  dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ "${#missing[@]}" -eq 0 ]; then
  echo "all system packages are there: ${packages[*]}"
else
  root=()
  [ "$(id -u)" -eq 0 ] || root=(sudo)
  export DEBIAN_FRONTEND=noninteractive
  "${root[@]}" apt-get update -q
  "${root[@]}" apt-get install -q -y --no-install-recommends "${missing[@]}"
fi

bash "$(dirname "$0")/llama_cpp.sh"
