#!/bin/sh
# A stage with a single fault (tests/lying_stage.c), judged by `nsa check`: with each lie the named
# property must fail, with the given text and a replay line; without a lie the stage must pass the
# same trials. `make test-liars` builds what this needs.
#
#   sh tests/liars.sh            all of them
#   sh tests/liars.sh NAME...    these lies alone
#
# Environment: BUILD, where the command and liars/98_lying.so are; NSA, another command; STOP=1 ends
# at the first lie that is not caught.
set -u
cd "$(dirname "$0")/.." || exit 2
BUILD=${BUILD:-build}
NSA=${NSA:-$BUILD/nsa_counting}
export NSA_VECTORS="${NSA_VECTORS:-tests/vectors}" OMP_WAIT_POLICY=passive
passed=0
failed=0

# check LIE TRUTH PROPERTY CASE [ARITH]: run `nsa check`; output in $said
check() {
    said=$(NSA_LIE=$1 NSA_TRUTH=$2.so NSA_ARITH=${5:-} timeout 60 "$NSA" check \
        --stages "$BUILD/liars" --stage 98_lying --property "$3" --case "$4" 2>&1)
}

# wrong WHAT WHY
wrong() {
    printf 'FAIL %s: %s\n' "$1" "$2"
    failed=$((failed + 1))
    [ -z "${STOP:-}" ] || exit 1
}

# judge LIE PROPERTY CASE FRAGMENT TRUTH ARITH
judge() {
    if ! check none "$5" "$2" "$3" "$6"; then
        wrong "$1" "without a lie $2 fails, too, on $3"
        return
    fi
    check "$1" "$5" "$2" "$3" "$6"
    code=$?
    replay="replay: build/nsa check --stage 98_lying --property $2 --case \"$3\""
    if [ $code -eq 0 ]; then
        wrong "$1" "not caught by $2 on $3: $(printf '%s' "$said" | tail -n 1)"
    elif [ $code -ne 1 ]; then
        wrong "$1" "exit status $code: $(printf '%s' "$said" | tail -n 1)"
    elif ! printf '%s' "$said" | grep -qF -e "$4"; then
        wrong "$1" "$2 does not say \"$4\": $said"
    elif ! printf '%s' "$said" | grep -qF -e "$replay"; then
        wrong "$1" "no line that says: $replay"
    else
        passed=$((passed + 1))
    fi
}

# under_criterion LIE: judge forward on the quick cases with build/judge; prints its output
under_criterion() {
    NSA_LIE=$1 NSA_TRUTH=01_naive_nsa.so NSA_STAGES=$BUILD/liars NSA_JUDGE_STAGE=98_lying \
        NSA_JUDGE_PROPERTY=forward NSA_JUDGE_QUICK=1 timeout 100 "$BUILD/judge" 2>&1
}

# judge_pins LIE: the worker dies in one trial of many. That trial has failed, with its replay line,
# and all others are judged.
judge_pins() {
    if ! said=$(under_criterion none); then
        wrong "$1" "without a lie build/judge fails, too"
        return
    fi
    all=$(printf '%s\n' "$said" | sed -n 's/^\([0-9]*\) passed, 0 failed, 0 skipped$/\1/p')
    said=$(under_criterion "$1")
    code=$?
    case_text='"T=97,phi=mlp,hidden=10"'
    replay="replay: build/nsa check --stage 98_lying --property forward --case $case_text"
    if [ $code -ne 1 ]; then
        wrong "$1" "build/judge ends with exit status $code"
    elif ! printf '%s\n' "$said" | grep -qxF "$((all - 1)) passed, 1 failed, 0 skipped"; then
        wrong "$1" "of $all trials, build/judge says: $(printf '%s' "$said" | grep passed,)"
    elif ! printf '%s\n' "$said" | grep -A2 -xF "FAIL 98_lying forward $case_text" |
        grep -qxF "$replay"; then
        wrong "$1" "build/judge does not say that this trial failed, and how to replay it"
    else
        passed=$((passed + 1))
    fi
}

