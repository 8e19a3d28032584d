# shellcheck shell=sh
# shellcheck disable=SC2154,SC2034 # variables of tests/bad_input.sh, which reads this file
# Concurrent runs into one folder, and runs that a signal ends. A run is stopped at a known point,
# so that nothing here depends on timing.

env --default-signal true 2>/dev/null || {
    skip "runs side by side, and signals: env has no --default-signal here (coreutils 8.31)"
    return 0
}

# A case of zeros with 12 MB of results.
fresh one_token
rm -rf "$work/case/expect" "$work/case/dout.npy"
mv "$work/case" "$work/long"
cat >"$work/long/config.json" <<'CONFIG'
{"seq_len": 1200, "q_heads": 8, "kv_heads": 8, "qk_dim": 64, "v_dim": 64, "phi": "mean",
 "slc_count": 3, "window": 4}
CONFIG
ln -s long "$work/case"
for name in q k_cmp v_cmp k_slc v_slc k_win v_win; do
    npy $name.npy '<f4' False "(1200, 8, 64)" 2457600
done
npy gate.npy '<f4' False "(1200, 8, 3)" 115200
rm "$work/case"
fresh one_token

# there PATTERN: does a file of that name exist?
there() {
    for found in $1; do
        [ -e "$found" ] && return 0
    done
    return 1
}

# stop_at PATTERN: start a run into $work/out as $process, and stop it while such a file exists. A
# shell's background processes ignore INT, so that is undone.
stop_at() {
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        # shellcheck disable=SC2086 # the runner may be several words
        env --default-signal $RUNNER "$NSA" run -s 01 -i "$work/long" -o "$work/out" \
            >"$work/stdout" 2>"$work/err" </dev/null &
        process=$!
        while kill -0 "$process" 2>/dev/null && ! there "$1"; do :; done
        kill -s STOP "$process" 2>/dev/null
        there "$1" && return 0
        kill -s CONT "$process" 2>/dev/null
        wait $process
    done
    fail "a run that can be met" "ten runs left no $1 to be seen: $(cat "$work/err")"
    return 1
}

# ended SIGNAL: send it the signal and continue it; its exit code is in $code
ended() {
    kill -s "$1" "$process"
    kill -s CONT "$process" 2>/dev/null
    wait "$process" 2>/dev/null
    code=$?
}

leftovers() {
    find "$work" -name '*partial*' | sort | tr '\n' ' '
}

# ------------------------------------------------------------------------- signals

# A run that gets the signal while publishing finishes that first: there may be results, but then
# all of them.
nsa run -s 01 -i "$work/long" -o "$work/whole" >"$work/stdout" 2>"$work/err"
whole() {
    [ "$(ls "$work/out")" = "$(ls "$work/whole")" ]
}
for sig in INT:130 TERM:143 HUP:129; do
    for when in 'lock:while it computes' '[0-9]*/out.npy:while results are written'; do
        stop_at "$work/out.partial-${when%:*}" || continue
        ended "${sig%:*}"
        if [ $code -ne "${sig#*:}" ]; then
            fail "${sig%:*} ${when#*:}" "exit code $code, expected ${sig#*:}"
        elif [ -n "$(leftovers)" ] || { [ -e "$work/out" ] && ! whole; }; then
            fail "${sig%:*} ${when#*:}" "left $(leftovers)$(ls -d "$work/out" 2>/dev/null)"
        else
            pass "${sig%:*} ${when#*:}" "exit code $code, and nothing is left half done"
        fi
        rm -rf "$work/out" "$work"/out.partial-*
    done
done
rm -rf "$work/whole"

