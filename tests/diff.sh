#!/bin/sh
# `make diff`, the lines that say how similar stages are, and the limits on steps: `make test-diff`.
# Every file of two stages must appear once, and what is printed must be the difference: patch makes
# the second file of the first. It is asked of stages that are made up here, and of all neighbours
# among the real ones. Copies of the tree have a fault planted (tests/faults/diff-*.patch), and on
# these this script must fail.
#
#   sh tests/diff.sh               all of it
#   sh tests/diff.sh --no-faults   without the planted faults; STOP=1 ends at the first that fails
set -u
cd "$(dirname "$0")/.." || exit 2
make=${MAKE:-make}
unset MAKEFLAGS MFLAGS MAKELEVEL
passed=0
failed=0
work=$(mktemp -d "${TMPDIR:-/tmp}/nsa_diff.XXXXXX") || exit 2
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

# expect WHAT GOT WANTED
expect() {
    if [ "$2" = "$3" ]; then
        passed=$((passed + 1))
    else
        printf 'FAIL %s\n     got:    %s\n     wanted: %s\n' "$1" "$2" "$3"
        failed=$((failed + 1))
        [ -z "${STOP:-}" ] || exit 1
    fi
}

# lines FILE...: of all files; a last line without its end is one
lines() {
    awk 'END { print NR }' "$@"
}

# ------------------------------------------------------------------ what is printed is right

# section HEADING OUTPUT: what stands below a heading, up to the next
section() {
    awk -v heading="$1" '/^=== / { on = $0 == heading; next } on' "$2"
}

# rebuild TREE OUTPUT: each heading's first file, patched by what is below, must be its second. A
# file that only one stage has is made of nothing, or becomes nothing.
rebuild() {
    grep '^=== ' "$2" >"$work/headings"
    while IFS= read -r heading; do
        # shellcheck disable=SC2086 # words
        set -- "$1" "$2" ${heading#=== }
        from=${3%:} to=${5%:}
        case $4 in
        new,) from=/dev/null to=${3%:} ;;
        gone,) to=/dev/null ;;
        esac
        section "$heading" "$2" | grep -v '^$' >"$work/section"
        cat "$(full "$1" "$from")" >"$work/rebuilt"
        [ ! -s "$work/section" ] || patch -s -f "$work/rebuilt" "$work/section" >"$work/said" 2>&1
        [ -e "$work/rebuilt" ] || : >"$work/rebuilt" # patch removes what has become empty
        cmp -s "$work/rebuilt" "$(full "$1" "$to")"
        expect "$heading: patch makes the one of the other" $? 0
    done <"$work/headings"
}

# full TREE FILE: its path; /dev/null belongs to no tree
full() {
    case $2 in
    /*) echo "$2" ;;
    *) echo "$1/$2" ;;
    esac
}

# counted OUTPUT FILES-OF-A FILES-OF-B: the last line, against lines counted elsewhere
counted() {
    # shellcheck disable=SC2046 # numbers, of "A -> B: 1 lines kept, 2 removed, 3 added"
    set -- "$1" "$2" "$3" $(tail -n 1 "$1" | sed 's/.*: //; s/[^0-9 -]//g')
    # shellcheck disable=SC2086 # words
    expect "$(tail -n 1 "$1"): kept and removed are A's lines" $(($4 + $5)) "$(lines $2)"
    # shellcheck disable=SC2086 # words
    expect "$(tail -n 1 "$1"): kept and added are B's lines" $(($4 + $6)) "$(lines $3)"
    expect "$(tail -n 1 "$1"): removed and added are the lines printed so" "$5 $6" \
        "$(awk '/^=== / { hunk = 0 } /^@@/ { hunk = 1 } hunk && /^-/ { r++ } hunk && /^\+/ { a++ }
            END { print r + 0, a + 0 }' "$1")"
}

# source_files FOLDER: all files of a stage
source_files() {
    find "$1" -maxdepth 1 -type f ! -name README.md | LC_ALL=C sort
}

# check_stages TREE A B
check_stages() {
    sh "$1/stages/diff.sh" "$2" "$3" >"$work/out"
    expect "diff $2 $3 exits with" $? 0
    for file in $(cd "$1" && source_files "stages/$2" && source_files "stages/$3"); do
        expect "$file in the headings of diff $2 $3, times" \
            "$(grep '^=== ' "$work/out" | tr ' ' '\n' | sed 's/:$//' | grep -cxF "$file")" 1
    done
    rebuild "$1" "$work/out"
    counted "$work/out" "$(source_files "$1/stages/$2")" "$(source_files "$1/stages/$3")"
}

# ---------------------------------------------------------------------- made-up stages

# made FILE LINE...: of the made-up tree
made() {
    mkdir -p "$work/tree/stages/$(dirname "$1")"
    file=$work/tree/stages/$1
    shift
    printf '%s\n' "$@" >"$file"
}

# order_of OPTION...: the files in the headings, without their stages; a pair that differs in name
# with a "="
order_of() {
    sh "$work/tree/stages/diff.sh" "$@" | sed -n 's/: .*//; s,stages/[^/ ]*/,,g; s/^=== //p' |
        sed 's/ -> /=/' | paste -sd ' '
}

