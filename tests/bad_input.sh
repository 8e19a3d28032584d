#!/bin/sh
# Bad input for the command line, one fault at a time. Each must end with an exit code in 1..123,
# one line on stderr that starts with "nsa" and says what was expected, and must leave nothing: no
# output folder, no *partial*. Ends with the counts; exit 1 if a check failed.
#
#   sh tests/bad_input.sh            judges build/nsa; NSA=path judges another
#   VERBOSE=1 sh tests/bad_input.sh  shows every message; PARTS='npy disk' runs those alone,
#                                    STOP=1 ends at the first that fails
set -u
cd "$(dirname "$0")/.." || exit 2
NSA=${NSA:-build/nsa}
RUNNER=${RUNNER:-}              # what runs it, if it does not run by itself
BAD_STAGES=${BAD_STAGES:-}      # a folder of stages that are none, made by `make test-bad-input`
VECTORS=tests/vectors
VERBOSE=${VERBOSE:-}
export NSA_VECTORS="${NSA_VECTORS:-tests/vectors}" NSA_SHARE="${NSA_SHARE:-apps/demo}"
passed=0
failed=0
skipped=0
mounted=''

work=$(mktemp -d "${TMPDIR:-/tmp}/nsa_bad.XXXXXX") || exit 2
clean_up() {
    [ -z "$mounted" ] || umount "$mounted" 2>/dev/null
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# ------------------------------------------------------------------------- judging

skip() {
    printf 'SKIP %s\n' "$1"
    skipped=$((skipped + 1))
}

pass() {
    passed=$((passed + 1))
    [ -z "$VERBOSE" ] || printf 'pass %s\n     %s\n' "$1" "$2"
}

# what, why
fail() {
    printf 'FAIL %s: %s\n' "$1" "$2"
    failed=$((failed + 1))
    [ -z "${STOP:-}" ] || exit 1
}

# A command that reads from a pipe without a writer would hang: a timeout (124) is a failure.
nsa() {
    # shellcheck disable=SC2086 # the runner may be several words
    timeout "${LIMIT:-120}" $RUNNER "$NSA" "$@"
}

# judge WHAT FRAGMENT CODE: of the message in $work/err
judge() {
    said=$(cat "$work/err")
    lines=$(wc -l <"$work/err")
    left=$(find "$work" -name '*partial*' | head -n 1)
    if [ "$3" -lt 1 ] || [ "$3" -gt 123 ]; then
        fail "$1" "exit code $3, expected 1..123: $said"
    elif [ "$lines" -ne 1 ]; then
        fail "$1" "$lines lines on stderr, expected 1: $said"
    elif ! printf '%s' "$said" | grep -q '^nsa'; then
        fail "$1" "the message does not start with nsa: $said"
    elif ! printf '%s' "$said" | grep -qF -e "$2"; then
        fail "$1" "the message does not say \"$2\": $said"
    elif [ -n "$left" ]; then
        fail "$1" "left $left behind"
    elif [ -e "$work/out" ]; then
        fail "$1" "left an output folder behind"
    else
        pass "$1" "$said"
    fi
    rm -rf "$work/out"
}

# refuse WHAT FRAGMENT ARGUMENT...: nsa with these arguments
refuse() {
    what=$1
    fragment=$2
    shift 2
    nsa "$@" >"$work/stdout" 2>"$work/err" </dev/null
    judge "$what" "$fragment" $?
}

# refuse_case WHAT FRAGMENT [OPTION...]: `nsa run` of $work/case
refuse_case() {
    what=$1
    fragment=$2
    shift 2
    refuse "$what" "$fragment" run --stage 01 --input "$work/case" --output "$work/out" "$@"
}

# ------------------------------------------------------------------------- breaking

# A fresh copy of a vector. fresh NAME
fresh() {
    rm -rf "$work/case"
    cp -R "$VECTORS/$1" "$work/case"
    chmod -R u+w "$work/case"
}

# Give a key of config.json another value, or add it; without a value, drop it. set_key KEY [VALUE]
set_key() {
    awk -v key=" \"$1\":" -v value="${2-}" '
        NR == 1 { print "{"; if (value != "") { printf "%s %s", key, value; n = 1 } next }
        /^}/ || index($0, key) == 1 { next }
        { sub(/,$/, ""); printf "%s%s", n++ ? ",\n" : "", $0 }
        END { print "\n}" }' "$work/case/config.json" >"$work/config"
    cp "$work/config" "$work/case/config.json"
}

# Write bytes, in printf's notation, at an offset. poke FILE OFFSET BYTES
poke() {
    # shellcheck disable=SC2059 # the bytes are a format on purpose
    printf "$3" | dd of="$work/case/$1" bs=1 seek="$2" conv=notrunc 2>/dev/null
}

# A .npy file of zeros: npy FILE DESCR FORTRAN SHAPE BYTES
npy() {
    {
        printf '\223NUMPY\001\000\166\000'
        printf "%-117s\n" "{'descr': '$2', 'fortran_order': $3, 'shape': $4, }"
        head -c "$5" /dev/zero
    } >"$work/case/$1"
}

# A .npy file with any header: header FILE TEXT
header() {
    {
        printf '\223NUMPY\001\000\166\000'
        printf '%-117s\n' "$2"
        head -c 32 /dev/zero
    } >"$work/case/$1"
}

# The parts, each a list of faults; they use the functions above.
for part in ${PARTS:-config npy tensors folders disk commands explain limits pipes together}; do
    # shellcheck source=/dev/null # one of tests/bad_input/*.sh
    . "tests/bad_input/$part.sh"
done

printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
[ "$failed" -eq 0 ]
