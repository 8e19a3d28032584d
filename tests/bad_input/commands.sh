# shellcheck shell=sh
# shellcheck disable=SC2154,SC2034 # variables of tests/bad_input.sh, which reads this file
# The command line itself: options, stages, case strings, and the text of the demo.

refuse "no subcommand" "no subcommand: expected one of list, run, check"
refuse "an unknown subcommand" 'unknown subcommand "frob"' frob
refuse "an unknown option" "unrecognized option '--frob'" list --frob
refuse "an argument too many" 'unexpected argument "x"' list x
refuse "run without options" "--stage NAME is missing" run
refuse "run without input" "--input DIR is missing" run -s 01
refuse "run without output" "--output DIR is missing" run -s 01 -i "$VECTORS/one_token"
refuse "an option without its value" "requires an argument" run --stage
for value in -1 x 3x "" 1.5 99999999999999999999; do
    refuse "--decode \"$value\"" "is not a whole number from 0" \
        run -s 01 -i "$VECTORS/one_token" -o "$work/out" --decode="$value"
done

# ---------------------------------------------------------------------- stages

fresh one_token
refuse "a stage that is not there" 'no stage "77"' run -s 77 -i "$work/case" -o "$work/out"
refuse "a stage of bytes that are no text" 'no stage "\xff\x1b[7m"' \
    run -s "$(printf '\377\033[7m')" -i "$work/case" -o "$work/out"
cp "$VECTORS/one_token/q.npy" "$work/case/$(printf 'q\377\033[7m.npy')"
refuse_case "a file whose name is no text" 'q\xff\x1b[7m.npy: no input has that name'
fresh one_token
refuse "a stage without a name" 'no stage ""' run -s "" -i "$work/case" -o "$work/out"
refuse "a folder of stages that is not there" "No such file" list --stages "$work/nowhere"
refuse "a stage of a folder that is not there" "No such file" \
    run -s 01 -S "$work/nowhere" -i "$work/case" -o "$work/out"
refuse "a folder without stages" "no stages (NN_name.so)" list --stages "$work"
refuse "a check without stage 00" 'no stage "00"' check --stages "$work"
NSA_STAGES=$work/nowhere refuse "NSA_STAGES that is not there" "nowhere: No such file" list
mkdir "$work/alone"
cp "$NSA" "$(dirname "$NSA")/libnsa.so" "$work/alone"
kept_nsa=$NSA
NSA=$work/alone/nsa
refuse "a library without stages beside it" "build them, or set NSA_STAGES" list
NSA=$kept_nsa
printf 'x' >"$work/99_text.so"
refuse "a stage that is no shared object" "stage 99_text:" \
    run -s "$work/99_text.so" -i "$work/case" -o "$work/out"
cp "$work/99_text.so" "$work/99_other.so"
refuse "a number of two stages" 'more than one stage "99"' \
    run -s 99 -S "$work" -i "$work/case" -o "$work/out"
rm "$work"/99_*.so

# built by `make test-bad-input`: shared objects, each with one fault
if [ -n "$BAD_STAGES" ]; then
    while IFS='|' read -r name says; do
        refuse "stage $name" "$says" \
            run -s "$BAD_STAGES/$name.so" -i "$work/case" -o "$work/out"
    done <<'STAGES'
90_nothing|exports no nsa_stage_get()
91_null|exports no nsa_stage_get()
92_abi|was built for contract 4242
93_empty|leaves forward empty in its table
94_elsewhere|no such machine
95_open|open fails on purpose
96_device|calls or slot_lens, which device needs, empty in its table
STAGES
    if nsa list --stages "$BAD_STAGES" >"$work/stdout" 2>&1 &&
        [ "$(grep -c '^9[0-9]_' "$work/stdout")" -eq 7 ]; then
        pass "stages that do not load are listed" "with the reason"
    else
        fail "stages that do not load are listed" "$(cat "$work/stdout")"
    fi
else
    skip "stages that are none: BAD_STAGES names no folder of them (make test-bad-input makes one)"
fi

# ---------------------------------------------------------------- case strings

while IFS='|' read -r text says; do
    refuse "case \"$text\"" "$says" check --stage 01 --case "$text"
done <<'CASES'
T|"T" in a case is not key=value
T=|"T=" in a case is not key=value
=5|"=5" in a case is not key=value
T=5,|"" in a case is not key=value
T=x|T=x is not a number
T=1e400|seq_len inf is not a whole number
T=nan|is not a whole number
T=0|seq_len 0 is not in 1..
X=5|unknown key "X" in a case
T=5,T=7|"T" is given twice in a case
seqs=5+5,w=3,seqs=9|"seqs" is given twice in a case
phi=max|phi "max" is not one of
data=odd|data=odd is not one of normal, ties, planted, large
seqs=5+x|seqs=5+x is not up to 16 lengths joined by +
seqs=-5|is not up to 16 lengths
seqs=1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1|is not up to 16 lengths
seqs=0|seq_len is required
seqs=99999999999|is not up to 16 lengths
seed=-1|seed=-1 is not a number in 0..1e9
seed=nan|seed=nan is not a number in 0..1e9
rows=1e10|rows=1e10 is not a number in 0..1e9
vector=../vectors|is not the name of a folder
vector=nowhere|nowhere/config.json: No such file
Hq=5|q_heads 5 is not a multiple of kv_heads 2
seqs=5+5,T=3|T=3 is not the sum of seqs, 10
data=low,phi=mlp|exact scores need phi=mean and l a power of two up to 16, not phi=mlp
data=high,l=12|not phi=mean and l=12
data=rising,T=501|data=rising is exact up to T=500, not T=501
CASES
refuse "a case of 400 characters" "is longer than 319" \
    check --stage 01 --case "T=$(head -c 400 /dev/zero | tr '\0' 1)"
