#!/bin/sh
# Look at Markdown pages as they are read where people browse a repository; `make docs` begins with
# this, and what it makes of the pages is checked by docs/check_html.sh. A page must have
#
#   - no command of Doxygen's in sight: docs/markdown.awk writes them
#   - only links to files that are there (Doxygen sees to the #sections), each on one line, as
#     docs/markdown.awk reads them
#   - formulas that Markdown leaves alone: no backslash before a sign, which it would remove (write
#     \lbrace for \{, \thinspace for \,), and no }_ before a letter, which may begin an emphasis
#   - lines of prose of at most 100 columns; tables, code and formulas may be longer, and what
#     `make tables` writes between its markers
#
#   sh docs/check_pages.sh PAGE.md...
set -eu
export LC_ALL=C
bad=0

# complain PAGE WHAT: about lines NUMBER:TEXT on standard input, if there are any
complain() {
    while IFS= read -r line; do
        printf '%s\n' "docs: $1:${line%%:*}: $2: ${line#*:}" >&2
        bad=1
    done
}

# The page without code: fenced, indented after an empty line, or between backquotes. Lines stay.
prose() {
    awk '/^ *(```|~~~)/ { fenced = !fenced; print ""; next }
        fenced { print ""; next }
        /^ *$/ { blank = 1; print ""; next }
        /^    / && (blank || code) && !list { code = 1; print ""; next }
        { code = 0; if (blank && /^[^ ]/) list = 0; if (/^ *([-*+]|[0-9]+\.) /) list = 1
          blank = 0; gsub(/`[^`]*`/, ""); print }' "$1"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for page in "$@"; do
    prose "$page" >"$work/prose"
    grep -nE '\\(f[[$]|ref |include |anchor )|\{#[a-z]' "$page" >"$work/found" || true
    complain "$page" "a command of Doxygen's" <"$work/found"

    awk '/^ *\$\$$/ { display = !display; next }
        { text = $0
          if (display) { print FNR ":" text; next }
          while (match(text, /\$[^ $][^$]*\$/)) {
              print FNR ":" substr(text, RSTART, RLENGTH)
              text = substr(text, RSTART + RLENGTH)
          } }' "$work/prose" | grep -E '\\[^A-Za-z]|\}_[A-Za-z0-9\\]' >"$work/found" || true
    complain "$page" "a formula that Markdown changes" <"$work/found"

    # a byte of 200 to 277 (octal) continues a character of UTF-8
    awk 'FNR == NR { prose[FNR] = $0; next }
        prose[FNR] == "" || /^\|/ { next }
        /^<!-- \/?table:/ { generated = !/^<!-- \// }
        generated { next }
        /^ *\$\$$/ { display = !display }
        display { next }
        { text = $0; if (gsub(/[^\200-\277]/, "", text) > 100) print FNR ":" $0 }' \
        "$work/prose" "$page" >"$work/found"
    complain "$page" "more than 100 columns" <"$work/found"

    grep -nE '^[^[]*\]\(' "$work/prose" >"$work/found" || true
    complain "$page" "a link that begins on the line before" <"$work/found"

    grep -noE '\]\([^)#]+' "$work/prose" | sed 's/\](//' |
        grep -vE ':[a-z]+:' >"$work/links" || true
    while IFS= read -r line; do
        [ -e "$(dirname "$page")/${line#*:}" ] || echo "$line"
    done <"$work/links" >"$work/found"
    complain "$page" "a link to what is not there" <"$work/found"
done
[ $bad -ne 0 ] || echo "docs: $# pages are plain Markdown"
exit $bad
