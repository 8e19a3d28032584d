#!/bin/sh
# Install what the targets of tests/quality.mk need, beyond setup.sh, on Debian or Ubuntu. Safe to
# run again. With --aarch64 also fetch cJSON for arm64 into build/aarch64/root, without installing
# it on this machine. With --distros instead install what `make test-distros` needs.
set -eu
cd "$(dirname "$0")/.."

# name and purpose, one package a line
packages='clang                  the sanitizers and libFuzzer
llvm                   names in the reports of the sanitizers
libomp-dev             OpenMP under clang, with archer for its thread sanitizer
valgrind               make test-valgrind
libc6-dbg              valgrind needs the names of the C library
patch                  faults are planted as patches
util-linux             setpriv: a check of permissions that root would pass
gcc-aarch64-linux-gnu  make test-aarch64
g++-aarch64-linux-gnu  the simulator of the CUDA stages there
libc6-dev-arm64-cross  the C library headers of arm64
qemu-user              runs arm64 programs
shellcheck             make lint on the scripts'

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

# Packages of another architecture, unpacked and not installed: apt uses separate package lists for
# it.
fetch_arm64() {
    root=$PWD/build/aarch64/root
    if [ -e "$root/usr/include/cjson/cJSON.h" ]; then
        echo "setup-quality: cJSON for arm64 is there"
        return 0
    fi
    mkdir -p "$root" build/aarch64/apt/lists/partial build/aarch64/apt/cache/archives/partial
    set -- -q -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=root \
        -o Dir::State::lists="$PWD/build/aarch64/apt/lists" \
        -o Dir::Cache="$PWD/build/aarch64/apt/cache" \
        -o Dir::State::status=/dev/null
    apt-get "$@" update
    (cd build/aarch64/apt && apt-get "$@" download libcjson1 libcjson-dev)
    for package in build/aarch64/apt/libcjson*.deb; do
        dpkg -x "$package" "$root"
    done
}

if [ "${1:-}" = --distros ]; then
    packages='debootstrap             a bare Debian in a folder
debian-archive-keyring  Debian keys, which Ubuntu may lack
util-linux              unshare'
fi

missing=''
for name in $(printf '%s\n' "$packages" | awk '{ print $1 }'); do
    dpkg-query -W -f='${Status}\n' "$name" 2>/dev/null | grep -q '^install ok installed$' ||
        missing="$missing $name"
done
if [ -n "$missing" ]; then
    echo "setup-quality: will install:$missing"
    as_root apt-get -q update
    # shellcheck disable=SC2086 # one word a package
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -q install -y --no-install-recommends $missing
fi
[ "${1:-}" != --distros ] || exit 0
# The sanitizers' runtime is a package of clang's version, or (older releases) comes with clang.
version=$(clang -dumpversion | cut -d. -f1)
if [ ! -e "$(clang -print-resource-dir)/include/sanitizer/asan_interface.h" ]; then
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -q install -y --no-install-recommends "libclang-rt-$version-dev"
fi
[ "${1:-}" != --aarch64 ] || fetch_arm64
echo "setup-quality: done."
