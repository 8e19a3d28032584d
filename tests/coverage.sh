#!/bin/sh
# Which lines of stages 00, 01 and stages/common does no test reach? Each must be listed in
# tests/coverage.allow with a reason, and every listed line must be unreached.
#
#   sh tests/coverage.sh BUILD   a build with --coverage: runs it and judges (make coverage)
#   sh tests/coverage.sh --table the list of unreached lines as a table for the docs
set -eu
cd "$(dirname "$0")/.."
allow=tests/coverage.allow

# file|line|reason, without comments and blank lines
entries() {
    grep -v -e '^#' -e '^ *$' "$allow" || true
}

if [ "${1:-}" = --table ]; then
    echo '| file | line | why no test reaches it |'
    echo '|---|---|---|'
    # escape a bar, which would end the table cell
    entries | awk -F ' @ ' '{
        line = $2
        gsub(/\|/, "\\|", line)
        printf "| %s | `%s` | %s |\n", $1, line, $3
    }'
    exit 0
fi

build=$1
stages='00_dense 01_naive_nsa'
find "$build" -name '*.gcda' -exec rm {} +

# ------------------------------------------------------------------------- running

echo "coverage: nsa check ${CHECK:---quick}"
# shellcheck disable=SC2086 # options
"$build/nsa" check ${CHECK:---quick} | tail -n 1
# The result is ignored here: gcov's messages disturb it. Without `disk`, whose limits would
# truncate gcov's files.
echo "coverage: bad input"
PARTS='config npy tensors folders commands pipes' NSA=$build/nsa BAD_STAGES=$build/bad_stages \
    sh tests/bad_input.sh >"$build/bad_input.log" || true
"$build/nsa" list >/dev/null
"$build/corners"
echo "coverage: the corpus of the contract"
for stage in $stages; do
    "$build/fuzz_contract_$stage" tests/fuzz/corpus/contract/*
done

# -------------------------------------------------------------------------- counting

for dir in common $stages; do
    for notes in "$build/obj/stages/$dir"/*.gcno; do
        ${GCOV:-gcov} -t -o "$build/obj/stages/$dir" "$notes" 2>/dev/null
    done
done | awk '
    /^ *-: +0:Source:/ { file = $0; sub(/^ *-: +0:Source:/, "", file); next }
    {
        at = index($0, ":")
        count = substr($0, 1, at - 1)
        gsub(/ /, "", count)
        rest = substr($0, at + 1)
        line = rest + 0
        text = rest
        sub(/^ *[0-9]+:[ \t]*/, "", text)
        if (count == "-" || file !~ /^stages\//)
            next
        key = file ":" line
        seen[key] = file " @ " text
        if (count !~ /^[#=]/)
            reached[key] = 1
    }
    END {
        for (key in seen) {
            total++
            if (key in reached)
                good++
            else
                printf "%s @ %s\n", seen[key], key
        }
        printf "%d %d\n", good, total > "/dev/stderr"
    }' >"$build/unreached" 2>"$build/counted"

read -r good total <"$build/counted"
entries >"$build/allowed"
# An entry covers every line of its file with that text.
awk -F ' @ ' '
    FILENAME == ARGV[1] { reason[$1 " @ " $2] = $3; next }
    ($1 " @ " $2) in reason { used[$1 " @ " $2] = 1; known++; next }
    { printf "FAIL %s: no test reaches: %s\n", $3, $2; bad++ }
    END {
        for (entry in reason) {
            if (!(entry in used)) {
                printf "FAIL tests/coverage.allow: is reached, or is gone: %s\n", entry
                bad++
            } else if (reason[entry] == "") {
                printf "FAIL tests/coverage.allow: no reason: %s\n", entry
                bad++
            }
        }
        printf "%d unreached lines have a reason, %d failed\n", known, bad
        exit bad > 0
    }' "$build/allowed" "$build/unreached" >"$build/verdict" || {
    sort "$build/verdict"
    exit 1
}
echo "coverage: $good of $total lines reached; $(cat "$build/verdict")"
