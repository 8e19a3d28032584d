#!/bin/sh
# Rewrite the text between
#
#   <!-- table:RUN/KIND -->  and  <!-- /table:RUN/KIND -->
#
# in README.md, docs/*.md, notes/*.md, notes/log/*.md and the stages' pages, from the run file notes/runs/RUN.json;
# KIND as in `nsa bench --table FILE --what KIND`. With --check report what would change, and fail.
set -eu

export NSA_BENCH="${NSA_BENCH:-./build/nsa-bench}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bad=0
tables=0

# Copy a page, with new tables between the markers. Every marker must be paired.
rewrite() {
    awk '
    function stop(why) { print FILENAME ": " why >"/dev/stderr"; bad = 1; exit 1 }
    /^<!-- table:.* -->$/ {
        if (inside != "") stop("table:" inside " is not closed")
        inside = substr($2, 7)
        slash = index(inside, "/")
        printf "%s\n\n", $0
        fflush()
        if (system("\"$NSA_BENCH\" --table notes/runs/" substr(inside, 1, slash - 1) \
            ".json --what " substr(inside, slash + 1))) stop("no table " inside)
        print ""
        next
    }
    /^<!-- \/table:.* -->$/ {
        if ($2 != "/table:" inside) stop($0 " closes nothing")
        inside = ""
    }
    inside == ""
    END { if (!bad && inside != "") stop("table:" inside " is not closed") }' "$1"
}

for page in README.md docs/*.md notes/*.md notes/log/*.md stages/*/README.md; do
    here=$(grep -c '^<!-- table:' "$page" || true)
    [ "$here" -gt 0 ] || continue
    tables=$((tables + here))
    if ! rewrite "$page" >"$work/page"; then
        echo "tables: $page is left as it was" >&2
        bad=1
    elif cmp -s "$page" "$work/page"; then
        :
    elif [ $# -gt 0 ]; then
        echo "tables: $page differs from its run file; run make tables" >&2
        diff -u "$page" "$work/page" >&2 || true
        bad=1
    else
        cat "$work/page" >"$page"
        echo "tables: $page rewritten"
    fi
done
[ $bad -ne 0 ] || echo "tables: $tables agree with their run files"
exit $bad
