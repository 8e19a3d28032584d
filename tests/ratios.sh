#!/bin/sh
# How `nsa bench` computes ratios of times, tested with run files written here: by rounds if both
# rows share at least three, else from medians and quartiles; which rounds it refuses to read; and
# what load and read take beside their floor.
#
#   NSA_BENCH=build/nsa-bench sh tests/ratios.sh
set -eu
bench=${NSA_BENCH:-build/nsa-bench}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bad=0

# row NAME MEDIAN Q1 Q3 RUNS [ROUNDS]: one of T = 64, ROUNDS as JSON
row() {
    printf '{"name":"%s","pass":"forward","device":"cpu","T":64,"flops":8,' "$1"
    printf '"median":%s,"q1":%s,"q3":%s,"runs":%s%s}' "$2" "$3" "$4" "$5" "${6:+,\"rounds\":$6}"
}

# both SPARSE DENSE: a run file of two rows
both() {
    printf '{"rows":[%s,%s],"threads":1}\n' "$1" "$2" >"$work/run.json"
}

# expect WHAT TEXT: the ratio to its own dense attention
expect() {
    if ! "$bench" --table "$work/run.json" --what own >"$work/out" 2>&1 ||
        ! tr -s ' ' <"$work/out" | grep -qF -e "| $2 |"; then
        echo "FAIL ratios: $1: \"$2\" is missing in:" && cat "$work/out"
        bad=1
    fi
}

# refuse WHAT ROUNDS RUNS: a row with these rounds is an error that names file and row
refuse() {
    both "$(row 02_blocked 2 1 3 "$3" "$2")" "$(row 'causal by 02_blocked' 4 3 5 4)"
    code=0
    "$bench" --table "$work/run.json" --what own >"$work/out" 2>&1 || code=$?
    if [ "$code" -eq 0 ] || ! grep -qF '"rounds" of 02_blocked at T = 64' "$work/out"; then
        echo "FAIL ratios: $1: exit status $code" && cat "$work/out"
        bad=1
    fi
}

sparse=$(row 02_blocked 2.5 1.75 3.25 4 '[1,2,3,4]')
both "$sparse" "$(row 'causal by 02_blocked' 4 3.5 4.5 4 '[4,2,6,4]')"
expect "the median of four ratios, not the ratio of medians" "1.50x (1.00..2.50)"
both "$sparse" "$(row 'causal by 02_blocked' 4 3.5 4.5 3 '[4,0,6,4]')"
expect "a round that one sat out does not count" "2.00x (1.50..3.00)"
both "$sparse" "$(row 'causal by 02_blocked' 4 3.5 4.5 2 '[4,0,0,4]')"
expect "two rounds are too few: medians and extremes" "1.60x (1.08..2.57)"
both "$sparse" "$(row 'causal by 02_blocked' 4 3.5 4.5 4)"
expect "no rounds at all: medians and extremes" "1.60x (1.08..2.57)"
refuse "a number" 5 4
refuse "a text" '"1,2,3,4"' 4
refuse "a text among numbers" '[1,2,3,"4"]' 3
refuse "less than no time" '[1,2,3,-4]' 3
refuse "no finite time" '[1,2,3,1e999]' 4
refuse "other than there were runs" '[1,2,0,4]' 4
refuse "more than the maximum" "[$(seq -s, 61)]" 61

# io CEILINGS FLOOR TIMES: the line of a row of 10 ms, 12 ms with 4 GB of load and read, where
# FlashAttention took 6 ms. A row without load and read, as in older run files, is left out.
io() {
    old=$(row 03_fused_cuda 0.01 0.009 0.011 3)
    with="${old%\}},\"with_io_median\":0.012,\"with_io_q1\":0.011,\"with_io_q3\":0.013"
    printf '{"rows":[%s,"bytes_io":4e9},%s,%s],"ceilings":%s}\n' "$with" \
        "$(row torch_flash2 0.006 0.0055 0.0065 3)" "$(row 02_blocked 1 1 1 3)" \
        "$1" >"$work/run.json"
    "$bench" --table "$work/run.json" --what io >"$work/out" 2>&1 || true
    line="| 64 | forward | 03_fused_cuda | 10.0 | 12.0 | 2.00 | $2 | $3 | 0.500x (0.423..0.591) |"
    if ! tr -s ' ' <"$work/out" | grep -qxF -e "$line" || grep -q 02_blocked "$work/out"; then
        echo "FAIL ratios: not the one line \"$line\" in:" && cat "$work/out"
        bad=1
    fi
}
io '{"copy":[4000,3900,4100]}' 1.00 2.00
io '{}' - -
[ $bad -ne 0 ] || echo "ratios: six as they should be, seven bad lists of rounds refused"
exit $bad
