#!/bin/sh
# `make test-train`, behind the gradients: a hundred steps of recall end within a band, resumed
# training gives the bits of uninterrupted training, and what is wrong gives one line and an exit
# code that is not zero.
#
#   sh tests/train/train.sh     needs build/nsa, build/nsa-train and stage 02
set -eu
cd "$(dirname "$0")/../.."
NSA=${NSA:-build/nsa}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0

pass() {
    passed=$((passed + 1))
}

fail() {
    echo "FAIL $1" >&2
    exit 1
}

train() {
    "$NSA" train --threads 2 "$@"
}

# between NAME VALUE LOW HIGH
between() {
    awk -v x="$2" -v low="$3" -v high="$4" 'BEGIN { exit !(x >= low && x <= high) }' ||
        fail "$1 is $2, expected $3 to $4"
    pass
}

# refuse CODE FRAGMENT OPTIONS...: that exit code, and one line on standard error with the fragment
refuse() {
    want=$1 says=$2
    shift 2
    code=0
    train "$@" >"$work/out" 2>"$work/err" || code=$?
    [ "$code" -eq "$want" ] || fail "train $*: exit $code, expected $want"
    [ "$(wc -l <"$work/err")" -eq 1 ] || fail "train $*: not one line: $(cat "$work/err")"
    grep -q "^nsa train: .*$says" "$work/err" || fail "train $*: $(cat "$work/err")"
    pass
}

# ------------------------------------------------ a hundred steps, in two runs and in one

train --seed 1 --stop 100 --checkpoint "$work/whole" >"$work/log"
set -- $(awk '$1 == 100' "$work/log")
between "pairs after 100 steps" "$2" 4 8
between "loss after 100 steps" "$3" 0.15 1.5
between "accuracy in training after 100 steps" "$4" 0.5 1

train --seed 1 --stop 30 --checkpoint "$work/half" >"$work/log"
cp "$work/half" "$work/at_30"
train --seed 1 --stop 100 --resume "$work/half" --checkpoint "$work/half" >"$work/log"
cmp "$work/whole" "$work/half" || fail "resumed training differs from uninterrupted training"
pass
for file in "$work"/*.part; do
    [ ! -e "$file" ] || fail "$file was left"
done

# --------------------------------------------------------------- every kind, in one run

train --all --stop 1 >"$work/log"
for row in nsa:41932 full:32960 window:32960 cmp+win:37836 random:41932; do
    grep -q "^${row%:*} *${row#*:} " "$work/log" || fail "--all: no row of $row parameters"
    pass
done

# ----------------------------------------------------------------------- what is not finite

refuse 1 'step 1: the loss is not finite, first in .*; the last good checkpoint is .* of step 0' \
    --lr 1e30 --checkpoint "$work/wild" --every 1
refuse 1 'not finite, first in .*; no checkpoint was written' --lr 1e30

# ---------------------------------------------------------------------------------- bad files

good=$work/at_30
size=$(wc -c <"$good")
refuse 2 'No such file' --resume "$work/none"
refuse 2 'a folder, expected a regular file' --resume "$work"
refuse 2 'whole: there already; --resume goes on from it' --checkpoint "$work/whole"
refuse 2 'cannot write it' --checkpoint "$work/none/file"
printf 'x' >"$work/bad"
refuse 2 '1 bytes are no checkpoint' --resume "$work/bad"
head -c "$size" /dev/zero >"$work/bad"
refuse 2 'not a checkpoint of nsa train' --resume "$work/bad"
for bytes in 100 1000 $((size - 1)); do
    head -c "$bytes" "$good" >"$work/bad"
    refuse 2 'bad: .*\(cut\|no checkpoint\)' --resume "$work/bad"
done
(cat "$good" && printf 'x') >"$work/bad"
refuse 2 'it has more than' --resume "$work/bad"
refuse 2 'kind is 0, in this run 1' --resume "$good" --attention full
refuse 2 'phi is 0, in this run 2' --resume "$good" --phi mlp --lr 0.01
refuse 2 'seed is 1, in this run 2' --resume "$good" --seed 2
refuse 2 'steps is 1000, in this run 500' --resume "$good" --steps 500

# put OFFSET BYTES: a copy of the good file with other bytes there
put() {
    cp "$good" "$work/bad"
    # shellcheck disable=SC2059 # the bytes are a format
    printf "$2" | dd of="$work/bad" bs=1 seek="$1" conv=notrunc 2>/dev/null
}
put 12 'f64'
refuse 2 'its weights are f64, expected f32' --resume "$work/bad"
put 24 '\377\377\377\377\377\377\357\177' # the width is 1.8e308
refuse 2 'width is 1.79769e+308' --resume "$work/bad"
put $((16 + 8 * 36)) '\0\0\0\0\0\0\370\177' # the step is NaN
refuse 2 'step is nan, expected a whole number' --resume "$work/bad"
put $((16 + 8 * 36)) '\0\0\0\0\0\0\360\277' # the step is -1
refuse 2 'step is -1, expected a whole number' --resume "$work/bad"
put $((16 + 8 * 37)) '\0\0\0\0\0\0\010\100' # the pairs are 3
refuse 2 'pairs is 3, expected a power of two' --resume "$work/bad"
put 5000 'xxxx'
refuse 2 'damaged: its checksum is another' --resume "$work/bad"

# -------------------------------------------------------------------------------- bad options

refuse 2 'expected nsa, full, window, cmp+win or random' --attention dense
refuse 2 '"median"' --phi median
refuse 2 'is not a whole number in 51..1000000' --steps 50
refuse 2 '"+60" is not a whole number' --steps +60
refuse 2 'is not a number above 0' --lr 0
refuse 2 'is not a whole number in 1..256' --threads 0
refuse 2 'no stage "77"' --stage 77
refuse 2 'trains several models' --all --checkpoint "$work/x"
refuse 1 'computes in float64' --stage 00
echo "test-train: $passed passed, 0 failed"