made 00_first/README.md one
made 00_first/attend.c same old '--minus'
made 00_first/backward.c same
made 00_first/both.c in C
made 00_first/both.cu in CUDA
made 00_first/lost.c gone
made 00_first/stage.h same
made 00_first/stage.mk flags
made 00_first/zeta.c same
made 01_second/README.md two
made 01_second/attend.cu same new '++plus' '=== no heading'
made 01_second/backward.c same
made 01_second/backward.cu more
made 01_second/both.cu in CUDA
made 01_second/attend.cuh new
made 01_second/compress.c new
printf 'no end of line' >>"$work/tree/stages/01_second/compress.c"
made 01_second/read.c new
made 01_second/stage.cuh same
made 01_second/steps/attend/0_first.c new
made 01_second/table.inc new
: >"$work/tree/stages/01_second/tile.h"
cp stages/diff.sh stages/similar.sh "$work/tree/stages"
check_stages "$work/tree" 00_first 01_second
check_stages "$work/tree" 01_second 00_first
known='stage.h=stage.cuh tile.h compress.c attend.cuh attend.c=attend.cu'
known="$known backward.c=backward.c backward.cu read.c stage.mk"
rest='both.c both.cu=both.cu lost.c table.inc zeta.c'
expect "the order of files" "$(order_of 00_first 01_second)" "$known $rest"
expect "the same with README.md" "$(order_of --readme 00_first 01_second)" \
    "README.md=README.md $known $rest"
expect "--counts" "$(sh "$work/tree/stages/diff.sh" --counts 00 01)" \
    "$(sh "$work/tree/stages/diff.sh" 00 01 | tail -n 1 | tr -cs '0-9\n' ' ' | cut -d ' ' -f 4-6)"

# --------------------------------------------------------------------- wrong arguments

# refuse MESSAGE ARGUMENT...
refuse() {
    wanted=$1
    shift
    sh "$work/tree/stages/diff.sh" "$@" >"$work/out" 2>"$work/err"
    expect "exit code of diff $*" $? 2
    expect "lines of diff $*" "$(lines "$work/out") $(lines "$work/err")" "0 1"
    grep -qF -e "$wanted" "$work/err"
    expect "$(cat "$work/err"): says \"$wanted\"" $? 0
}

