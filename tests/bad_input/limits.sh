# shellcheck shell=sh
# shellcheck disable=SC2154,SC2034 # variables of tests/bad_input.sh, which reads this file
# Little memory, many sequences, many threads: a command ends with its result or with one line of
# error.

# ends WHAT KIB ARGUMENT...: under a limit of address space it succeeds or prints one error
ends() {
    what=$1
    kib=$2
    shift 2
    (
        # shellcheck disable=SC3045 # dash and bash have it
        ulimit -v "$kib" || exit 125
        # shellcheck disable=SC2086 # the runner may be several words
        NSA_STAGES=$stages timeout 20 $RUNNER "$NSA" "$@"
    ) >"$work/stdout" 2>"$work/err" </dev/null
    code=$?
    rm -rf "$work/out" "$work/pictures"
    if [ $code -le 2 ]; then
        pass "$what" "exit code $code"
    else
        fail "$what" "exit code $code, expected 0, 1 or 2 within 20 s: $(cat "$work/err")"
    fi
}

# Only stage 00: if memory is short for threads, OpenMP's runtime prints its own errors.
stages=$work/stages
mkdir "$stages"
ln -s "$(cd "$(dirname "$NSA")" && pwd)/stages/00_dense.so" "$stages"
fresh one_token
for kib in 60000 100000 150000; do
    ends "--help in $kib KiB" "$kib" --help
    ends "list in $kib KiB" "$kib" list
    ends "run in $kib KiB" "$kib" run -s 00 -i "$work/case" -o "$work/out"
    ends "check in $kib KiB" "$kib" check --stage 00 --property vector --case vector=one_token
    ends "demo in $kib KiB" "$kib" demo -t 1 -o "$work/pictures"
    ends "bench in $kib KiB" "$kib" bench --device cpu --stage 00 --seq 64 --threads 2 --runs 3
    ends "bench of a table in $kib KiB" "$kib" bench --table notes/runs/cpu.json
done
# Enough memory for the bench, but not for OpenBLAS's threads.
ends "bench in 700000 KiB" 700000 \
    bench --device cpu --stage 00 --seq 64 --heads 2/1 --dims 8/8 --threads 2 --runs 3

# max_seqs is a limit, and memory depends on the packed sequences; with decode it asks for slots.
# roomy STAGE KIB: `nsa run` of $work/case in so much address space must succeed
roomy() {
    (
        # shellcheck disable=SC3045 # dash and bash have it
        ulimit -v "$2" || exit 125
        OMP_NUM_THREADS=1 nsa run -s "$1" -i "$work/case" -o "$work/out"
    ) >"$work/stdout" 2>"$work/err" </dev/null
    code=$?
    rm -rf "$work/out"
    if [ $code -eq 0 ]; then
        pass "max_seqs without decode, stage $1" "in $2 KiB"
    else
        fail "max_seqs without decode, stage $1" "exit code $code in $2 KiB: $(cat "$work/err")"
    fi
}
set_key max_seqs 2147483647
for stage in 00 01 02; do
    roomy $stage 150000
done
(
    # shellcheck disable=SC3045 # dash and bash have it
    ulimit -v 8000000 || exit 125
    nsa run -s 01 -i "$work/case" -o "$work/out" --decode 0
) >"$work/stdout" 2>"$work/err" </dev/null
judge "max_seqs of 2147483647 with decode" "max_seqs 2147483647 asks for as many slots" $?
set_key max_seq_len 1000000
refuse_case "slots of more memory than any machine has" "cannot allocate" --decode 0

# 20000 tokens of one sequence: a block of 64 for each token would be 500 MB
set_key seq_len 20000
for name in q k_cmp v_cmp k_slc v_slc k_win v_win; do
    heads=1
    [ $name != q ] || heads=2
    npy $name.npy '<f4' False "(20000, $heads, 4)" $((20000 * heads * 16))
done
npy gate.npy '<f4' False "(20000, 2, 3)" 480000
npy rows.npy '<i4' False "(1,)" 4
rm -f "$work/case/dout.npy"
rm -rf "$work/case/expect"
roomy 02 130000

# Far too many threads: OpenMP would try to start them.
fresh gated_small
for threads in 1025 40000 100000 2147483647; do
    OMP_NUM_THREADS=$threads refuse "OMP_NUM_THREADS of $threads" \
        "OMP_NUM_THREADS asks for $threads threads, at most 1024" \
        run -s 02 -i "$work/case" -o "$work/out"
done

# Fewer threads than asked for, as a container may allow: what the missing ones would have done must
# not be missing. The backward adds up one set of gradients a thread.
if (OMP_NUM_THREADS=2 OMP_THREAD_LIMIT=1 nsa check --stage 02 --property backward --case T=70) \
    >"$work/stdout" 2>"$work/err"; then
    pass "two threads asked for, one given" "stage 02's gradients are right"
else
    fail "two threads asked for, one given" "$(cat "$work/stdout" "$work/err")"
fi
