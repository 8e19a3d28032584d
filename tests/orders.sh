#!/bin/sh
# The CUDA stages on the simulator, in each of its orders of threads: `make test-orders`. A few
# small cases launch every kernel of every stage. This is checked: the simulator lists the kernels
# it launched, and a __global__ function of the stage's sources that is not listed is a failure.
# Then every result of some of tests/vectors must have the same bits in all orders: sums in an order
# that depends on which thread comes first pass any tolerance.
#
#   sh tests/orders.sh                   the cases below
#   sh tests/orders.sh PROPERTY:CASE...  others; `PROPERTY:CASE` as nsa check takes them
#
# Environment: BUILD, where build/nsa is, made with CUDA=sim; JOBS (2); ORDERS, as NSA_SIMT_ORDER
# takes them; VECTORS; STAGES (all that have .cu files). Each trial's output stays in build/orders.
set -u
cd "$(dirname "$0")/.." || exit 2
BUILD=${BUILD:-build} JOBS=${JOBS:-2} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
NSA_VECTORS=${NSA_VECTORS:-tests/vectors}
ORDERS=${ORDERS:-forward reverse random:1}
VECTORS=${VECTORS:-packed gated_small paper_ratio planted_ties}
work=$BUILD/orders
export BUILD OMP_WAIT_POLICY NSA_VECTORS work

# Blocks have 64 keys, so 70 tokens and more fill several; a group of 20 heads is two tiles; in the
# case of 1100 tokens a block is selected by more rows than one work unit of the backward takes.
trials() {
    cat <<'END'
forward:T=70
forward:T=97,phi=mlp,hidden=10
forward:T=100,phi=gated
forward:T=90,Hq=20,Hkv=1,dk=5,dv=3
forward:T=40,Hq=2,Hkv=1,dk=256,dv=256
forward:T=140,data=ties
branches:seqs=15+0+115+70,phi=mlp,hidden=6
forced:T=150,n=7,init=2,local=3
limits:T=64
limits:T=16
packing:seqs=7+8+9+17+64+65
decode:T=70
decode:T=17,phi=mlp,hidden=7
decode:T=90,Hq=20,Hkv=1,dk=5,dv=3
decode:seqs=40+33
decode:T=40,Hq=2,Hkv=1,dk=192,dv=128,phi=mlp,hidden=20
backward:T=70
backward:T=97,phi=mlp,hidden=10
backward:T=100,phi=gated
backward:T=90,Hq=20,Hkv=1,dk=5,dv=3
backward:T=70,dk=33,dv=17,phi=gated
backward:T=40,Hq=2,Hkv=1,dk=192,dv=128,phi=mlp,hidden=20
backward:T=40,Hq=2,Hkv=1,dk=256,dv=256
backward:T=60,l=1,d=1,l2=1,n=6
backward:seqs=15+0+115+70,phi=mlp,hidden=6
backward:seqs=7+8+9+17+64+65
backward:T=1100,Hq=1,Hkv=1,dk=2,dv=2,l=16,d=16,l2=16,n=1,init=0,local=1,w=1000,rows=1080
repeat:T=100,phi=gated
END
}
# kernels STAGE: the names of the __global__ functions in its sources: what stands before the
# parameters, once everything in parentheses is taken away
kernels() {
    cat stages/"$1"/*.cu* | tr '\n' ' ' | grep -o '__global__ [^{;]*' |
        sed ':a; s/([^()]*)//g; ta; s/ *$//; s/.*[ *]//' | sort -u
}

# one "STAGE ORDER PROPERTY:CASE": run it and print a line
one() {
    # shellcheck disable=SC2086 # words
    set -- $1
    property=${3%%:*} text=${3#*:}
    log=$(mktemp "$work/$1.$2.XXXXXX")
    if NSA_SIMT_ORDER=$2 NSA_SIMT_KERNELS=$work/$1.$2.launched "$BUILD/nsa" check --stage "$1" \
        --property "$property" --case "$text" >"$log" 2>&1; then
        echo "ok   $2 $1 $property $text"
    else
        echo "FAIL $2 $1 $property $text"
        sed "s/^/  /; s/replay: /replay: NSA_SIMT_ORDER=$2 /" "$log"
    fi
}

if [ "${1:-}" = --one ]; then
    one "$2"
    exit 0
fi

rm -rf "$work" && mkdir -p "$work" || exit 2
if [ $# -gt 0 ]; then printf '%s\n' "$@"; else trials; fi >"$work/trials"
[ -n "${STAGES:-}" ] || STAGES=$(for f in stages/[0-9][0-9]_*/*.cu; do dirname "$f"; done |
    sort -u | sed 's,.*/,,')
for stage in $STAGES; do
    for order in $ORDERS; do
        sed "s/^/$stage $order /" "$work/trials"
    done
done | xargs -P "$JOBS" -I{} sh tests/orders.sh --one {} >"$work/lines"
grep -v '^ok' "$work/lines"

# one result of the vectors: run it in every order and print a line
bits() {
    for order in $ORDERS; do
        out=$work/$1.$2.out
        [ "$order" = "${ORDERS%% *}" ] || out=$work/$1.$2.other
        rm -rf "$out"
        if ! NSA_SIMT_ORDER=$order "$BUILD/nsa" run --stage "$1" --input "$NSA_VECTORS/$2" \
            --output "$out" >"$work/$1.$2.log" 2>&1; then
            echo "FAIL $order $1 cannot run $2"
            return
        fi
        if [ "$out" = "$work/$1.$2.other" ] &&
            ! diff -r "$work/$1.$2.out" "$out" >"$work/$1.$2.log"; then
            echo "FAIL $order $1 $2 has other bits than in order ${ORDERS%% *}: $(
                sed 's/.*\///; s/ .*//; q' "$work/$1.$2.log")"
            return
        fi
    done
    echo "ok   $1 $2 has the same bits in all orders"
}

# Check that no kernel was left out and, in case a program died silently, no trial.
count() {
    wc -l <"$1" | tr -d ' '
}
words='' all=0
passed=$(grep -c '^ok' "$work/lines")
for stage in $STAGES; do
    kernels "$stage" >"$work/$stage.kernels"
    for order in $ORDERS; do
        : >>"$work/$stage.$order.launched"
        missing=$(sort -u "$work/$stage.$order.launched" | comm -23 "$work/$stage.kernels" - |
            tr '\n' ' ')
        all=$((all + $(count "$work/trials") + 1))
        if [ -z "$missing" ] && [ -s "$work/$stage.kernels" ]; then
            passed=$((passed + 1))
            echo "ok   $order $stage launched all of its $(count "$work/$stage.kernels") kernels"
        else
            echo "FAIL $order $stage never launched: $missing"
        fi
        words="$words, $order $(grep -c "^ok   $order $stage " "$work/lines") of $(
            count "$work/trials")"
    done
done
for stage in $STAGES; do
    for vector in $VECTORS; do
        all=$((all + 1))
        line=$(bits "$stage" "$vector")
        case $line in ok*) passed=$((passed + 1)) ;; esac
        echo "$line"
    done
done
echo "orders: ${words#, }"
echo "$passed passed, $((all - passed)) failed"
[ "$passed" -eq "$all" ]
