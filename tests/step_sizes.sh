#!/bin/sh
# Are the steps of a stage small enough to be read as diffs? In stages/STAGE/steps every folder with
# numbered files is a chain, of files 0_name, 1_name, and so on. A file, of the chain's problem too,
# may have LINES lines, and a move, from one step to the next, CHANGES changed ones, added and
# removed together.
#
#   sh tests/step_sizes.sh STAGE LINES CHANGES     `make step-sizes` asks for all stages
set -eu
cd "$(dirname "$0")/.."
if [ $# -ne 3 ]; then
    echo "usage: sh tests/step_sizes.sh STAGE LINES CHANGES" >&2
    exit 2
fi
stage=$1 max_lines=$2 max_changes=$3
failed=0

fail() {
    echo "FAIL $*"
    failed=1
}

# check_move FROM TO: one step and the next
check_move() {
    changes=$(diff -a "$1" "$2" | grep -c '^[<>]' || true)
    [ "$changes" -le "$largest" ] || largest=$changes
    [ "$changes" -le "$max_changes" ] ||
        fail "$1 -> ${2##*/}: $changes changed lines, at most $max_changes"
}

# check_chain FOLDER
check_chain() {
    number=0 longest=0 largest=0 last=''
    while [ "$number" -lt "$(find "$1" -maxdepth 1 -name '[0-9]*_*' | wc -l)" ]; do
        step=$(find "$1" -maxdepth 1 -name "${number}_*")
        if [ ! -f "$step" ]; then # none, or the names of several
            fail "$1: not one step with number $number: ${step:-none}"
            return 0
        fi
        lines=$(grep -c '' "$step" || true)
        [ "$lines" -le "$longest" ] || longest=$lines
        [ "$lines" -le "$max_lines" ] || fail "$step: $lines lines, at most $max_lines"
        [ -z "$last" ] || check_move "$last" "$step"
        last=$step number=$((number + 1))
    done
    for other in "$1"/[!0-9]*; do
        [ ! -f "$other" ] || [ "$(grep -c '' "$other")" -le "$max_lines" ] ||
            fail "$other: $(grep -c '' "$other") lines, at most $max_lines"
    done
    echo "${1#stages/}: $number steps of at most $longest lines, moves of at most $largest"
}

chains=0
for step in "stages/$stage/steps"/[0-9]*_*; do
    [ ! -e "$step" ] || fail "$step: a step stands in the folder of its chain"
done
for folder in "stages/$stage/steps"/*/; do
    for step in "$folder"[0-9]*_*; do
        [ -e "$step" ] || continue
        chains=$((chains + 1))
        check_chain "${folder%/}"
        break
    done
done
[ "$chains" -gt 0 ] || fail "stages/$stage/steps: no chain"
exit "$failed"
