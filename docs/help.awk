# What `make help` and `make help-all` print, from the comments behind the targets of the Makefiles:
#
#   target: prerequisites ## text         for every reader: `make help`
#   target: prerequisites ##@group text   `make help-all`, in that group
#   target: prerequisites ##@part         called by other targets: in no list
#
#   awk -v show=help|all|check -f docs/help.awk MAKEFILE...
#
# "check" prints what is wrong, and fails if anything is: a .PHONY target without such a comment, a
# comment on a target that is not .PHONY, an unknown or empty group, a ninth target of `make help`.

BEGIN {
    groups = split("read test faults measure maintain install", group, " ")
    title["read"] = "Read"
    title["test"] = "Test"
    title["faults"] = "Test the tests"
    title["measure"] = "Measure"
    title["maintain"] = "Maintain"
    title["install"] = "Install"
}

function complain(text) {
    print "help: " text
    bad = 1
}

# One target and the text behind it.
function listed(target, text,    word) {
    word = "short"
    if (text ~ /^@/) {
        word = text
        sub(/ .*/, "", word)
        sub(/^[^ ]* */, "", text)
        word = substr(word, 2)
    } else
        sub(/^ /, "", text)
    if (word != "part" && word != "short" && !(word in title))
        complain("the target " target " is of a group " word ", which help.awk does not know")
    if (word != "part" && text == "")
        complain("the target " target " has no text")
    lines[word] = lines[word] sprintf("  make %-18s %s\n", target, text)
    count[word]++
    known[target] = 1
}

# .PHONY: names, which may go on in further lines
/^\.PHONY:/ { phony = 1; sub(/^\.PHONY:/, "") }
phony {
    line = $0
    more = sub(/\\$/, "", line)
    names = split(line, name, " ")
    for (i = 1; i <= names; i++)
        callable[name[i]] = FILENAME
    phony = more
    next
}
/^[a-z0-9-]+:.*##/ {
    target = $0
    sub(/:.*/, "", target)
    text = $0
    sub(/^.*##/, "", text)
    listed(target, text)
}

END {
    if (show == "help")
        printf "%s", lines["short"]
    if (show == "all")
        for (i = 1; i <= groups; i++)
            printf "%s%s:\n%s", (i > 1 ? "\n" : ""), title[group[i]], lines[group[i]]
    if (show != "check")
        exit 0
    for (target in callable)
        if (!(target in known))
            complain("the target " target " of " callable[target] " has no comment ##")
    for (target in known)
        if (!(target in callable))
            complain("the target " target " is not .PHONY")
    for (i = 1; i <= groups; i++)
        if (!count[group[i]])
            complain("the group " group[i] " is empty")
    if (count["short"] > 8)
        complain("make help lists " count["short"] " targets, 8 at most")
    exit bad
}