# lie|property|case|text that must be printed|the real stage|bfloat16 if it is judged as such
lies() {
    cat <<'END'
forward_unsupported|forward|T=100|forward is not written yet
backward_unsupported|backward|T=100|backward is not written yet
prefill_unsupported|decode|T=17|prefill is not written yet
decode_unsupported|decode|T=17|decode is not written yet
forward_fails|forward|T=100|the device is gone
crashes|forward|T=100|CRASH
recurses|forward|T=100|CRASH
forward_nothing|forward|T=100|is not finite
forward_nothing|nan|T=44|is not finite
forward_nothing|equal|T=44|is not finite
forward_nothing|repeat|T=44|is not finite
forward_nothing|threads|T=97|is not finite
forward_nothing|no_malloc|T=44|is not finite
aborts|forward|T=100|CRASH
hangs|forward|T=100|HANG
exits|forward|T=100|EXIT: replay
exits_at_once|forward|T=100|EXIT: replay
allocates|no_malloc|T=100|forward allocated
pool_overrun|forward|T=100|past the end of its block
past_the_end|forward|T=100|reading out wrote outside its tensor
before_the_start|forward|T=100|reading out wrote outside its tensor
writes_input|forward|T=100|changed its input q
writes_behind_input|forward|T=100|changed its input q
row_unwritten|forward|T=100|(row 0) is not finite
out_nan|forward|T=100|out[1200] = nan (row 50) is not finite
out_infinite|forward|T=100|out[2399] = inf (row 99) is not finite
importance_nan|forward|T=100|is not finite
gradient_nan|backward|T=100|dk_slc[800] = nan (row 50) is not finite
out_off|forward|T=100|out is off by rms
out_one_off|forward|T=300,Hq=16|out is off by up to
out_cmp_off|forward|T=100|out_cmp is off by rms
out_slc_off|forward|T=100|out_slc is off by rms
out_win_off|forward|T=100|out_win is off by rms
importance_off|forward|T=100|importance is off by rms
k_phi_off|forward|T=100|k_phi is off by rms
v_phi_off|forward|T=100|v_phi is off by rms
gradient_off|backward|T=100|dv_cmp is off by rms
gradient_zero|backward|T=100|dv_win is off by rms
last_gradient_zero|backward|T=44,phi=mlp,hidden=5|dphi_v_b2 is off by rms
zero_gradient_tenth|backward|T=44,phi=mlp,hidden=5|dphi_k_b2 is zero, but up to 0.1
gate_gradients_swapped|backward|T=100|dgate is off by rms
slope_off|differences|T=44,l=4,d=2,l2=4,n=4,w=5,Hq=2,Hkv=1,dk=3,dv=2|its central difference|00_dense
slope_off|backward|T=44,l=4,d=2,l2=4,n=4,w=5,Hq=2,Hkv=1,dk=3,dv=2|dq is off by rms|00_dense
out_off|vector|vector=mean_small|out is off by rms
last_gradient_zero|vector|vector=mlp_small|dphi_v_b2 is off by rms
idx_second_best|vector|vector=mean_small|the last free block has
one_hot|branches|T=44|out is off by rms
rows_off|rows|T=100|v_phi is off by rms
causal_off|limits|T=44|out_causal is off by rms
out_win_off|limits|T=44,w=50|out_win is off by rms
out_slc_off|limits|T=44|out_slc is off by rms
forced_importance_zero|forced|T=100|importance is off by rms
forced_gradient_zero|forced|T=100|dk_cmp is off by rms
idx_forced_in_disorder|forced|T=100|does not emit its forced blocks in order
idx_twice|forward|T=100|ascending blocks
idx_beyond|forward|T=100|ascending blocks
idx_beyond|forward|T=100|selected branch: block_idx of row
idx_not_ascending|forward|T=100|ascending blocks
idx_padded_with_zero|forward|T=100|ascending blocks
idx_lacks_local|forward|T=200|lacks forced block
idx_second_best|forward|T=200|the last free block has
idx_second_best|forward|T=200,data=ties|slack 0e+00
idx_second_best|decode|T=200|the last free block has
idx_of_nan|nan_order|T=200|NaN importance and selected block
prefill_forgets|decode|T=44|after a prefill of
decode_off|decode|T=44|out_slc is off by rms
decode_forgets_token|decode|T=44,dk=6|out is off by rms
decode_slots_swapped|decode|seqs=40+40+40|after a prefill of
decode_list_ignored|decode|T=100|after a prefill of
prefill_slots_ignored|decode|seqs=40+40+40|after a prefill of 20 tokens
looks_at_sequence|packing|seqs=20+24|changed with NaN in sequence
looks_ahead|causality|T=44|changed with later token
looks_behind_window|nan|T=44|the window pair at token
reads_one_more|reads|T=44|depends on 13 tokens, expected 12
k_phi_one_off|equal|T=44|is not bitwise equal
decode_cmp_off|equal|T=44|v_phi of a decode step
second_call|repeat|T=44|out differs between two runs
second_load|repeat|T=44|dq differs after a longer run
stale_scratch|repeat|T=44|out differs after a longer run
beside_another|repeat|T=44|dq differs beside another context
lean|repeat|T=44|out differs if nothing more is asked for
float64_inputs|repeat|T=44|out differs if the inputs are float64
three_threads|threads|T=97|out differs between 1 and 3 threads
k_phi_not_scored|forward|seqs=0+90+110,data=large|importance is off by rms||bfloat16
k_phi_not_scored|forward|T=200,data=large|the last free block has||bfloat16
k_phi_not_scored|forced|T=100,data=large|importance is off by rms||bfloat16
k_phi_not_scored|rows|T=100,data=large|importance is off by rms||bfloat16
k_phi_not_scored|decode|seqs=0+160+200,data=large,Hq=2|the last free block has||bfloat16
idx_second_best|forward|T=200,phi=mlp|the last free block has||bfloat16
idx_second_best|forward|T=200,data=ties|slack 0e+00||bfloat16
idx_second_best|decode|T=200|the last free block has||bfloat16
last_gradient_zero|vector|vector=mlp_small|dphi_v_b2 is off by rms||bfloat16
END
}

