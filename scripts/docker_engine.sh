#!/usr/bin/env bash
# One Docker Engine for the tests of the container stack, on Debian 12, as root or by sudo.
#
#   docker_engine.sh install    engine 28, CLI, compose and buildx from Debian's "forky"
#   docker_engine.sh start      one daemon, and only one; a second start finds the first
#   docker_engine.sh stop       ends that daemon and its children; what it stored stays
#   docker_engine.sh status     one line; exit 0 when the daemon answers
#   docker_engine.sh env        lines to eval: DOCKER_HOST and the PATH with the packaged client
#   docker_engine.sh rootless-start, rootless-stop, rootless-env
#                               a daemon of an ordinary user (pikuri-rootless, made if need be), which
#                               has a network of its own and so can run beside the other one
#
# Debian 12's own engine is 20.10: no additional build contexts, and its internal networks keep a
# route to the bridge gateway. Two rootful daemons on one machine spoil each other's firewall rules,
# so `start` refuses while another one runs, and everything of ours lies under one directory:
# PIKURI_TEST_DOCKER (/var/lib/pikuri-test-docker).
set -euo pipefail

home=${PIKURI_TEST_DOCKER:-/var/lib/pikuri-test-docker}
socket=$home/docker.sock
pidfile=$home/docker.pid
log=$home/dockerd.log
lock=$home/lock
packages=(docker.io docker-cli docker-compose docker-buildx containerd tini-static)
helpers=(busybox debootstrap git iptables runc socat util-linux)

die() {
  echo "error: $1" >&2
  [ -z "${2:-}" ] || echo "hint: $2" >&2
  exit 1
}

as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

installed_version() {
  dpkg-query --show --showformat='${Version}' "$1" 2>/dev/null || true
}

install_engine() {
  local missing=() package
  for package in "${helpers[@]}"; do
    [ -n "$(installed_version "$package")" ] || missing+=("$package")
  done
  export DEBIAN_FRONTEND=noninteractive
  if dpkg --compare-versions "$(installed_version docker.io)" ge 28 \
    && [ -n "$(installed_version docker-compose)" ] && [ -n "$(installed_version docker-buildx)" ] \
    && [ "${#missing[@]}" -eq 0 ]; then
    echo "docker engine $(installed_version docker.io) and its helpers are there"
    return
  fi

  local work
  work=$(mktemp -d)
  # shellcheck disable=SC2064 # the path of now
  trap "rm -rf '$work'" EXIT
  as_root apt-get update -q
  [ "${#missing[@]}" -eq 0 ] || as_root apt-get install -q -y --no-install-recommends "${missing[@]}"

  # The mirror that this machine already uses, asked for one release more, in lists of its own: the
  # machine's apt never learns of it, and no other package can come from there by accident.
  local mirror key=/usr/share/keyrings/debian-archive-keyring.gpg
  mirror=$(
    apt-get indextargets --format '$(REPO_URI)' \
      'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | head -1
  )
  [ -n "$mirror" ] || die "no Debian mirror among this machine's apt sources" \
    "apt-get update, then again"
  mkdir -p "$work/sources" "$work/lists/partial" "$work/debs"
  printf 'Types: deb\nURIs: %s\nSuites: forky\nComponents: main\nSigned-By: %s\n' \
    "$mirror" "$key" >"$work/sources/forky.sources"
  cat >"$work/apt.conf" <<APT
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "$work/sources";
Dir::State::lists "$work/lists";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Acquire::Check-Valid-Until "false";
Acquire::Languages "none";
APT::Sandbox::User "root";
APT
  as_root env APT_CONFIG="$work/apt.conf" apt-get update -q
  (cd "$work/debs" && as_root env APT_CONFIG="$work/apt.conf" apt-get download -q "${packages[@]}")
  # The package would start a daemon of its own; ours is started by hand, and is the only one.
  local policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
    # shellcheck disable=SC2064
    trap "rm -rf '$work'; $([ "$(id -u)" -eq 0 ] || echo sudo) rm -f '$policy'" EXIT
  fi
  as_root apt-get install -q -y --no-install-recommends "$work"/debs/*.deb
  [ -x /usr/bin/docker ] || die "the package brought no /usr/bin/docker"
}

# /usr/local/bin often holds an older client without plugins; the packaged one is named here.
docker() {
  env DOCKER_HOST="unix://$socket" /usr/bin/docker "$@"
}

answers() {
  [ -S "$socket" ] && docker version --format '{{.Server.Version}}' >/dev/null 2>&1
}

# Whoever called this script may hold locks and pipes, and a daemon that inherits them holds them for
# as long as it lives. In a subshell of its own, as the last thing before the daemon.
close_inherited() {
  local descriptor
  for descriptor in /proc/self/fd/*; do
    descriptor=${descriptor##*/}
    [ "$descriptor" -le 2 ] || eval "exec $descriptor>&-"
  done
}

