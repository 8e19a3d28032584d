#!/bin/sh
# `make check-help`: every target that is no file is listed by `make help` or `make help-all`, or is
# marked as a part of others, and no group is empty. Then faults are planted in a copy of the
# Makefiles' text: each must be found.
#
#   sh tests/help.sh MAKEFILE...
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

check() {
    awk -v show=check -f docs/help.awk "$@"
}

check "$@"

# What is printed holds each target that has a comment for readers, once.
awk -v show=help -f docs/help.awk "$@" >"$work/printed"
awk -v show=all -f docs/help.awk "$@" >>"$work/printed"
awk '/^  make / { print $2 }' "$work/printed" | sort >"$work/names"
cat "$@" | sed -n '/##@part/d; s/^\([a-z0-9-]*\):.*##.*/\1/p' | sort >"$work/want"
diff "$work/want" "$work/names" || {
    echo "help: the targets with a comment (<) are not what is printed (>)" >&2
    exit 1
}

# plant SED_SCRIPT MESSAGE: the text so changed gives the message
faults=0
plant() {
    sed "$1" "$work/makefiles" >"$work/planted"
    if check "$work/planted" >"$work/said" || ! grep -q "$2" "$work/said"; then
        echo "help: the fault '$1' is not found" >&2
        exit 1
    fi
    faults=$((faults + 1))
}
cat "$@" >"$work/makefiles"
plant 's/##@read /##@reed /' 'a group reed'
plant 's/##@install /##@read /' 'the group install is empty'
plant 's/^\(demo:.*\) ##.*/\1/' 'the target demo of .* has no comment'
plant 's/^demo:/demonstrate:/' 'the target demonstrate is not .PHONY'
plant 's/##@maintain /## /' 'lists .* targets, 8 at most'
plant 's/^\(clean:.*##@maintain\).*/\1/' 'clean has no text'
echo "help: $(wc -l <"$work/names") targets are listed, $faults planted faults are found"
