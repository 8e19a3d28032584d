#!/bin/sh
# Install what this project needs on Debian or Ubuntu. Safe to run again: installed packages are
# skipped.
#
#   sh setup.sh             everything: building, testing, documentation, lint
#   sh setup.sh --minimal   only what `make demo` and `make test-all` need
#
# The needed packages must install. The optional ones are tried; one that the release does not have
# is reported and skipped. `make lint` needs clang-format 14: where the release has another version,
# that one comes from PyPI into build/clang-format. CUDA is never installed here; without it the
# CUDA stages run on a simulator.
set -eu
cd "$(dirname "$0")"

# name and purpose, one package a line
needed='gcc             compiles everything in C
g++             compiles the CUDA stages for the simulator of tests/simt
make            runs the Makefile
libc6-dev       the C library headers
pkg-config      tells the Makefile where cJSON is
libcjson-dev    reads config.json
libcriterion-dev runs the tests'

optional='clang           the second compiler that the code is kept clean under
clang-format    make format, make lint: version 14
clang-tidy      make lint
doxygen         make docs
doxygen-awesome-css the style sheet of the docs
libjs-mathjax   formulas in the docs, without a network
graphviz        include graphs in the docs
librsvg2-bin    the demo picture as PNG beside the SVG
libopenblas-dev make bench: the sgemm ceiling and the dense baseline; make train
gnuplot-nox     make figures
help2man        make man: the manual pages
python3-numpy   make test-python, docs/examples/numpy_*.py'

usage() {
    echo "usage: sh setup.sh [--minimal]"
}

case "${1:-}" in
'') ;;
--minimal) optional='' ;;
-h | --help)
    usage
    exit 0
    ;;
*)
    usage >&2
    exit 2
    ;;
esac

# "name reason" lines -> names
names() {
    printf '%s\n' "$1" | awk 'NF { print $1 }'
}

installed() {
    dpkg-query -W -f='${Status}\n' "$1" 2>/dev/null | grep -q '^install ok installed$'
}

# does apt know a version of it?
available() {
    LC_ALL=C apt-cache policy "$1" 2>/dev/null | grep -q '^  Candidate: [^(]'
}

# the lines of $1 whose package is not installed
missing() {
    printf '%s\n' "$1" | while read -r name reason; do
        [ -n "$name" ] || continue
        installed "$name" || printf '%s %s\n' "$name" "$reason"
    done
}

show() {
    printf '%s\n' "$1" | while read -r name reason; do
        [ -z "$name" ] || printf '  %-20s %s\n' "$name" "$reason"
    done
}

# The last lines of every run: is there a CUDA compiler?
say_cuda() {
    nvcc=$(command -v nvcc 2>/dev/null || true)
    [ -n "$nvcc" ] || [ ! -x /usr/local/cuda/bin/nvcc ] || nvcc=/usr/local/cuda/bin/nvcc
    if [ -n "$nvcc" ]; then
        echo "setup: nvcc found: $nvcc. With a GPU the CUDA stages use it, else a simulator."
    else
        echo "setup: nvcc not found. The CUDA stages run on a simulator. nvcc comes"
        echo "setup: with NVIDIA's CUDA Toolkit (developer.nvidia.com/cuda-downloads), or as the"
        echo "setup: package nvidia-cuda-toolkit (Debian: non-free, Ubuntu: multiverse)."
    fi
}

if ! command -v apt-get >/dev/null 2>&1 || ! command -v dpkg-query >/dev/null 2>&1; then
    {
        echo "setup: this script knows Debian and Ubuntu only: apt-get or dpkg-query is missing."
        echo "setup: install by hand what these packages hold, then run make:"
        echo "needed:"
        show "$needed"
        echo "optional:"
        show "$optional"
    } >&2
    exit 1
fi

apt() {
    sudo=''
    if [ "$(id -u)" -ne 0 ]; then
        if ! command -v sudo >/dev/null 2>&1; then
            echo "setup: installing packages needs root: run this as root, or install sudo." >&2
            exit 1
        fi
        sudo=sudo
    fi
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get -q "$@" </dev/null
}

install() {
    apt install -y --no-install-recommends "$@"
}

# clang-format 14, where the release has another: a package of that version, else PyPI's.
get_clang_format() {
    if [ -z "$optional" ] || sh tests/clang_format.sh >/dev/null 2>&1; then
        return 0
    fi
    echo "setup: will get clang-format 14 for make lint; this release's is another version."
    if available clang-format-14 && (install clang-format-14); then
        return 0
    fi
    installed python3-venv || (install python3-venv) || true
    sh tests/clang_format.sh --get || echo "setup: skipped clang-format 14: make lint needs it." >&2
}

need=$(missing "$needed")
want=$(missing "$optional")
if [ -z "$need$want" ]; then
    echo "setup: every package is installed already; nothing to do."
    get_clang_format
    say_cuda
    exit 0
fi

echo "setup: will install with apt-get:"
show "$need"
show "$want"

# A stale package list may still work, so only a failed install is an error.
apt update || echo "setup: apt-get update failed; continuing with the existing package list." >&2

if [ -n "$need" ]; then
    # shellcheck disable=SC2046 # one word a package
    if ! install $(names "$need"); then
        echo "setup: could not install all of the needed packages:" >&2
        show "$need" >&2
        exit 1
    fi
fi

# The optional packages together; if that fails, one at a time, so that one does not block the
# others.
have=''
for name in $(names "$want"); do
    if available "$name"; then
        have="$have $name"
    else
        echo "setup: skipped $name: this release has no such package."
    fi
done
# shellcheck disable=SC2086 # one word a package
if [ -n "$have" ] && ! install $have; then
    for name in $have; do
        installed "$name" || install "$name" || echo "setup: skipped $name: it did not install."
    done
fi

still=$(missing "$needed")
if [ -n "$still" ]; then
    echo "setup: still missing:" >&2
    show "$still" >&2
    exit 1
fi
get_clang_format
echo "setup: done."
say_cuda