made 01_other/steps/attend/1_a.c one
made 01_other/steps/attend/1_b.c one
made 01_other/steps/attend/2_c.c one
made 01_otherwise/stage.h same
made common/check.c one
there='there are 00_first 01_other 01_otherwise 01_second'
refuse "A=07: no stage's name begins like this; $there" 07 00
refuse "B=07: no stage's name begins like this; $there" 00 07
refuse "A=common: no stage's name" common 00
refuse "A=*: no stage's name" '*' 00
refuse "A is empty" '' 00
refuse 'A=01: several' 01 00
refuse 'one must: stages/01_other stages/01_otherwise stages/01_second' 01 00
refuse 'A=0/attend/1: several' 0/attend/1 01_o/attend/1
refuse 'A=01_other/attend: a step is STAGE/CHAIN/NUMBER' 01_other/attend 00
refuse 'A=01_other/attend/x: a step is' 01_other/attend/x 00
refuse 'A=01_other/attend/: a step is' 01_other/attend/ 00
refuse 'A=01_other/attend/2/3: a step is' 01_other/attend/2/3 00
refuse 'A=01_other//2: a step is' 01_other//2 00
refuse 'A=01_other/select/2: no folder stages/01_other/steps/select' 01_other/select/2 00
refuse 'A=01_other/attend/3: no file stages/01_other/steps/attend/3_*' 01_other/attend/3 00
refuse 'A=01_other/attend/1: several files have this number' 01_other/attend/1 00
refuse 'A=00 B=01_other/attend/2: name two stages' 00 01_other/attend/2
refuse 'usage' 00
refuse 'usage' 00 01_second 01_other
made '01_other/steps/attend/4_two words.c' one
expect "a step with a space in its name" \
    "$(sh "$work/tree/stages/diff.sh" --counts 01_other/attend/4 01_other/attend/2)" '1 0 0'
expect "a whole name that begins another" \
    "$(sh "$work/tree/stages/diff.sh" --counts 01_other 01_otherwise)" '0 0 1'

# ------------------------------------------------------- how similar stages are, sizes of steps

similar=$work/similar/stages
mkdir -p "$similar"
stages='00_dense 01_naive_nsa 02_blocked 03_fused_cuda 04_tensor_cores'
for stage in $stages; do
    cp -R "stages/$stage" "$similar"
done
cp stages/*.sh "$similar"
cp -R stages/01_naive_nsa "$similar/99_mine"
echo '/* mine */' >>"$similar/99_mine/attend.c"
# shellcheck disable=SC2086 # words
sh "$similar/similar.sh" $stages 99_mine >"$work/out"
expect "what stands beside what" "$(sed 's/:.*//' "$work/out" | paste -sd ,)" \
    "$(printf '%s\n' '00_dense -> 01_naive_nsa' '01_naive_nsa -> 02_blocked' \
        '02_blocked -> 03_fused_cuda' '03_fused_cuda -> 04_tensor_cores' \
        '01_naive_nsa -> 99_mine' | paste -sd ,)"
expect "a copy with one line more" "$(grep -c '99_mine: 99% of' "$work/out")" 1

# sizes WHAT CODE LINES CHANGES: tests/step_sizes.sh on stage 00_first of the made-up tree
mkdir "$work/tree/tests" && cp tests/step_sizes.sh "$work/tree/tests"
sizes() {
    sh "$work/tree/tests/step_sizes.sh" 00_first "$3" "$4" >"$work/out"
    expect "$1: $(cat "$work/out")" $? "$2"
}

sizes "no chain" 1 10 10
made 00_first/steps/attend/0_a.c same one two
made 00_first/steps/attend/1_b.c same 1 2 3
made 00_first/steps/other/other.c 1 2 3 4 5 6 7 8 9 10
sizes "a step and a move at the limits" 0 4 5
sizes "a step beyond its limit" 1 3 5
sizes "a move beyond its limit" 1 4 4
made 00_first/steps/attend/problem.c 1 2 3 4 5
sizes "a problem at the limit" 0 5 5
sizes "a problem beyond its limit" 1 4 5
made 00_first/steps/attend/3_d.c same 1 2 3
sizes "a missing number" 1 10 10
made 00_first/steps/attend/2_c.c same 1 2 3
sizes "no number missing" 0 10 10
made 00_first/steps/attend/2_d.c same 1 2 3
sizes "two files of one number" 1 10 10
rm "$work/tree/stages/00_first/steps/attend/2_d.c"
made 00_first/steps/4_e.c same
sizes "a step outside of chains" 1 10 10

