#!/bin/sh
# How many lines of each stage stand already in another one: plain `make` ends with this. Stage NN
# is set beside NN-1. One without a NN-1, such as 99_mine after 00 to 03, is set beside the stage
# before it in the list that it shares most lines with: for a copy, the one that it was copied from.
#
#   sh stages/similar.sh 00_dense 01_naive_nsa ...
set -eu
cd "$(dirname "$0")/.."

# number STAGE: its two digits, 08 as 8, which would be no number in base 8
number() {
    digits=${1%%_*}
    echo "${digits#0}"
}

# compare A B: sets $kept and $all, lines of B that A has, and all of B's
compare() {
    counts=$(sh stages/diff.sh --counts "$1" "$2") || exit
    kept=${counts%% *}
    all=$((kept + ${counts##* }))
}

before=''
for stage; do
    beside='' most=-1
    for other in $before; do
        [ "$(number "$other")" -ne $(($(number "$stage") - 1)) ] || beside=$other
    done
    for other in ${beside:-$before}; do
        compare "$other" "$stage"
        [ "$kept" -le "$most" ] || { most=$kept && beside=$other; }
    done
    if [ -n "$beside" ] && [ "$all" -gt 0 ]; then
        echo "$beside -> $stage: $((100 * most / all))% of $all lines stay as they were"
    fi
    before="$before $stage"
done
