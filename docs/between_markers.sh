# shellcheck shell=sh
# What the scripts share that rewrite parts of Markdown pages, each between two lines
#
#   <!-- KIND:PART -->  and  <!-- /KIND:PART -->
#
# A script reads this file, writes each part's new text into $work/parts/PART, and calls refresh.
# Its arguments are none, to rewrite, or --check, to report what would change.
case "$#,${1:-}" in
0,) check=0 ;;
1,--check) check=1 ;;
*)
    echo "usage: sh $0 [--check]" >&2
    exit 2
    ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/parts"

# What of a page --check compares, from standard input; a script may define another.
mask() {
    cat
}

# filled KIND PAGE: print the page with the new texts. Every marker must be paired and have a part,
# and every part must be shown.
filled() {
    (cd "$work/parts" && find . -type f) | sed 's,^\./,,' >"$work/list"
    awk -v kind="$1" -v list="$work/list" -v parts="$work/parts/" '
        function stop(why) { print FILENAME ": " why >"/dev/stderr"; bad = 1; exit 1 }
        FILENAME == list { known[$0]; left[$0]; next }
        /^<!-- .* -->$/ && index($2, kind ":") == 1 {
            if (inside != "") stop(inside " is not closed")
            inside = $2
            part = substr($2, length(kind) + 2)
            if (!(part in known)) stop("nothing is known of " inside)
            delete left[part]
            print $0 "\n"
            while ((getline line <(parts part)) > 0) print line
            close(parts part)
            print ""
            next
        }
        /^<!-- .* -->$/ && index($2, "/" kind ":") == 1 {
            if ($2 != "/" inside) stop($2 " closes nothing")
            inside = ""
        }
        inside == ""
        END {
            if (bad) exit 1
            if (inside != "") stop(inside " is not closed")
            for (part in left) stop(kind ":" part " is not shown")
        }' "$work/list" "$2"
}

# refresh KIND PAGE TARGET: rewrite the page if it shows something else, or, with --check, fail.
# `make TARGET` is what rewrites it.
refresh() {
    if ! filled "$1" "$2" >"$work/page"; then
        echo "$3: $2 is left as it was" >&2
        return 1
    fi
    mask <"$2" >"$work/is"
    mask <"$work/page" >"$work/should"
    if [ $check -eq 0 ]; then
        cmp -s "$2" "$work/page" && return
        cat "$work/page" >"$2"
        echo "$3: $2 rewritten"
    elif ! cmp -s "$work/is" "$work/should"; then
        echo "$3: $2 does not show what is printed; make $3 rewrites it" >&2
        diff -u -L "$2" -L printed "$work/is" "$work/should" >&2 || true
        return 1
    fi
}