await_answer() { # SECONDS COMMAND WHO LOG: until the command succeeds
  local waited=0
  until "$2"; do
    waited=$((waited + 1))
    if [ "$waited" -gt $(($1 * 4)) ]; then
      tail -20 "$4" >&2
      die "$3 did not answer within $1 s" "read $4"
    fi
    sleep 0.25
  done
}

await_end() { # PID WHO
  local waited=0
  while [ -e "/proc/$1" ]; do
    waited=$((waited + 1))
    [ "$waited" -le 240 ] || die "$2 (pid $1) did not stop within 60 s" "kill -9 $1"
    sleep 0.25
  done
}

ours() { # the pid of our daemon, if it runs
  local pid
  pid=$(cat "$pidfile" 2>/dev/null) || return 1
  [ -n "$pid" ] && tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q -- "--data-root $home/data" \
    && echo "$pid"
}

others() { # pids of rootful daemons that are not ours
  local pid mine
  mine=$(ours || true)
  for pid in $(pgrep -x dockerd || true); do
    [ "$pid" = "$mine" ] && continue
    # A rootless daemon has a network namespace of its own and is no rival.
    [ "$(readlink "/proc/$pid/ns/net" 2>/dev/null)" = "$(readlink /proc/self/ns/net)" ] || continue
    echo "$pid"
  done
}

start_daemon() {
  [ -x /usr/sbin/dockerd ] || die "Docker Engine is not installed" "bash $0 install"
  as_root mkdir -p "$home"
  exec 9>"$lock"
  flock 9
  if answers; then
    echo "the daemon runs already: $(status_line)"
    return
  fi
  local rival
  rival=$(others | head -1)
  [ -z "$rival" ] || die "another rootful dockerd runs here (pid $rival); two spoil each other's rules" \
    "stop it, or use it: DOCKER_HOST=unix:///var/run/docker.sock"
  prepare_cgroups
  # A daemon that was killed leaves its pid file and its containerd.
  stop_leftovers
  rm -f "$pidfile" "$socket"
  (
    close_inherited
    # Nor does it inherit variables: directories that they name may go before it does.
    as_root env -i "PATH=$PATH" HOME=/ setsid /usr/sbin/dockerd \
      --data-root "$home/data" --exec-root "$home/exec" --pidfile "$pidfile" \
      --host "unix://$socket" --group root --log-level warn >>"$log" 2>&1 </dev/null &
  )
  await_answer 60 answers "the daemon" "$log"
  status_line
}

prepare_cgroups() {
  # Machines without an init system have the hierarchy unmounted.
  [ -d /sys/fs/cgroup ] && mountpoint -q /sys/fs/cgroup && return
  as_root mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
  local name
  for name in $(awk '!/^#/ && $4 == 1 { print $1 }' /proc/cgroups); do
    as_root mkdir -p "/sys/fs/cgroup/$name"
    as_root mount -t cgroup -o "$name" cgroup "/sys/fs/cgroup/$name" || as_root rmdir "/sys/fs/cgroup/$name"
  done
}

stop_leftovers() {
  local pid
  for pid in $(pgrep -x containerd || true) $(pgrep -f "^/usr/bin/containerd-shim-runc-v2 .*$home/exec" || true); do
    tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q -- "$home/exec" || continue
    as_root kill "$pid" 2>/dev/null || true
  done
}

stop_daemon() {
  local pid
  if ! pid=$(ours); then
    echo "no daemon of ours runs"
    stop_leftovers
    return
  fi
  as_root kill "$pid"
  await_end "$pid" "the daemon"
  stop_leftovers
  echo "stopped"
}

