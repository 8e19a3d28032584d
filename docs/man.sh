#!/bin/sh
# Manual pages of `nsa` and its subcommands, made by help2man from what --help prints, so that the
# two cannot differ. `make man` and `make install` call it.
#
#   sh docs/man.sh NSA FOLDER   the pages of the command NSA to FOLDER: nsa.1, nsa-run.1, ...
set -eu
nsa=${1:?usage: sh docs/man.sh NSA FOLDER} folder=${2:?usage: sh docs/man.sh NSA FOLDER}
command -v help2man >/dev/null || {
    echo "man: help2man is missing; sh setup.sh installs it" >&2
    exit 1
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$folder"

# "  run    a folder of ..." lines of nsa --help
"$nsa" --help | sed -n 's/^  \([a-z][a-z]*\)  *\(.*\)/\1 \2/p' >"$work/subcommands"
[ -s "$work/subcommands" ] || {
    echo "man: $nsa --help lists no subcommand" >&2
    exit 1
}

cat >"$work/include" <<'END'
[ENVIRONMENT]
.TP
NSA_STAGES
the folder of the stages' shared objects, if an option does not name one
.TP
OMP_NUM_THREADS
threads of stages that have any
[SEE ALSO]
END
{
    printf '.BR nsa (1)'
    while read -r name _; do
        printf ', .BR nsa-%s (1)' "$name"
    done <"$work/subcommands"
} | sed 's/, /,\n/g' >>"$work/include"

# page NAME COMMAND DESCRIPTION
page() {
    # help2man warns where --help has no copyright line
    help2man --no-info --section=1 --manual="Native Sparse Attention" --include="$work/include" \
        --name="$3" --output="$work/page" "$2" 2>"$work/errors" || {
        cat "$work/errors" >&2
        exit 1
    }
    title=$(printf '%s' "$1" | tr '[:lower:]' '[:upper:]')
    sed "s/^\.TH NSA /.TH $title /; s/^nsa \\\\- /$1 \\\\- /" "$work/page" >"$folder/$1.1"
}

page nsa "$nsa" "Native Sparse Attention, one idea a stage"
while read -r name description; do
    page "nsa-$name" "$nsa $name" "$description"
done <"$work/subcommands"
echo "man: $(($(wc -l <"$work/subcommands") + 1)) pages in $folder"