# bench LIE: time a decode of 20 slots
bench() {
    NSA_LIE=$1 NSA_TRUTH=01_naive_nsa.so "$BUILD/nsa" bench --stages "$BUILD/liars" --device cpu \
        --stage 98 --pass decode --seq 64 --batch 20 --heads 2/1 --dims 8/8 --runs 3 2>&1
}

# judge_bench LIE: with this lie `nsa bench` must refuse to time the stage, and exit with 1
judge_bench() {
    if ! said=$(bench none); then
        wrong "$1" "without a lie a decode of 20 slots is refused, too: $said"
        return
    fi
    said=$(bench "$1")
    code=$?
    if [ $code -ne 1 ]; then
        wrong "$1" "nsa bench ends with exit status $code: $(printf '%s' "$said" | head -n 3)"
    elif ! printf '%s' "$said" | grep -qF "98_lying, decode at T = 64, is refused a time: $2"; then
        wrong "$1" "nsa bench does not say why it refuses a time: $said"
    else
        passed=$((passed + 1))
    fi
}

lies >"$BUILD/liars/list"
while IFS='|' read -r name property case_text fragment truth arith; do
    [ $# -eq 0 ] || case " $* " in *" $name "*) ;; *) continue ;; esac
    judge "$name" "$property" "$case_text" "$fragment" "${truth:-01_naive_nsa}" "${arith:-}"
done <"$BUILD/liars/list"
# judge_available LIE FRAGMENT: a stage without a device that is unavailable fails
judge_available() {
    check "$1" 01_naive_nsa forward T=100
    code=$?
    if [ $code -eq 1 ] && printf '%s' "$said" | grep -qF -e "$2"; then
        passed=$((passed + 1))
    else
        wrong "$1" "exit status $code: $said"
    fi
}

# has LIE FILE LINE...: each of these lines must be in the file
has() {
    lie=$1 where=$2
    shift 2
    for line in "$@"; do
        if grep -qxF -e "$line" "$where"; then
            passed=$((passed + 1))
        else
            wrong "$lie" "no line that says: $line"
        fi
    done
}

# judge_score: what a stage lacks is skipped and named in the closing line; what is wrong shows in
# its score by part, on the terminal and in the reports
judge_score() {
    file=$BUILD/liars/score
    NSA_LIE=half_written NSA_TRUTH=01_naive_nsa.so NSA_STAGES=$BUILD/liars "$BUILD/nsa" check \
        --stage 98 --case T=44 --score >"$file.half" 2>&1
    has half_written "$file.half" '  compress           2 of 2' '  dq                 skipped' \
        '      the stage has no backward' '  decode             skipped' \
        '98_lying: 12 passed, 0 failed, 3 skipped; it has no backward, prefill, decode'
    for kind in xml tap; do
        NSA_LIE=importance_off NSA_TRUTH=01_naive_nsa.so NSA_STAGES=$BUILD/liars \
            NSA_JUDGE_STAGE=98 NSA_JUDGE_QUICK=1 NSA_JUDGE_PROPERTY=forward \
            NSA_JUDGE_REPORT=$file.$kind "$BUILD/judge" >"$file.out" 2>&1
    done
    trials=$(sed -n 's/^1\.\.//p' "$file.tap")
    has importance_off "$file.out" "  compress           $trials of $trials" \
        '      replay: build/nsa check --stage 98_lying --property forward --case "T=8"'
    has importance_off "$file.tap" "# score compress: $trials of $trials" \
        'not ok 2 - 98_lying forward T=8'
    has importance_off "$file.xml" \
        "      <property name=\"score compress\" value=\"$trials of $trials\"/>"
}

while IFS='|' read -r name fragment; do
    [ $# -eq 0 ] || case " $* " in *" $name "*) ;; *) continue ;; esac
    judge_available "$name" "$fragment"
done <<'END'
available_unsupported|FAIL 98_lying: there is nothing to see here
available_exits|EXIT: stage 98_lying, asked whether it can run here
END
while IFS='|' read -r name fragment; do
    [ $# -eq 0 ] || case " $* " in *" $name "*) ;; *) continue ;; esac
    judge_bench "$name" "$fragment"
done <<'END'
many_slots_swapped|out is off by
many_slots_misfilled|out is off by
many_slots_nothing|element 0 of row 0 is not finite
END
# judge_explain LIE FRAGMENT: `nsa run --explain` compares what the stage returned, and prints
# nothing if it differs
judge_explain() {
    explain="run --stages $BUILD/liars --stage 98 --input tests/vectors/mean_small --explain 100,1"
    # shellcheck disable=SC2086 # words
    if ! said=$(NSA_LIE=none NSA_TRUTH=00_dense.so "$NSA" $explain 2>&1); then
        wrong "$1" "without a lie --explain fails, too: $said"
        return
    fi
    # shellcheck disable=SC2086 # words
    said=$(NSA_LIE=$1 NSA_TRUTH=00_dense.so "$NSA" $explain 2>&1)
    code=$?
    if [ $code -ne 1 ]; then
        said=$(printf '%s' "$said" | tail -n 1)
        wrong "$1" "nsa run --explain ends with exit status $code: $said"
    elif [ "$said" = "${said#"nsa run: $2"}" ]; then
        wrong "$1" "nsa run --explain does not say \"$2\": $said"
    else
        passed=$((passed + 1))
    fi
}

while IFS='|' read -r name fragment; do
    case " ${*:-$name} " in *" $name "* | *" explain "*) ;; *) continue ;; esac
    judge_explain "$name" "$fragment"
done <<'END'
out_off|out[
out_cmp_off|out_cmp[
out_slc_off|out_slc[
out_win_off|out_win[
importance_off|importance[
v_phi_off|out_cmp[
idx_second_best|block
idx_lacks_local|block
forward_fails|the device is gone
END
for name in crashes_at_97 exits_at_97; do
    [ $# -eq 0 ] || case " $* " in *" $name "*) ;; *) continue ;; esac
    judge_pins "$name"
done
case " ${*:-score} " in *" score "*) judge_score ;; esac
printf '%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