# old results are kept, and a signal that nohup ignores stays ignored
nsa run -s 00 -i "$work/case" -o "$work/out" >"$work/stdout" 2>"$work/err"
before=$(cat "$work/out"/*.npy | cksum)
if stop_at "$work/out.partial-[0-9]*/out.npy"; then
    ended TERM
    if [ -z "$(leftovers)" ] && [ "$before" = "$(cat "$work/out"/*.npy | cksum)" ]; then
        pass "TERM while new results are written" "the old ones stay"
    else
        fail "TERM while new results are written" "left $(leftovers), or other results"
    fi
fi
rm -rf "$work/out"
# shellcheck disable=SC2086 # the runner may be several words
env --ignore-signal=HUP $RUNNER "$NSA" run -s 01 -i "$work/long" -o "$work/out" \
    >"$work/stdout" 2>"$work/err" </dev/null &
process=$!
while kill -0 "$process" 2>/dev/null && ! there "$work/out.partial-lock"; do :; done
kill -s HUP $process
if wait $process && [ -e "$work/out/out.npy" ]; then
    pass "HUP that is ignored" "the run ends well"
else
    fail "HUP that is ignored" "the run failed: $(cat "$work/err")"
fi
rm -rf "$work/out"

# ------------------------------------------------------- a killed run, and a live one

sleep 1000 &
sleeper=$!
if stop_at "$work/out.partial-[0-9]*/out.npy"; then
    ended KILL
    left=$(leftovers)
    mkdir "$work/out.partial-$sleeper" "$work/out.partial-note" # of a live process, and of nobody
    printf x >"$work/out.partial-$sleeper/out.npy"
    nsa run -s 01 -i "$work/case" -o "$work/out" >"$work/stdout" 2>"$work/err"
    code=$?
    if [ $code -ne 0 ] || [ ! -e "$work/out/out.npy" ]; then
        fail "a run after one that was killed" "exit code $code: $(cat "$work/err")"
    elif [ "$(printf '%s' "$left" | wc -w)" -ne 2 ] ||
        [ ! -e "$work/out.partial-$sleeper/out.npy" ] || [ ! -e "$work/out.partial-note" ] ||
        [ "$(leftovers | wc -w)" -ne 2 ]; then
        fail "a run after one that was killed" "$left before, $(leftovers) after it"
    else
        pass "a run after one that was killed" "removes what that one left, and nothing else"
    fi
fi
kill $sleeper
wait $sleeper 2>/dev/null
printf x >"$work/out.partial-$sleeper/old-dq.npy"
nsa run -s 01 -i "$work/case" -o "$work/out" >"$work/stdout" 2>"$work/err" || rm -rf "$work/out"
rmdir "$work/out.partial-note"
if [ -z "$(leftovers)" ] && [ -e "$work/out/dq.npy" ]; then
    pass "a run into a folder with files" "removes leftovers, too"
else
    fail "a run into a folder with files" "left $(leftovers): $(cat "$work/err")"
fi
rm -rf "$work/out" "$work"/out.partial-*

# ------------------------------------------------------------------------- two runs

# second WHAT OUT: a run into OUT while $process writes there
second() {
    nsa run -s 00 -i "$work/case" -o "$2" >"$work/stdout2" 2>"$work/err2" </dev/null
    code=$?
    if [ $code -eq 1 ] && [ "$(wc -l <"$work/err2")" -eq 1 ] &&
        grep -q "another run, process $process, is writing there" "$work/err2"; then
        pass "$1" "$(cat "$work/err2")"
    else
        fail "$1" "exit code $code: $(cat "$work/err2")"
    fi
}

ln -s out "$work/link"
for there_is in nothing results; do
    stop_at "$work/out.partial-lock" || continue
    second "a second run where there is $there_is" "$work/out"
    second "a second run by another path where there is $there_is" "$work/../${work##*/}/out/"
    [ $there_is = nothing ] || second "a second run by a link" "$work/link"
    nsa run -s 00 -i "$work/case" -o "$work/out2" >"$work/stdout2" 2>"$work/err2" ||
        fail "a run beside it into a folder of its own" "$(cat "$work/err2")"
    ended CONT
    if [ $code -eq 0 ] && [ -z "$(leftovers)" ] && [ -e "$work/out/out.npy" ] &&
        ! head -qc 128 "$work/out"/*.npy | grep -qa '<f8'; then
        pass "the first run where there is $there_is" "all results are its own"
    else
        fail "the first run where there is $there_is" "exit code $code, left $(leftovers)"
    fi
done
rm -rf "$work/out" "$work/out2" "$work/link" "$work/long"