status_line() {
  echo "engine $(docker version --format '{{.Server.Version}}') on $socket, pid $(ours || echo '?'), storage $(docker info --format '{{.Driver}}, cgroup v{{.CgroupVersion}}')"
}

# ------------------------------------------------------------------ the rootless daemon

rootless_user=pikuri-rootless
rootless=$home/rootless
rootless_socket=$rootless/run/docker.sock
rootless_packages=(fuse-overlayfs rootlesskit slirp4netns uidmap)

rootless_answers() {
  [ -S "$rootless_socket" ] \
    && env DOCKER_HOST="unix://$rootless_socket" /usr/bin/docker version >/dev/null 2>&1
}

rootless_pid() { # of its rootlesskit, which ends everything when it ends
  local pid
  pid=$(cat "$rootless/pid" 2>/dev/null) || return 1
  grep -qa "$rootless/run" "/proc/$pid/environ" 2>/dev/null && echo "$pid"
}

start_rootless() {
  [ "$(id -u)" -eq 0 ] || die "the user of the rootless daemon is made by root" "sudo bash $0 rootless-start"
  local missing=() package
  for package in "${rootless_packages[@]}"; do
    [ -n "$(installed_version "$package")" ] || missing+=("$package")
  done
  if [ "${#missing[@]}" -gt 0 ]; then
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
  fi
  id "$rootless_user" >/dev/null 2>&1 || useradd --create-home --shell /bin/bash "$rootless_user"
  grep -q "^$rootless_user:" /etc/subuid || echo "$rootless_user:200000:65536" >>/etc/subuid
  grep -q "^$rootless_user:" /etc/subgid || echo "$rootless_user:200000:65536" >>/etc/subgid
  chmod 666 /dev/net/tun /dev/fuse
  mkdir -p "$home"
  exec 9>"$lock"
  flock 9
  if rootless_answers; then
    echo "the rootless daemon runs already"
    return
  fi
  install -d -o "$rootless_user" -g "$rootless_user" "$rootless"
  rm -rf "$rootless/run"
  install -d -m 700 -o "$rootless_user" -g "$rootless_user" "$rootless/run" "$rootless/data"
  (
    close_inherited
    setsid runuser -u "$rootless_user" -- env -i \
      HOME="/home/$rootless_user" XDG_RUNTIME_DIR="$rootless/run" PATH=/usr/sbin:/usr/bin:/sbin:/bin \
      sh -c 'echo $$ >"$1/pid"; exec /usr/share/docker.io/contrib/dockerd-rootless.sh \
        --storage-driver fuse-overlayfs --data-root "$1/data" --log-level warn' \
      sh "$rootless" >"$home/rootless.log" 2>&1 </dev/null &
  )
  await_answer 90 rootless_answers "the rootless daemon" "$home/rootless.log"
  echo "a rootless daemon of $rootless_user on $rootless_socket"
}

stop_rootless() {
  local pid
  if ! pid=$(rootless_pid); then
    echo "no rootless daemon of ours runs"
    return
  fi
  kill "$pid"
  await_end "$pid" "the rootless daemon"
  echo "stopped"
}

case "${1:-}" in
  install) install_engine ;;
  start) start_daemon ;;
  stop) stop_daemon ;;
  status)
    answers || die "no daemon answers on $socket" "bash $0 start"
    status_line
    ;;
  rootless-start) start_rootless ;;
  rootless-stop) stop_rootless ;;
  rootless-env)
    echo "export DOCKER_HOST=unix://$rootless_socket XDG_RUNTIME_DIR=$rootless/run"
    ;;
  env)
    echo "export DOCKER_HOST=unix://$socket"
    # The directory holds nothing but a link to the packaged client.
    mkdir -p "$home/bin"
    ln -sfn /usr/bin/docker "$home/bin/docker"
    # shellcheck disable=SC2016 # for the reader's shell
    printf 'export PATH=%s:"$PATH"\n' "$home/bin"
    ;;
  *) die "usage: $0 install|start|stop|status|env|rootless-start|rootless-stop|rootless-env" ;;
esac
