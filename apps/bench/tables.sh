#!/bin/sh
# Rewrite the text between <!-- table:RUN/KIND --> and <!-- /table:RUN/KIND --> in README.md,
# docs/*.md, notes/*.md, notes/log/*.md and the stages' pages, from the run file
# notes/runs/RUN.json; KIND as --what of `nsa bench`. With --check report what differs, and fail.
set -eu
cd "$(dirname "$0")/../.."
. docs/between_markers.sh

bad=0
tables=0

# parts TABLE...: print these tables, for the page that shows them
parts() {
    rm -rf "$work/parts"
    for table in "$@"; do
        mkdir -p "$work/parts/$(dirname "$table")"
        "${NSA_BENCH:-./build/nsa-bench}" --table "notes/runs/${table%%/*}.json" \
            --what "${table#*/}" >"$work/parts/$table" || return 1
    done
}

for page in README.md docs/*.md notes/*.md notes/log/*.md stages/*/README.md; do
    # shellcheck disable=SC2046 # their names are words
    set -- $(sed -n 's/^<!-- table:\(.*\) -->$/\1/p' "$page")
    [ $# -gt 0 ] || continue
    tables=$((tables + $#))
    if ! parts "$@"; then
        echo "tables: $page is left as it was" >&2
        bad=1
    elif ! refresh table "$page" tables; then
        bad=1
    fi
done
[ $bad -ne 0 ] || echo "tables: $tables agree with their run files"
exit $bad
