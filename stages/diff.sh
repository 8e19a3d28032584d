#!/bin/sh
# What changes from one stage to another, file by file in reading order: `make diff A=01 B=02`; or
# from one step of a chain to another: `make diff A=02/attend/3 B=02/attend/4`.
#
#   sh stages/diff.sh [--readme | --counts] A B
#
# A and B are each the beginning of a stage folder's name, or STAGE/CHAIN/NUMBER for the file
# stages/STAGE/steps/CHAIN/NUMBER_*. Every file of the two folders appears once, under a heading;
# attend.cu stands against attend.c, and stage.cuh against stage.h. What only A has is printed
# whole as removed, what only B has as added. stage.mk is among the files, for a stage's flags are
# part of it; README.md comes first, and only with --readme; folders inside (steps) never. The last
# line counts lines kept, removed and added in all; --counts prints these three numbers alone.
set -eu
cd "$(dirname "$0")/.."

# The order in which a stage is read (docs/reading.md). Files that are not named come after these.
order='README.md stage.h tile.h tile.c matmul.c compress.h compress.c visible.h select.h select.c
    attend.h attend.c forward.h forward.c decode.h decode.c decode_attend.c backward.h backward.c
    backward_attend.c backward_inverse.c backward_keys.c backward_compress.c
    stage.c load.h load.c read.h read.c stage.mk'
readme='' counts=0
tab=$(printf '\t')

refuse() {
    echo "diff: $*" >&2
    exit 2
}

# ------------------------------------------------------------------ what A and B name

# find_stage NAME VALUE BEGINNING: sets $found to the stage folder that the beginning names
find_stage() {
    found='' all='' matching='' one='' count=0
    for folder in stages/[0-9][0-9]_*/; do
        folder=${folder%/}
        all="$all ${folder#stages/}"
        case ${folder#stages/} in
        "$3") found=$folder ;;
        "$3"*) matching="$matching $folder" one=$folder count=$((count + 1)) ;;
        esac
    done
    [ -z "$found" ] || return 0
    [ "$count" -gt 0 ] || refuse "$1=$2: no stage's name begins like this; there are$all"
    [ "$count" -eq 1 ] || refuse "$1=$2: several stages' names begin like this, one must:$matching"
    found=$one
}

# find_step NAME VALUE: sets $found to the file of STAGE/CHAIN/NUMBER
find_step() {
    rest=${2#*/}
    find_stage "$1" "$2" "${2%%/*}"
    chain=$found/steps/${rest%%/*} number=${rest#*/} matching='' one='' count=0
    case $rest in
    /* | */ | */*/*) number='' ;;
    */*) ;;
    *) number='' ;;
    esac
    case $number in
    '' | *[!0-9]*) refuse "$1=$2: a step is STAGE/CHAIN/NUMBER, for example 02/attend/3" ;;
    esac
    [ -d "$chain" ] || refuse "$1=$2: no folder $chain"
    for file in "$chain/$number"_*; do
        [ ! -f "$file" ] || { matching="$matching $file" one=$file && count=$((count + 1)); }
    done
    [ "$count" -gt 0 ] || refuse "$1=$2: no file ${chain}/${number}_*"
    [ "$count" -eq 1 ] || refuse "$1=$2: several files have this number, one must:$matching"
    found=$one
}