refuse "a property that is not there" 'no property "frob"' check --stage 01 --property frob
refuse "a property that is not for the case" "no property named packing applies to that case" \
    check --stage 01 --property packing --case T=9
refuse "a check of a stage that is not there" 'no stage "77"' check --stage 77
judge=$(dirname "$NSA")/judge # the same harness under Criterion, with its options
if [ -x "$judge" ]; then
    timeout 120 "$judge" --filter 'nsa/frob' >"$work/stdout" 2>"$work/said"
    code=$?
    if [ $code -eq 2 ] && grep -q 'no test matches --filter "nsa/frob"' "$work/said"; then
        pass "a filter that matches no test" "$(head -n 1 "$work/said")"
    else
        fail "a filter that matches no test" "exit code $code, expected 2: $(cat "$work/said")"
    fi
else
    skip "a filter that matches no test: there is no $judge"
fi
nsa check --stage 01 --property backward --case T=100,scale=800 >"$work/said" 2>&1
if grep -q '; ill-conditioned: moving every input by 2^-24 of itself moves d' "$work/said"; then
    pass "gradients that hang on the last digit" \
        "$(sed -n 's/.*; \(ill.*\) (seed.*/\1/p' "$work/said")"
else
    fail "gradients that hang on the last digit" "$(cat "$work/said"), expected \"ill-conditioned\""
fi

# ------------------------------------------------------------------------ demo

: >"$work/nothing"
refuse "demo of an empty file" "holds 0 bytes, expected at least" \
    demo -o "$work/out" "$work/nothing"
printf 'too short' >"$work/short"
refuse "demo of 9 bytes" "holds 9 bytes, expected at least" demo -o "$work/out" "$work/short"
refuse "demo of a folder" "a folder, expected a regular file" demo -o "$work/out" "$work"
refuse "demo of no file" "No such file" demo -o "$work/out" "$work/nowhere"
refuse "demo of two files" "unexpected argument" demo -o "$work/out" "$work/short" "$work/short"
refuse "demo into a file" "is no folder" demo -t 1 -o "$work/short"
for value in 0 x "" 1e9 nan; do
    refuse "demo --time \"$value\"" "expected seconds, 1 to 86400" demo --time="$value"
done
cat "$VECTORS"/paper_ratio/k_*.npy | head -c 6000 >"$work/binary"
if nsa demo -t 2 -o "$work/pictures" "$work/binary" >"$work/stdout" 2>"$work/err" &&
    [ ! -s "$work/err" ] && tail -n 1 "$work/pictures/block_map.svg" | grep -q '</svg>'; then
    pass "demo of a binary file" "is drawn whole"
else
    fail "demo of a binary file" "$(cat "$work/err"), expected a whole picture"
fi
rm -rf "$work/pictures"

# ------------------------------------------------------------------------- measuring

refuse "lengths out of order" '--seq "4k,1k"' bench --seq 4k,1k
refuse "a length that is no number" '--seq "many"' bench --seq many
refuse "heads without a slash" '--heads "16"' bench --heads 16
refuse "dims of nothing" '--dims "0/64"' bench --dims 0/64
refuse "a pass that there is not" 'sideways' bench --pass sideways
refuse "a compressor that there is not" 'median' bench --phi median
refuse "a device that there is not" 'abacus' bench --device abacus
refuse "threads of nothing" '--threads "0"' bench --threads 0
refuse "too few runs for quartiles" '--runs "2" is not a whole number in 3..60' bench --runs 2
refuse "more runs than the maximum" '--runs "61"' bench --runs 61
refuse "a pack of too many sequences" '--batch 17: forward and backward pack up to 16' \
    bench --batch 17
refuse "too many slots" '--batch "65" is not a whole number in 1..64' bench --pass decode --batch 65
refuse "--one-thread with one thread" "--one-thread" bench --one-thread --threads 1
refuse "a run file that is not there" 'no_run.json' bench --table "$work/no_run.json"
while IFS='|' read -r text says; do
    printf '%s' "$text" >"$work/run.json"
    refuse "a run file that is '$text'" "run.json: $says" bench --table "$work/run.json"
done <<'RUNS'
|not JSON: stuck at byte 0 of 0: expected a value, found its end
[]|not a JSON object
{}|not a run file: expected an array rows
{"rows": [], "batch": 1, "cores": 02}|not JSON: stuck at byte 35 of 37
{"rows": [], "batch": 1,}|not JSON: stuck at byte 24 of 25
RUNS
