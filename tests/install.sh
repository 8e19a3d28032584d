#!/bin/sh
# `make test-install`: what `make install` leaves must be enough. It is installed into a folder of
# its own, docs/examples/first_steps.c is compiled elsewhere with pkg-config, and both it and the
# installed nsa run from the root folder, with no variable set.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

step() {
    echo "test-install: $1"
}

step "make install PREFIX=$work/prefix"
${MAKE:-make} -s install PREFIX="$work/prefix"
cp docs/examples/first_steps.c "$work"
cd "$work"
PKG_CONFIG_PATH=$work/prefix/lib/pkgconfig
export PKG_CONFIG_PATH
step "cc first_steps.c \$(pkg-config --cflags --libs nsa)"
# shellcheck disable=SC2046 # words
"${CC:-cc}" -std=c11 -Wall -Wextra -Werror first_steps.c -o first_steps \
    $(pkg-config --cflags --libs nsa) -lm
cd /
for stage in 00 01 02; do
    step "first_steps $stage"
    env -i "$work/first_steps" "$stage"
done
if command -v python3 >/dev/null; then
    step "import nsa"
    env -i PYTHONPATH="$work/prefix/share/nsa/python" "$(command -v python3)" -B -c \
        'import nsa; print(nsa.Stage("01").name)'
fi
if command -v help2man >/dev/null; then
    for name in list run check demo bench train; do
        step "nsa-$name.1 has every option of nsa $name --help"
        "$work/prefix/bin/nsa" "$name" --help |
            grep -o -e '--[a-z][a-z-]*' | sort -u >"$work/options"
        [ -s "$work/options" ]
        while read -r option; do
            sed 's/\\-/-/g' "$work/prefix/share/man/man1/nsa-$name.1" | grep -qF -e "$option" ||
                { echo "test-install: no $option in nsa-$name.1" && exit 1; }
        done <"$work/options"
    done
else
    step "no help2man, no manual pages"
fi
step "nsa list"
env -i "$work/prefix/bin/nsa" list
step "nsa check"
env -i "$work/prefix/bin/nsa" check --quick --stage 01
step "nsa train"
env -i "$work/prefix/bin/nsa" train --stop 1 --threads 1 >/dev/null
step "nsa demo"
cd "$work"
env -i "$work/prefix/bin/nsa" demo --time 5 >/dev/null
[ -s "$work/nsa-demo/block_map.svg" ]
