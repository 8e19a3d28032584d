#!/bin/sh
# Rewrite the text between
#
#   <!-- explain:STEP -->  and  <!-- /explain:STEP -->
#
# in docs/specification.md, from what stage 00 prints of the worked example. STEP is a word of a
# step's first line: query, compress, compressed, importance, select, selected, window, gate.
#
#   sh docs/examples/excerpts.sh            rewrite
#   sh docs/examples/excerpts.sh --check    report what would change; exit status 1 if any
set -eu
cd "$(dirname "$0")/../.."

nsa=${NSA:-./build/nsa}
page=docs/specification.md
check=0
case "${1:-}" in
'') ;;
--check) check=1 ;;
*)
    echo "usage: sh docs/examples/excerpts.sh [--check]" >&2
    exit 2
    ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$nsa" run --stage 00 --input docs/examples/by_hand --explain 19 >"$work/printed"

# A step goes from its number at the margin, "3 importance: ...", to the next empty line; in the
# page it is indented as code. Every marker must be paired, and every step is shown.
awk '
    FNR == NR {
        if ($0 == "") { step = ""; next }
        if ($0 ~ /^[0-9] /) { step = $2; sub(/:$/, "", step); left[step] = 1 }
        text[step] = text[step] "    " $0 "\n"
        next
    }
    /^<!-- explain:.* -->$/ {
        if (inside != "") { print "explain:" inside " is not closed" >"/dev/stderr"; exit bad = 1 }
        inside = $2
        sub(/^explain:/, "", inside)
        if (!(inside in text)) { print "no step " inside >"/dev/stderr"; exit bad = 1 }
        printf "%s\n\n%s\n", $0, text[inside]
        delete left[inside]
        next
    }
    /^<!-- \/explain:.* -->$/ {
        if ($2 != "/explain:" inside) { print $2 " closes nothing" >"/dev/stderr"; exit bad = 1 }
        inside = ""
    }
    inside == ""
    END {
        if (bad) exit 1
        if (inside != "") { print "explain:" inside " is not closed" >"/dev/stderr"; exit 1 }
        for (step in left) { print "step " step " is not shown" >"/dev/stderr"; exit 1 }
    }' "$work/printed" "$page" >"$work/page" || {
    echo "excerpts: $page is left as it was" >&2
    exit 1
}
if cmp -s "$page" "$work/page"; then
    echo "excerpts: $page shows what stage 00 prints"
elif [ $check -eq 1 ]; then
    echo "excerpts: $page differs from what stage 00 prints; run make examples" >&2
    diff -u "$page" "$work/page" >&2 || true
    exit 1
else
    cat "$work/page" >"$page"
    echo "excerpts: $page rewritten"
fi
