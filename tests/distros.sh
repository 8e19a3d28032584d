#!/bin/sh
# `make test-distros`: the two commands of the README, docs and lint on a bare Debian 12 and 13.
# Each release is installed into a folder by debootstrap, the tree is copied into it, and the
# commands run there as in a fresh clone. Needs root; takes about an hour on two cores.
#
#   sh tests/distros.sh [RELEASE...]     bookworm, trixie
#
#   TEST=test-all    the target of the second command
#   ONLY=COMMAND     only this one after setup.sh, such as ONLY="make lint"
#   MIRROR=URL       of Debian; without it what /etc/apt names, else deb.debian.org
#   DISTROS=FOLDER   for the releases, build/distros; logs stay there
#
# Passed on into the root: where pip and apt find the network (PIP_*, http_proxy, https_proxy).
set -eu
cd "$(dirname "$0")/.."
DISTROS=${DISTROS:-build/distros}
TEST=${TEST:-test-all}
releases=${*:-bookworm trixie}

if [ "$(id -u)" -ne 0 ]; then
    echo "test-distros: debootstrap and chroot need root" >&2
    exit 1
fi
sh tests/setup-quality.sh --distros

# the first mirror of Debian that apt uses here
apt_mirror() {
    cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | grep -v '^ *#' |
        grep -oE 'https?://[^ ]*/debian/?( |$)' | head -n 1 | sed 's,[/ ]*$,,'
}
[ -n "${MIRROR:-}" ] || MIRROR=$(apt_mirror)
[ -n "$MIRROR" ] || MIRROR=http://deb.debian.org/debian

mkdir -p "$DISTROS"
DISTROS=$(cd "$DISTROS" && pwd)
root=
# Mounts end with the namespace of the command that made them, so nothing else is below the root.
remove_root() {
    [ -z "$root" ] || rm -rf --one-file-system "$root"
    root=
}
trap remove_root EXIT
trap 'exit 1' HUP INT TERM

# inside COMMAND: run it in the root, in a namespace of its own for mounts and processes
inside() {
    # shellcheck disable=SC2016 # the inner shell's variables
    unshare --mount --pid --fork --kill-child sh -c '
        mount -t proc proc "$1/proc" && mount -t sysfs -o ro sysfs "$1/sys" &&
            mount --rbind /dev "$1/dev" && mount -t tmpfs tmpfs "$1/tmp" &&
            exec chroot "$1" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
                ${http_proxy:+"http_proxy=$http_proxy"} ${https_proxy:+"https_proxy=$https_proxy"} \
                ${PIP_INDEX_URL:+"PIP_INDEX_URL=$PIP_INDEX_URL"} \
                ${PIP_CERT:+PIP_CERT=/etc/ssl/pip.crt} sh -c "cd /nsa && $2"
    ' sh "$root" "$1" </dev/null
}

install_release() {
    debootstrap --variant=minbase --include=ca-certificates "$1" "$root" "$MIRROR" &&
        cp /etc/resolv.conf /etc/hosts "$root/etc" &&
        { [ -z "${PIP_CERT:-}" ] || cp "$PIP_CERT" "$root/etc/ssl/pip.crt"; } &&
        mkdir "$root/nsa" &&
        tar --exclude=./build --exclude=./nsa-demo --exclude=./.git -cf - . |
        tar -xf - -C "$root/nsa"
}

passed=0
failed=0
# try RELEASE NAME COMMAND...: count it and print its time; its output goes to a log
try() {
    what="$1: $2"
    log=$DISTROS/$1.$(echo "$2" | tr -cs 'a-z0-9\n' '_').log
    shift 2
    begin=$(date +%s)
    if "$@" >"$log" 2>&1; then
        passed=$((passed + 1))
        echo "$what: passed, $(($(date +%s) - begin)) s"
    else
        failed=$((failed + 1))
        tail -n 20 "$log"
        echo "$what: FAILED, $(($(date +%s) - begin)) s; all of it in $log"
        return 1
    fi
}

if [ -n "${ONLY:-}" ]; then
    set -- "sh setup.sh && $ONLY"
else
    set -- 'sh setup.sh && make demo' "sh setup.sh && make $TEST" 'make docs' 'make lint'
fi
for release in $releases; do
    root=$DISTROS/$release
    remove_root
    root=$DISTROS/$release
    if try "$release" debootstrap install_release "$release"; then
        for command in "$@"; do
            try "$release" "$command" inside "$command" || true
        done
    fi
    remove_root
done
echo "distros: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