# ---------------------------------------------------------------- the stages, and their steps

before=''
for stage in stages/[0-9][0-9]_*/; do
    stage=$(basename "$stage")
    [ -z "$before" ] || check_stages . "$before" "$stage"
    before=$stage
done

# each move of each chain
for chain in stages/*/steps/*/; do
    number=1
    stage=${chain#stages/} && stage=${stage%%_*}
    while [ -n "$(find "$chain" -name "${number}_*")" ]; do
        from=$(find "$chain" -name "$((number - 1))_*") to=$(find "$chain" -name "${number}_*")
        name=$stage/$(basename "$chain")
        sh stages/diff.sh "$name/$((number - 1))" "$name/$number" >"$work/out"
        expect "diff of $name/$number exits with" $? 0
        expect "the heading of $name/$number" \
            "$(grep '^=== ' "$work/out" | sed 's/: .*//; s,//,/,g')" \
            "=== $(echo "$from -> $to" | sed 's,//,/,g')"
        rebuild . "$work/out"
        counted "$work/out" "$from" "$to"
        number=$((number + 1))
    done
done

expect "make diff is the script, for stages" "$($make -s diff A=00 B=01 | cksum)" \
    "$(sh stages/diff.sh 00 01 | cksum)"
expect "make diff is the script, for steps" "$($make -s diff A=02/attend/3 B=02/attend/4 | cksum)" \
    "$(sh stages/diff.sh 02/attend/3 02/attend/4 | cksum)"
expect "make diff README=1" "$($make -s diff A=00 B=01 README=1 | grep -c '^=== .*/README.md')" 1
$make -s diff A=77 B=00 >"$work/out" 2>&1
expect "make diff A=77 fails" "$(($? != 0)) $(grep -c 'A=77: no stage' "$work/out")" '1 1'

# ------------------------------------------------------------------ a copy of a stage is a stage

copied=$work/copied
mkdir -p "$copied/tests" && cp -R Makefile stages "$copied" &&
    cp -R tests/*.mk tests/simt tests/harness "$copied/tests" &&
    cp -R stages/02_blocked "$copied/stages/99_mine" || exit 2
$make -s -n -C "$copied" BUILD=out out/stages/99_mine.so out/steps/99_mine >"$work/said" 2>&1
expect "make knows a copy of stage 02 and its steps" "$? $(grep -c warning "$work/said")" '0 0'
sed -e :join -e '/\\$/N; s/\\\n//; t join' "$work/said" >"$work/out"
for object in stage/99_mine/tile.o steps/99_mine; do
    expect "the copy's flags are the stage's: ${object##*/}" \
        "$(grep -c "fno-trapping-math.* -fopenmp .*-o out/.*${object#stage/}" "$work/out")" 1
done

# ---------------------------------------------------------------------------- planted faults

# plant PATCH: this script, on a copy of the tree with a fault, must fail with the line it expects
plant() {
    rm -rf "$work/fault" && mkdir -p "$work/fault/tests"
    cp -R Makefile stages "$work/fault" &&
        cp -R tests/*.mk tests/*.sh tests/simt "$work/fault/tests" &&
        patch -s -p1 -d "$work/fault" <"$1" || exit 2
    run=$(sed -n 's/^Run: //p' "$1")
    # shellcheck disable=SC2086 # words
    (cd "$work/fault" && STOP=1 $run) >"$work/said" 2>&1
    expect "$1: exit code" $? 1
    wanted=$(sed -n 's/^Expect: //p' "$1")
    grep '^FAIL' "$work/said" | grep -qF -e "$wanted"
    expect "$1: fails for \"$wanted\"" $? 0
}

faults=0
if [ "${1:-}" != --no-faults ]; then
    for fault in tests/faults/diff-*.patch; do
        plant "$fault"
        faults=$((faults + 1))
    done
    expect "faults planted" "$((faults > 0))" 1
fi
echo "test-diff: $passed passed, $failed failed, $faults faults planted"
[ "$failed" -eq 0 ]
