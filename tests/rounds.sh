#!/bin/sh
# Which rounds `nsa bench` throws away, tested with an OpenBLAS whose sgemm only sleeps: longer in
# the calls from SLOW_FROM to SLOW_TO, as if the machine was interrupted then. It has a memcpy too,
# which sleeps instead of the copies that the bench measures.
#
#   sh tests/rounds.sh           needs build/nsa, build/nsa-bench and a C compiler
set -eu
nsa=${NSA:-./build/nsa}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bad=0

cat >"$work/blas.c" <<'END'
#include <stdlib.h>
#include <string.h>
#include <time.h>
static long number(const char *name) { return getenv(name) ? atol(getenv(name)) : 0; }
void cblas_sgemm(void) {
    static long call;
    const int slow = ++call >= number("SLOW_FROM") && call <= number("SLOW_TO");
    nanosleep(&(struct timespec){.tv_nsec = slow ? 90000000 : 20000000}, NULL);
}
void *memcpy(void *restrict to, const void *restrict from, size_t bytes) {
    if (bytes >= 16 << 20)
        nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    for (size_t i = 0; i < bytes && bytes < 16 << 20; i++)
        ((char *)to)[i] = ((const char *)from)[i];
    return to;
}
void openblas_set_num_threads(int threads) { (void)threads; }
const char *openblas_get_config(void) { return "stub"; }
END
${CC:-cc} -O0 -shared -fPIC "$work/blas.c" -o "$work/libopenblas.so.0"

# run FROM TO: three rounds of a backward, which has no dense baseline
run() {
    SLOW_FROM=$1 SLOW_TO=$2 LD_LIBRARY_PATH=$work LD_PRELOAD=$work/libopenblas.so.0 "$nsa" bench \
        --device cpu --stage 02 --seq 64 --heads 2/1 --dims 16/16 --rows 3 --runs 3 \
        --pass backward --json "$work/run.json" >"$work/out" 2>&1 || bad=1
    "$nsa" bench --table "$work/run.json" --what backward >"$work/table" || bad=1
    kept=$(sed -n 's/.*"kept":[^0-9]*\([0-9]*\).*/\1/p' "$work/run.json")
    rounds=$(sed -n 's/.*"rounds":[^0-9]*\([0-9][0-9]*\),.*/\1/p' "$work/run.json")
}

# check WHAT CONDITION TEXT: of the last run, and a text below its table
check() {
    # shellcheck disable=SC2086 # a condition has three words
    if ! test $2 || ! grep -qF -e "$3" "$work/table"; then
        echo "FAIL rounds: $1: $kept of $rounds rounds; not \"$3\" in:" && cat "$work/table"
        bad=1
    fi
}

# 8 times 6 calls look for the best; a probe has 4, and a round of two rows three probes
run 0 0
check "every round is kept" "$kept -eq 3" "3 of 3 rounds."
run 53 56
check "one interrupted after its first row" "$rounds -eq 4" "3 of 4 rounds; the others were inter"
run 49 52
check "a wait before the first row is no round" "$rounds -eq 3" "3 of 3 rounds."
run 49 100000
check "never quiet again: the label" "$kept -eq 3" "too noisy for a claim: OpenBLAS sgemm differed"
[ $bad -ne 0 ] || echo "rounds: interrupted ones are thrown away, and labelled where none is quiet"
exit $bad
