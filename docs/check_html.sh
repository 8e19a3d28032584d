#!/bin/sh
# Look for dead links in the built pages: every relative href, src and data must name a file of the
# folder, and every #fragment an id or a name in it. What Doxygen makes of single headers (files
# named ..._8h) is its own affair; their places may still be linked to. `make docs` ends with this.
#
#   sh docs/check_html.sh [FOLDER]
set -eu
cd "${1:-build/docs/html}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

find . -type f | sed 's|^\./||' >"$work/files"
awk -v files="$work/files" '
    # the value of an attribute
    function value(text) {
        sub(/^[a-z]+="/, "", text)
        sub(/"$/, "", text)
        gsub(/&amp;/, "\\&", text)
        return text
    }

    # what is wrong with a link of a page; "" if nothing is
    function dead(page, link,    hash, file) {
        if (link == "" || link == "#" || link ~ /^[a-z]+:/)
            return ""
        hash = index(link, "#")
        file = hash ? substr(link, 1, hash - 1) : link
        sub(/\?.*/, "", file)
        if (file == "")
            file = page
        if (file ~ /^mathjax\// && !("mathjax/MathJax.js" in there))
            return "" # not installed; make docs says so
        if (!(file in there))
            return "which is not there"
        if (hash && file ~ /\.html$/ && !((file substr(link, hash)) in target))
            return "which has no such place"
        return ""
    }

    FILENAME == files { there[$0] = 1; next }
    FNR == 1 { page = FILENAME; sub(/^\.\//, "", page) }
    {
        line = $0
        while (match(line, /(id|name|href|src|data)="[^"]*"/)) {
            found = substr(line, RSTART, RLENGTH)
            line = substr(line, RSTART + RLENGTH)
            if (found ~ /^(id|name)/)
                target[page "#" value(found)] = 1
            else if (page !~ /_8[a-z]/) {
                links++
                from[links] = page
                to[links] = value(found)
            }
        }
    }

    END {
        for (i = 1; i <= links; i++) {
            why = dead(from[i], to[i])
            if (why == "")
                continue
            printf "docs: %s links to %s, %s\n", from[i], to[i], why
            bad++
        }
        if (!bad)
            printf "docs: %d links, none dead\n", links
        exit bad > 0
    }' "$work/files" ./*.html
