# Doxygen's input filter for our Markdown pages (FILTER_PATTERNS of docs/Doxyfile): it prints one
# page as Doxygen understands it. The pages themselves are written for where people browse a
# repository; what Doxygen wants to be written otherwise is changed here and nowhere else:
#
#   in the page                        what Doxygen gets
#   $x$                                \f$x\f$
#   a block between lines of $$        \f[ ... \f]
#   # Title, ## Section                the same with a label of its own
#   [text](../docs/page.md#section)    [text](@ref page__section), which every version resolves
#   [text](../tests/mutants)           a link to the tables that are made from that folder
#   [text](../stages/nsa.h)            text: what is not on a page of its own has nothing to link to
#   a line with only a link to a       the whole file
#   program of docs/examples
#
# Code (fenced, indented, between backquotes) is left alone, and so is a $ that begins no formula.
#
#   awk -f docs/markdown.awk PAGE.md      from the root of the repository, as Doxygen runs it

# The label of a page: docs/contract.md is "contract", stages/00_dense/README.md "stages_00_dense".
# The README of the root is Doxygen's main page, which is called "index".
function label_of(path) {
    if (path == "README.md")
        return "index"
    sub(/^docs\//, "", path)
    sub(/^build\/docs-src\//, "", path)
    sub(/(\/README)?\.md$/, "", path)
    gsub(/\//, "_", path)
    return path
}

# The anchor of a heading as GitHub makes it: lower case, no punctuation, hyphens for spaces.
function slug_of(text,    slug) {
    slug = tolower(text)
    gsub(/[][!"#$%&'()*+,.\/:;<=>?@\\^`{|}~]/, "", slug)
    gsub(/ /, "-", slug)
    return slug
}

# `target` as seen from the folder of this page, without "." and "..".
function resolve(target,    n, i, part, kept, path) {
    n = split(folder target, part, "/")
    kept = 0
    for (i = 1; i <= n; i++) {
        if (part[i] == ".." && kept > 0)
            kept--
        else if (part[i] != "." && part[i] != "")
            part[++kept] = part[i]
    }
    path = part[1]
    for (i = 2; i <= kept; i++)
        path = path "/" part[i]
    return path
}

# One link, [text](target).
function link(all,    cut, text, target, hash, section, path) {
    cut = index(all, "](")
    text = substr(all, 2, cut - 2)
    target = substr(all, cut + 2, length(all) - cut - 2)
    if (target ~ /^[a-z]+:/)
        return all
    hash = index(target, "#")
    section = hash ? substr(target, hash + 1) : ""
    path = hash == 1 ? here : resolve(hash ? substr(target, 1, hash - 1) : target)
    if (path in made_from)
        return "[" text "](@ref " made_from[path] ")"
    if (path !~ /\.md$/)
        return text
    gsub(/`/, "", text) # the text of a reference is plain
    return "[" text "](@ref " label_of(path) (section == "" ? "" : "__" section) ")"
}

# A formula at the start of `text`: its length, 0 if there is none. As on GitHub, no space stands
# inside the dollars and no letter or digit after them.
function formula_at(text,    end) {
    if (text !~ /^\$[^ \t$]/)
        return 0
    end = index(substr(text, 2), "$") + 1
    if (end == 1 || substr(text, end - 1, 1) ~ /[ \t]/ || substr(text, end + 1, 1) ~ /[A-Za-z0-9]/)
        return 0
    return end
}

# The length of the code span that begins `text`; 0 if it does not end on this line.
function span_at(text, ticks,    rest, from) {
    from = length(ticks) + 1
    while (match(substr(text, from), /`+/)) {
        if (RLENGTH == length(ticks))
            return from + RSTART + RLENGTH - 2
        from += RSTART + RLENGTH - 1
    }
    return 0
}

# One line of prose. `open` holds the backquotes of a code span that goes on in the next line.
function prose(text,    done, n) {
    done = ""
    if (open != "") {
        n = span_at(open text, open) - length(open)
        if (n <= 0)
            return text
        done = substr(text, 1, n)
        text = substr(text, n + 1)
        open = ""
    }
    while (match(text, /[`$[!\\]/)) {
        done = done substr(text, 1, RSTART - 1)
        text = substr(text, RSTART)
        n = 1
        if (match(text, /^`+/)) {
            n = span_at(text, substr(text, 1, RLENGTH))
            if (!n) {
                open = substr(text, 1, RLENGTH)
                n = length(text)
            }
            done = done substr(text, 1, n)
        } else if (match(text, /^!\[[^]]*\]\([^)]*\)/)) { # an image stays
            n = RLENGTH
            done = done substr(text, 1, n)
        } else if (match(text, /^\[[^]]*\]\([^)]*\)/)) {
            n = RLENGTH
            done = done link(substr(text, 1, n))
        } else if ((n = formula_at(text)) > 0) {
            done = done "\\f" substr(text, 1, n - 1) "\\f$"
        } else {
            n = text ~ /^\\./ ? 2 : 1 # \$ is a dollar
            done = done substr(text, 1, n)
        }
        text = substr(text, n + 1)
    }
    return done text
}

# A heading gets its label; a second heading of the same text -1, a third -2, as on GitHub.
function heading(line,    text, slug) {
    text = line
    sub(/^#+ +/, "", text)
    if (line ~ /^# /)
        return here == "README.md" ? line : line " {#" label_of(here) "}"
    slug = slug_of(text)
    slug = slug (slugs[slug]++ ? "-" slugs[slug] - 1 : "")
    return prose(line) " {#" label_of(here) "__" slug "}"
}

# The whole of a program, where a line is nothing but a link to it.
function program(line,    target) {
    if (line !~ /^\[[^]]*\]\([^)]*\)$/)
        return ""
    target = substr(line, index(line, "](") + 2)
    target = resolve(substr(target, 1, length(target) - 1))
    return target ~ /^docs\/examples\// ? target : ""
}

# Is this line code by its indent: four columns more than the text around it, after an empty line?
function indented(line,    indent) {
    match(line, /^ */)
    indent = RLENGTH
    if (after_blank && indent == 0)
        content = 0 # a list ends where text begins at the margin
    if (indent >= content + 4 && (after_blank || code))
        return 1
    if (match(line, /^ *([-*+]|[0-9]+\.) +/))
        content = RLENGTH
    return 0
}

BEGIN {
    "pwd -P" | getline root
    # tests/trust_tables.sh makes a page from these, which only the built pages have.
    made_from["tests/harness/suite.c"] = "trust_tables__properties"
    made_from["tests/mutants"] = "trust_tables__mutants"
    made_from["tests/faults"] = "trust_tables__planted-faults"
    made_from["tests/coverage.allow"] = "trust_tables__lines-that-no-test-reaches"
}

FNR == 1 {
    here = FILENAME
    if (index(here, root "/") == 1) # Doxygen gives the whole path
        here = substr(here, length(root) + 2)
    sub(/^\.\//, "", here)
    folder = here
    sub(/[^\/]*$/, "", folder)
    after_blank = 1
}

/^ *(```|~~~)/ { fenced = !fenced; after_blank = 0; print; next }
fenced { print; next }
/^ *$/ { open = ""; after_blank = 1; print; next }
{ code = indented($0); after_blank = 0 }
code { print; next }
/^ *\$\$$/ {
    displayed = !displayed
    sub(/\$\$/, displayed ? "\\f[" : "\\f]")
    print
    next
}
displayed { print; next }
/^#+ / { print heading($0); next }
(file = program($0)) != "" { sub(/.*\//, "", file); print "\\include " file; next }
{ print prose($0) }