# find_named NAME VALUE: sets $found to the stage folder or the step's file
find_named() {
    case $2 in
    '') refuse "$1 is empty: name a stage, for example $1=01" ;;
    */*) find_step "$1" "$2" ;;
    *) find_stage "$1" "$2" "$2" ;;
    esac
}

# ------------------------------------------------------------- which file against which

# set_twin NAME: sets $twin to the file's name in C if it is CUDA's, in CUDA if it is C's
set_twin() {
    case $1 in
    *.c) twin=${1}u ;;
    *.cu) twin=${1%u} ;;
    *.h) twin=${1%.h}.cuh ;;
    *.cuh) twin=${1%.cuh}.h ;;
    *) twin=$1 ;;
    esac
}

# set_partner FROM TO NAME: sets $partner to the file of folder TO that stands against FROM/NAME,
# or to nothing. The same name goes before the twin, so that this is the same seen from TO.
set_partner() {
    set_twin "$3"
    partner=''
    if [ -f "$2/$3" ]; then
        partner=$2/$3
    elif [ -f "$2/$twin" ] && [ ! -f "$1/$twin" ]; then
        partner=$2/$twin
    fi
}

# rank NAME A-FILE B-FILE: a line for sort: place in reading order, name in C, name, both files
rank() {
    plain=$1 place=100
    case $1 in
    *.cu | *.cuh)
        set_twin "$1"
        plain=$twin
        ;;
    esac
    for known in $order; do
        [ "$known" != "$plain" ] || break
        place=$((place + 1))
    done
    printf '%s\t%s\t%s\t%s\t%s\n' "$place" "$plain" "$1" "$2" "$3"
}

# shown FILE: is it one to print?
shown() {
    [ -f "$1" ] && { [ "${1##*/}" != README.md ] || [ -n "$readme" ]; }
}

# pairs A B: the two folders' files in reading order, /dev/null where one has none
pairs() {
    for file in "$1"/*; do
        shown "$file" || continue
        set_partner "$1" "$2" "${file##*/}"
        rank "${file##*/}" "$file" "${partner:-/dev/null}"
    done
    for file in "$2"/*; do
        shown "$file" || continue
        set_partner "$2" "$1" "${file##*/}"
        [ -n "$partner" ] || rank "${file##*/}" /dev/null "$file"
    done
}

# ----------------------------------------------------------------------------- printing

# Each pair of lines "A-FILE tab B-FILE": a line "= A-FILE tab B-FILE tab lines of A-FILE", then the
# output of diff, none of whose lines begins with "=". "!" says that diff failed.
differences() {
    while IFS=$tab read -r from to; do
        printf '=%s\t%s\t%s\n' "$from" "$to" "$(grep -c '' "$from" || true)"
        diff -a -u --label "$from" --label "$to" "$from" "$to" || [ $? -eq 1 ] || echo '!'
    done
}

# Each pair under a heading with its counts, which are known only once its lines have been seen.
print() {
    awk -F '\t' -v title="$1" -v counts="$counts" '
    BEGIN { sums = "%d lines kept, %d removed, %d added\n" }
    function flush() {
        if (from == "")
            return
        same = lines - minus
        kept += same; removed += minus; added += plus
        if (counts)
            return
        if (to == "/dev/null")
            printf "=== %s: gone, %d lines removed\n", from, minus
        else if (from == "/dev/null")
            printf "=== %s: new, %d lines added\n", to, plus
        else
            printf "=== %s -> %s: " sums, from, to, same, minus, plus
        printf "%s\n", text
    }
    /^=/ {
        flush()
        from = substr($1, 2); to = $2; lines = $3
        minus = plus = seen = 0; text = ""
        next
    }
    /^!/ { failed = 1; next }
    { text = text $0 "\n" }
    ++seen > 2 && /^-/ { minus++ } # the first two lines name the files
    seen > 2 && /^\+/ { plus++ }
    END {
        flush()
        if (counts)
            printf "%d %d %d\n", kept, removed, added
        else
            printf "%s: " sums, title, kept, removed, added
        exit failed ? 2 : 0
    }'
}

case ${1:-} in
--readme) readme=1 && shift ;;
--counts) counts=1 && shift ;;
esac
[ $# -eq 2 ] || refuse 'usage: sh stages/diff.sh [--readme | --counts] A B'
find_named A "$1"
a=$found
find_named B "$2"
b=$found
code=0
if [ -d "$a" ] && [ -d "$b" ]; then
    pairs "$a" "$b" | LC_ALL=C sort | cut -f 4,5 | differences | print "$a -> $b" || code=$?
elif [ -f "$a" ] && [ -f "$b" ]; then
    printf '%s\t%s\n' "$a" "$b" | differences | print "$a -> $b" || code=$?
else
    refuse "A=$1 B=$2: name two stages (01), or two steps (02/attend/3)"
fi
[ "$code" -ne 141 ] || exit 0 # SIGPIPE: a pager that was left early
exit "$code"
