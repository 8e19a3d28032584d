#!/bin/sh
# `nsa bench --peers` with a program that answers well, badly, or not at all; --one-thread; and load
# and read of device tensors.
#
#   sh tests/peers.sh            needs build/nsa and build/nsa-bench; the program is this file, with
#                                the behaviour as $1
set -eu

nsa=${NSA:-./build/nsa}

# Answers line by line, by the protocol in docs/measuring.md.
peer() {
    id=0
    while IFS= read -r line; do
        case "$1 $line" in
        silent*) exit 0 ;;
        garbage*) echo 'no JSON at all' ;;
        *'"hello"'*)
            echo '{"about":"stub 1.0","absent":"fla","backends":[' \
                '{"name":"stub_dense","device":"cpu","arith":"float32","sparse":0,' \
                '"passes":"forward backward decode"},{"name":"stub_gpu","device":"gpu",' \
                '"arith":"bfloat16","sparse":0,"passes":"forward"}]}'
            ;;
        error*'"open"'*) echo '{"error":"no such kernel"}' ;;
        wrong*'"open"'*) echo '{"wrong":"out is off by 0.5"}' ;;
        dies*'"time"'*) exit 0 ;;
        *'"open"'*)
            id=$((id + 1))
            echo "{\"id\":$id,\"first\":0.25,\"checked\":\"float64: out\"}"
            ;;
        *'"time","id":'*) echo '{"seconds":0.25}' ;;
        *) echo '{}' ;;
        esac
    done
}

if [ $# -eq 1 ]; then
    peer "$1"
    exit
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bad=0

# expect BEHAVIOUR STATUS TEXT...: each text must be in the output
expect() {
    how=$1
    status=$2
    shift 2
    set +e
    "$nsa" bench --device cpu --stage 02 --seq 64,128 --heads 2/1 --dims 16/16 --rows 3 --runs 3 \
        --peers "sh $0 $how" --json "$work/run.json" >"$work/out" 2>&1
    got=$?
    set -e
    [ "$got" -eq "$status" ] || { echo "peers: $how: exit status $got, not $status" && bad=1; }
    for text; do
        grep -qF -e "$text" "$work/out" && continue
        echo "peers: $how: \"$text\" is missing in:"
        cat "$work/out"
        bad=1
    done
}

expect well 0 "Beside it: stub 1.0; not there: fla" "| stub_dense" "float64: out" "vs stub_dense"
if grep -q stub_gpu "$work/out"; then
    echo "peers: a GPU's program was asked although no GPU is wanted" && bad=1
fi
"$nsa" bench --table "$work/run.json" --what peers >"$work/table"
grep -q '02_blocked' "$work/table" || { echo "peers: no table of the run file" && bad=1; }
expect error 0 "stub_dense at T = 64: SKIP: no such kernel" "02_blocked"
expect wrong 1 "stub_dense at T = 64: REFUSED: out is off by 0.5" "02_blocked"
expect silent 0 "SKIP peers: the peers' program has ended" "02_blocked"
expect garbage 0 "SKIP peers: the peers' program answered with something" "02_blocked"
expect dies 0 "stub_dense at T = 64: SKIP: the peers' program has ended" \
    "stub_dense at T = 128: SKIP: the peers' program has ended" "02_blocked"
# A stage's row with one thread, and the table with its own dense attention.
"$nsa" bench --device cpu --stage 02 --seq 64,128 --heads 2/1 --dims 16/16 --rows 3 --runs 3 \
    --threads 2 --one-thread --json "$work/run.json" >"$work/out" 2>&1
"$nsa" bench --table "$work/run.json" --what own/02_blocked >"$work/table"
grep -q '| one thread of 02_blocked' "$work/out" ||
    { echo "peers: --one-thread has no row" && bad=1; }
rows=$(grep -c '02_blocked .*x (.*x (' "$work/table") || true
[ "$rows" -eq 2 ] ||
    { echo "peers: the table own has $rows rows, not 2" && cat "$work/table" && bad=1; }
# A stage on a device or the simulator: each pass is timed with load and read too, and the run file
# has these times.
if "$nsa" list --names | grep -q 03_fused_cuda; then
    code=0
    "$nsa" bench --device gpu --stage 03 --pass all --seq 32 --heads 2/1 --dims 16/16 --rows 3 \
        --runs 3 --json "$work/run.json" >"$work/out" 2>&1 || code=$?
    "$nsa" bench --table "$work/run.json" --what io >"$work/table"
    for pass in forward backward decode; do
        times="^| 32 | $pass | 03_fused_cuda | [0-9.]* | [0-9.]* |"
        line=$(tr -s ' ' <"$work/table" | grep "$times") || code=1
        tr -s ' ' <"$work/out" | grep -qF -e "$line" || code=1
    done
    # of a step: q and out [2,16], six keys and values [1,16], gates [2,3], read and written
    bytes=$(sed -n 's/.*"bytes_io":[^0-9]*\([0-9]*\).*/\1/p' "$work/run.json")
    step=$((2 * 4 * (2 * 32 + 6 * 16 + 6)))
    echo "$bytes" | grep -qx "$step" || code=1
    [ "$code" -eq 0 ] || { echo "peers: no times with load and read" && bad=1; }
    [ "$code" -eq 0 ] || cat "$work/out" "$work/table"
else
    echo "peers: SKIP load and read on a device: stage 03 is not built"
fi
[ $bad -ne 0 ] || echo "peers: six programs, good and bad, did what is expected"
exit $bad
