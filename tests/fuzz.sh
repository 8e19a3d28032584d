#!/bin/sh
# Run the fuzz targets one after another, SECONDS_EACH each, starting from tests/fuzz/corpus. New
# inputs go to FOLDER/work; an input that breaks a rule goes to FOLDER/found and ends the run with
# the line that replays it.
#
#   sh tests/fuzz.sh FOLDER TARGET...
set -eu
cd "$(dirname "$0")/.."
folder=$1
shift
seconds=${SECONDS_EACH:-60}
passed=0
failed=0

for target in "$@"; do
    corpus=${target%%_*} # the contract's targets share a corpus
    mkdir -p "$folder/work/$target" "$folder/found"
    log=$folder/$target.log
    code=0
    dictionary=
    [ ! -f "tests/fuzz/$corpus.dict" ] || dictionary=-dict=tests/fuzz/$corpus.dict
    "$folder/fuzz_$target" "$folder/work/$target" "tests/fuzz/corpus/$corpus" \
        -max_total_time="$seconds" -max_len=1024 -timeout=20 -rss_limit_mb=1024 \
        -print_final_stats=1 \
        ${dictionary:+"$dictionary"} \
        -artifact_prefix="$folder/found/$target-" >"$log" 2>&1 || code=$?
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    if [ "$code" -eq 0 ]; then
        passed=$((passed + 1))
        echo "fuzz $target: ${runs:-0} inputs in $seconds s, none broke a rule"
    else
        failed=$((failed + 1))
        grep -v '^#' "$log" | tail -n 40
        found=$(sed -n 's/.*Test unit written to //p' "$log")
        echo "FAIL fuzz $target: exit code $code; replay: ASAN_OPTIONS=${ASAN_OPTIONS:-}" \
            "$folder/fuzz_$target ${found:-?}"
    fi
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
