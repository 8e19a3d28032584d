#!/bin/sh
# Judge stages built for another machine: `make test-aarch64` passes the command that runs `nsa` in
# an emulator, which is about fifteen times slower. So every property is judged on cases where
# machines may differ, and the long ones (NaN at every edge, a thousand central differences) on one
# or two shapes.
#
#   NSA='qemu-aarch64 ... build/aarch64/nsa' sh tests/aarch64.sh STAGE...
#
# A stage is judged on the quick cases; stage 00, the oracle, by the properties that check it; a
# stage on the simulator by a few trials. Each must pass exact ties: equal scores give equal bits,
# whether or not the compiler contracts a*b+c. Environment: NSA; JOBS (2).
set -u
NSA=${NSA:?the command that runs nsa} JOBS=${JOBS:-2}
export NSA

small="T=44,l=4,d=2,l2=4,n=4,w=5,Hq=4,Hkv=2,dk=3,dv=2,phi=gated"
packed="seqs=20+0+24,l=4,d=2,l2=4,n=4,w=5,Hq=2,Hkv=1,dk=3,dv=2,phi=mlp,hidden=4"
ties="T=140,data=ties T=200,data=planted,n=6"
more_ties="T=140,data=ties,phi=gated T=140,data=ties,phi=mlp,hidden=6,Hq=6,seed=10
    T=200,data=planted,n=5,phi=gated,Hq=8 T=200,data=planted,n=6,phi=mlp,hidden=6,Hq=16,Hkv=1
    seqs=70+81+66,data=planted"

# each STAGE PROPERTY... : a line for each property on the quick cases
each() {
    stage=$1
    shift
    for property in "$@"; do
        echo "$stage --quick --property $property"
    done
}

# The trials, one a line: a stage and the options of `nsa check`. The long ones first.
trials() {
    for stage in "$@"; do
        case $stage in
        00_*)
            each "$stage" limits vector packing nan_order
            echo "$stage --property decode --case $small"
            echo "$stage --property differences --case $packed"
            continue
            ;;
        esac
        if $NSA list | grep -q "^$stage .* simulator "; then
            for case_text in $ties vector=all_ties; do
                echo "$stage --property forward --case $case_text"
            done
            echo "$stage --property forced --case $small"
            echo "$stage --property backward --case $packed"
            echo "$stage --property packing --case $packed"
            echo "$stage --property decode --case $small"
            echo "$stage --property nan_order --case $small"
            continue
        fi
        each "$stage" decode repeat branches backward threads causality forward rows forced \
            limits reads vector nan_order packing bad_input bad_config
        for case_text in "$small" "$packed"; do
            echo "$stage --property nan --case $case_text"
        done
        for case_text in $more_ties; do
            echo "$stage --property forward --case $case_text"
        done
    done
}

# Judge one line of trials(); print the output of a failure.
one() {
    # shellcheck disable=SC2086 # words
    said=$($NSA check --stage $1 2>&1)
    code=$?
    [ $code -eq 0 ] || printf '%s\nFAIL %s\n' "$said" "$1"
    echo "$said" | sed -n '$s/^\([0-9]* passed, [0-9]* failed\).*/counted \1/p'
    return $code
}

if [ "${1:-}" = --one ]; then
    one "$2"
    exit
fi

trials "$@" | xargs -P "$JOBS" -I{} sh "$0" --one {} | awk '
    /^counted / { passed += $2; failed += $4; next }
    /^FAIL / { bad++ }
    { print }
    END {
        if (bad > failed) failed = bad
        printf "%d passed, %d failed\n", passed, failed
        exit failed > 0 || passed == 0
    }'
