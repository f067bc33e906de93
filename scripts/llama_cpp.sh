#!/usr/bin/env bash
# Gets llama.cpp's llama-server for the tests of tests/llama, on Debian, without root.
#
# Older Debians do not have it, so it comes with all of its libraries, the C library included, from
# a newer one: the mirror is the one that the machine's own apt sources name, only the suite
# differs. Nothing is installed: the packages are unpacked into a directory of their own and the
# programs are told to load their libraries from there, so that llama-server can be run, and can
# start itself again as its router mode does, by its path alone.
#
#   PIKURI_LLAMA_ROOT    the directory; by default /var/cache/pikuri-memory-tests/llama.cpp for root,
#                        ~/.cache/pikuri-memory-tests/llama.cpp for others
#   PIKURI_LLAMA_SUITE   the suite; by default forky
#
# Run again it does nothing, unless this script has changed since.
set -euo pipefail

suite=${PIKURI_LLAMA_SUITE:-forky}
cache=/var/cache
[ "$(id -u)" -eq 0 ] || cache=${XDG_CACHE_HOME:-$HOME/.cache}
root=$(realpath --canonicalize-missing "${PIKURI_LLAMA_ROOT:-$cache/pikuri-memory-tests/llama.cpp}")
program=$root/usr/bin/llama-server
stamp="$suite $(sha256sum "$0" | cut --delimiter=' ' --fields=1)"

there() {
  [ "$(cat "$root/.complete" 2>/dev/null)" = "$stamp" ]
}

if there; then
  echo "llama-server is there: $program"
  exit 0
fi

mkdir -p "$(dirname "$root")"
exec 9>"$root.lock"
flock 9
if there; then
  echo "llama-server is there: $program"
  exit 0
fi

echo "getting llama-server from Debian $suite into $root"
# Beside its place, so that it can be renamed. Root's apt downloads as a user of its own, who must
# be able to come in.
work=$(mktemp --directory "$root.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"

# The mirror of the machine's own release: what an update would ask it for.
release=$(. /etc/os-release && echo "${VERSION_CODENAME:-stable}")
index="dists/($release|stable|testing|unstable|sid)/InRelease"
mirror=$(apt-get --print-uris update | sed -nE "s#^'(.*)/$index'.*#\1#p" | head -n 1)
if [ -z "$mirror" ]; then
  echo "error: the apt sources of this machine name no Debian mirror" >&2
  exit 1
fi

mkdir -p "$work"/{state/lists/partial,cache/archives/partial,unpacked}
: >"$work/state/status"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" \
  >"$work/sources.list"
# A world of its own, in which nothing is installed yet. Mirrors that stand still have old Release
# files.
apt=(
  apt-get -qq
  -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null
  -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null
  -o Dir::State="$work/state" -o Dir::State::Status="$work/state/status"
  -o Dir::Cache="$work/cache" -o APT::Architectures="$(dpkg --print-architecture)"
  -o Acquire::Check-Valid-Until=false -o Acquire::Languages=none -o Acquire::Retries=3
)
"${apt[@]}" update
"${apt[@]}" install --yes --no-install-recommends --download-only llama.cpp-tools patchelf >/dev/null
for package in "$work"/cache/archives/*.deb; do
  dpkg --extract "$package" "$work/unpacked"
done

# Where the libraries will be, and where they are now.
library=/usr/lib/$(cd "$work/unpacked/usr/lib" && echo *-linux-gnu*)
here=$work/unpacked$library
loader=$(cd "$work/unpacked" && find usr/lib -name 'ld-linux*.so.*' -not -path 'usr/lib64/*' | head -n 1)
path=$root$library:$root$library/llama
rewrite() {
  "$work/unpacked/$loader" --library-path "$here" "$work/unpacked/usr/bin/patchelf" "$@"
}
rewrite --set-interpreter "$root/$loader" --force-rpath --set-rpath "$path" \
  "$work/unpacked/usr/bin/llama-server"
# A path of a library's own would hide that of the program.
find "$here" -type f \( -path '*/llama/*.so*' -o -name 'libllama*.so*' -o -name 'libmtmd*.so*' \) |
  while read -r file; do
    rewrite --force-rpath --set-rpath "$path" "$file"
  done
# The kernels for the various processors: looked for beside the program too.
find "$here/ggml" -name 'libggml-*.so' -printf "$root$library/ggml/%P\n" |
  xargs ln --symbolic --target-directory="$work/unpacked/usr/bin"

rm -rf "$root"
mv "$work/unpacked" "$root"
"$program" --version
echo "$stamp" >"$root/.complete"
