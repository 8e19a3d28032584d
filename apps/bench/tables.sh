#!/bin/sh
# Rewrite the text between
#
#   <!-- table:RUN/KIND -->  and  <!-- /table:RUN/KIND -->
#
# in README.md, notes/*.md and the stages' pages, from the run file notes/runs/RUN.json. KIND is
# what `nsa bench --table FILE --what KIND` takes: machine, forward, backward, decode, phases,
# kernels, peers, own, growth, noise, each with /STAGE appended for one stage.
#
#   sh apps/bench/tables.sh            rewrite
#   sh apps/bench/tables.sh --check    report what would change; exit status 1 if anything would
set -eu

nsa=${NSA:-./build/nsa}
check=0
case "${1:-}" in
'') ;;
--check) check=1 ;;
*)
    echo "usage: sh apps/bench/tables.sh [--check]" >&2
    exit 2
    ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bad=0
tables=0

# Copy a page, with new tables between the markers. Every marker must be paired.
rewrite() {
    inside=''
    while IFS= read -r line || [ -n "$line" ]; do
        case "$line" in
        '<!-- table:'*' -->')
            if [ -n "$inside" ]; then
                echo "$1: table:$inside is not closed" >&2
                return 1
            fi
            inside=${line#'<!-- table:'}
            inside=${inside%' -->'}
            printf '%s\n\n' "$line"
            "$nsa" bench --table "notes/runs/${inside%%/*}.json" --what "${inside#*/}" || return 1
            printf '\n'
            ;;
        '<!-- /table:'*' -->')
            if [ "$line" != "<!-- /table:$inside -->" ]; then
                echo "$1: $line closes nothing" >&2
                return 1
            fi
            inside=''
            printf '%s\n' "$line"
            ;;
        *)
            [ -n "$inside" ] || printf '%s\n' "$line"
            ;;
        esac
    done <"$1"
    if [ -n "$inside" ]; then
        echo "$1: table:$inside is not closed" >&2
        return 1
    fi
}

for page in README.md notes/*.md stages/*/README.md; do
    [ -f "$page" ] || continue
    here=$(grep -c '^<!-- table:' "$page" || true)
    [ "$here" -gt 0 ] || continue
    tables=$((tables + here))
    if ! rewrite "$page" >"$work/page"; then
        echo "tables: $page is left as it was" >&2
        bad=1
    elif cmp -s "$page" "$work/page"; then
        :
    elif [ $check -eq 1 ]; then
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
