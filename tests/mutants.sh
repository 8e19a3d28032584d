#!/bin/sh
# Test the tests: `make test-mutants` applies each patch of tests/mutants to a copy of the stages,
# rebuilds what it touches, and requires that the property that the patch names fails. A patch that
# does not apply, changes nothing, or is not caught is an error.
#
# A patch with a line "Judged-by: KIND WORD..." breaks shared code or the harness: it is applied to
# a copy of the whole tree, what it touches is recompiled, and one of these must fail:
#   liars NAME...      tests/liars.sh on these lies
#   corners            build/corners
#   bad-input PART...  these parts of tests/bad_input.sh
#   gradients          build/train-gradients
#   train              tests/train/train.sh
#   property           the property of "Property:" on the stage of "Stage:", judged by the copy
#
#   sh tests/mutants.sh            all of them, two at a time
#   sh tests/mutants.sh NAME...    those whose names start so: 01_window_plus_one, or 01
#   PART=2/3 sh tests/mutants.sh   the second of every three
#   sh tests/mutants.sh --table    a Markdown table of them, from the patches' headers
#
# A stage is judged against the unchanged stage 00. A mutant of stage 00 is its own oracle, so only
# the properties that check the oracle can catch it: vectors, limits, differences, causality, and so
# on.
#
# With a header "Case: ..." the property is judged only on that case, to save time.
#
# With MATRIX=FILE a property is judged on all its cases, and FILE lists which of them catch the
# mutant (`make mutant-matrix`). It takes an hour on one core; set LIMIT to 600.
#
# The output of a property is in build/mutants/NAME.log; the copy of a mutant that was not caught is
# kept there too. Environment: BUILD, where build/nsa is; CC, OPT, CFLAGS, LDFLAGS as for make; JOBS
# (2); LIMIT, the seconds that a property may take (90).
set -u
cd "$(dirname "$0")/.." || exit 2
BUILD=${BUILD:-build} JOBS=${JOBS:-2} LIMIT=${LIMIT:-90}
OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} # mutants side by side: waiting threads must sleep
export BUILD JOBS LIMIT OMP_WAIT_POLICY
work=$BUILD/mutants
unset MAKEFLAGS MFLAGS MAKELEVEL

# header PATCH KEY: the value of a line "Key: value" above the diff
header() {
    sed -n "/^--- /q; s/^$2: //p" "$1"
}

# build DIR STAGE: build the stage in a copy of the tree, without debug information, so that two
# shared objects differ exactly if their code does. CUDA stages are built for the simulator even if
# there is a GPU, which may not notice a race or a wrong mask; without unrolling, which takes longer
# to compile than it saves
build() {
    make -s -C "$1" BUILD=build "CFLAGS=${CFLAGS:-} -g0" ${CC:+"CC=$CC"} ${OPT:+"OPT=$OPT"} \
        ${LDFLAGS:+"LDFLAGS=$LDFLAGS"} CUDA=sim SIMT_UNROLL= "build/stages/$2.so" \
        >"$1/build.log" 2>&1
}

# build_whole DIR: build the command, the lying stage, build/corners and the trainer in a copy of
# the whole tree
build_whole() {
    make -s -C "$1" BUILD=build "CFLAGS=${CFLAGS:-}" ${CC:+"CC=$CC"} ${OPT:+"OPT=$OPT"} \
        ${LDFLAGS:+"LDFLAGS=$LDFLAGS"} CUDA=sim STAGES='00_dense 01_naive_nsa 02_blocked' \
        liars bad-stages build/corners build/stages/02_blocked.so build/train-gradients \
        build/nsa-train \
        >"$1/build.log" 2>&1
}

# judge_whole DIR KIND WORD...: run what "Judged-by:" names on a copy; not 0 if it fails
judge_whole() {
    dir=$1 kind=$2
    shift 2
    case $kind in
    liars) BUILD=$dir/build STOP=1 sh tests/liars.sh "$@" ;;
    corners) "$dir/build/corners" ;;
    bad-input)
        NSA=$dir/build/nsa BAD_STAGES=$dir/build/bad_stages PARTS=$* LIMIT=10 STOP=1 \
            sh tests/bad_input.sh
        ;;
    gradients) "$dir/build/train-gradients" ;;
    train) NSA=$(cd "$dir" && pwd)/build/nsa sh tests/train/train.sh ;;
    *)
        echo "nobody judges by $kind"
        return 0
        ;;
    esac
}

# check DIR STAGE PROPERTY...: judge the stages of a copy with the command that `make` built, or
# with the copy's own if it is of the whole tree
check() {
    dir=$1 stage=$2 property=$3
    shift 3
    nsa=$dir/build/nsa
    [ -x "$nsa" ] || nsa=$BUILD/nsa
    NSA_VECTORS=${NSA_VECTORS:-tests/vectors} timeout "$LIMIT" "$nsa" check \
        --stages "$dir/build/stages" --stage "$stage" --property "$property" "$@" 2>&1
}

# trouble WHAT: print the line of a mutant that was not caught, and exit
trouble() {
    printf 'FAIL %-32s %s\n' "$name" "$1"
    exit 0
}

# plant ORIGINAL: a copy with the patch applied
plant() {
    cp -Rp "$1" "$copy" || trouble "cannot be copied"
    patch -p1 -d "$copy" --forward --fuzz=0 --batch --no-backup-if-mismatch -s \
        <"$patch" >"$copy/patch.log" 2>&1 ||
        trouble "does not apply: $(head -n 1 "$copy/patch.log")"
}

# caught WHAT WHERE LOG: print the line of a mutant that was caught; keep the log
caught() {
    printf 'ok   %-32s %-12s %4s s  %s\n' "$name" "$1" "$seconds" "$2"
    mv "$3" "$work/$name.log" && rm -r "$copy"
}

# since NANOSECONDS: the seconds since then
since() {
    awk "BEGIN {printf \"%.1f\", ($(date +%s%N) - $1) / 1e9}"
}

# Judge one mutant.
one() {
    patch=tests/mutants/$1.patch name=$1 copy=$work/$1 original=$work/clean
    stage=$(header "$patch" Stage) property=$(header "$patch" Property)
    case_text=$(header "$patch" Case) judge=$(header "$patch" Judged-by)
    [ -z "$case_text" ] || grep -qF "{\"$case_text\"," tests/harness/cases.c ||
        trouble "no case of tests/harness/cases.c: $case_text"
    if [ -n "$judge" ]; then
        original=$work/whole
        plant "$original"
        build_whole "$copy" || trouble "does not build: $(grep -m 1 error "$copy/build.log")"
    else
        plant "$original"
        diff -r "$original/stages" "$copy/stages" >/dev/null && trouble "changes nothing"
        build "$copy" "$stage" || trouble "does not build: $(grep -m 1 error "$copy/build.log")"
        cmp -s "$original/build/stages/$stage.so" "$copy/build/stages/$stage.so" &&
            trouble "changes nothing: the same shared object"
    fi
    if [ "${judge:-property}" = property ]; then
        by_property
    else
        by_judge
    fi
}

# row CASES JUDGED: the mutant's line of the matrix. A crash ends the program at its first case.
row() {
    catching=$(printf '%s\n' "$1" | grep -c .)
    list=$(printf '%s\n' "$1" | paste -sd ';' | sed 's/;/; /g')
    printf '%s\t%s\t%d of %d\t%s\n' "$name" "${property:-$judge}" "$catching" "$2" "$list" \
        >"$work/$name.row"
}

# Judge all cases of the property, and add those that catch the mutant to the matrix.
by_all_cases() {
    begin=$(date +%s%N)
    check "$copy" "$stage" "$property" --verbose >"$copy/check.log"
    seconds=$(since "$begin")
    cases=$(sed -n -e "s/^FAIL [^ ]* $property \"\(.*\)\"\$/\1/p" \
        -e 's/^[A-Z]*: replay: .* --case "\(.*\)"$/\1/p' "$copy/check.log")
    [ -n "$cases" ] || trouble "$property: SURVIVED, or took longer than $LIMIT s"
    row "$cases" "$(grep -c "^[a-zA-Z]* [^ ]* $property \"\|^[A-Z]*: replay" "$copy/check.log")"
    caught "$property" "$(cut -f 3 "$work/$name.row")" "$copy/check.log"
}

# The property must fail and print a replay line.
by_property() {
    if [ -n "${MATRIX:-}" ]; then
        by_all_cases
        return
    fi
    begin=$(date +%s%N)
    check "$copy" "$stage" "$property" --stop ${case_text:+--case "$case_text"} >"$copy/check.log"
    code=$?
    seconds=$(since "$begin")
    [ $code -eq 124 ] && trouble "$property: not caught within $LIMIT s"
    [ $code -eq 0 ] && trouble "$property: SURVIVED, $seconds s"
    # A failure, a crash and a hang all print a replay line with the case.
    trial="--stage $stage --property $property"
    case_text=$(sed -n "s/.*replay: .* $trial --case \"\(.*\)\"\$/\1/p" "$copy/check.log" |
        head -n 1)
    { [ $code -eq 1 ] && [ -n "$case_text" ]; } ||
        trouble "$property: exit status $code, $(tail -n 1 "$copy/check.log")"
    # The unchanged stage must pass that case, or the property has caught nothing.
    check "$original" "$stage" "$property" --case "$case_text" >"$copy/clean.log" ||
        trouble "$property: the unbroken stage fails too, on $case_text"
    caught "$property" "$case_text" "$copy/check.log"
}

# Another test must fail and say so; it has already passed on the unchanged tree.
by_judge() {
    begin=$(date +%s%N)
    # shellcheck disable=SC2086 # words
    judge_whole "$copy" $judge >"$copy/judge.log" 2>&1
    code=$?
    seconds=$(since "$begin")
    [ $code -eq 0 ] && trouble "$judge: SURVIVED, $seconds s"
    # If the stage without a lie fails, nothing was caught.
    grep -q '^FAIL .*without a lie' "$copy/judge.log" && trouble "$judge: fails what is right"
    { [ $code -eq 1 ] && grep -q '^FAIL' "$copy/judge.log"; } ||
        trouble "$judge: exit status $code, $(tail -n 1 "$copy/judge.log")"
    [ -z "${MATRIX:-}" ] || row "$judge" 1
    caught "${judge%% *}" "$(grep -m 1 '^FAIL' "$copy/judge.log" | cut -c 6-80)" "$copy/judge.log"
}

# The table for the docs; Markdown's special characters are escaped.
table() {
    echo "| mutant | what is broken | the sentence it breaks | caught by |"
    echo "|---|---|---|---|"
    for patch in tests/mutants/*.patch; do
        by=$(header "$patch" Property)
        [ -n "$by" ] || by=$(header "$patch" Judged-by)
        printf "| \`%s\` | %s | %s | \`%s\` |\n" "$(basename "$patch" .patch)" \
            "$(header "$patch" Mutant | escape)" "$(header "$patch" Spec | escape)" "$by"
    done
}

escape() {
    sed 's/&/\&amp;/g; s/</\&lt;/g; s/>/\&gt;/g; s/[[*|]/\\&/g'
}

# Select the patches, and check their headers.
chosen() {
    [ $# -eq 0 ] && set -- ''
    for want in "$@"; do
        found=
        for patch in tests/mutants/"$want"*.patch; do
            [ -f "$patch" ] || continue
            found=1
            keys='Mutant Spec Stage Property'
            case $(header "$patch" Judged-by) in '' | property) ;; *) keys='Mutant Spec' ;; esac
            for key in $keys; do
                [ -n "$(header "$patch" "$key")" ] || echo "mutants: $patch has no $key" >&2
            done
            basename "$patch" .patch
        done
        [ -n "$found" ] || echo "mutants: no mutant \"$want\"" >&2
    done
}

case ${1:-} in
--table)
    table
    exit 0
    ;;
--one)
    one "$2"
    exit 0
    ;;
esac

rm -rf "$work" && mkdir -p "$work/clean/tests" || exit 2
chosen "$@" 2>"$work/wrong" | awk -v part="${PART:-1/1}" 'BEGIN { split(part, of, "/") }
    NR % of[2] == of[1] % of[2]' >"$work/names"
if [ -s "$work/wrong" ]; then
    cat "$work/wrong" >&2
    exit 2
fi
cp -R Makefile stages "$work/clean" && cp -R tests/*.mk tests/simt "$work/clean/tests" || exit 2
sed 's,.*,tests/mutants/&.patch,' "$work/names" | xargs sed -n 's/^Stage: //p' >"$work/stages"
for stage in $(sort -u "$work/stages") 00_dense; do
    build "$work/clean" "$stage" || {
        cat "$work/clean/build.log" >&2
        exit 2
    }
done
# Run the tests of shared code once on the unchanged tree; it is compiled first, so that a copy
# recompiles only what its patch touches.
sed 's,.*,tests/mutants/&.patch,' "$work/names" | xargs sed -n 's/^Judged-by: //p' |
    sort -u >"$work/judges"
if [ -s "$work/judges" ]; then
    mkdir -p "$work/whole/build/obj/stages" "$work/whole/tests" &&
        cp -Rp Makefile stages apps "$work/whole" &&
        cp -Rp tests/*.[ch] tests/*.mk tests/harness tests/fuzz tests/simt tests/train \
            "$work/whole/tests" &&
        cp -Rp "$BUILD/obj/apps" "$BUILD/obj/tests" "$work/whole/build/obj" &&
        cp -Rp "$BUILD/obj/stages/common" "$work/whole/build/obj/stages" || exit 2
    build_whole "$work/whole" || {
        cat "$work/whole/build.log" >&2
        exit 2
    }
    while read -r judge; do
        # shellcheck disable=SC2086 # words
        [ "$judge" = property ] || judge_whole "$work/whole" $judge >"$work/judges.said" 2>&1 || {
            cat "$work/judges.said" >&2
            echo "mutants: $judge fails on the unbroken tree" >&2
            exit 2
        }
    done <"$work/judges"
fi
xargs -P "$JOBS" -I{} sh tests/mutants.sh --one {} <"$work/names"
all=$(wc -l <"$work/names")
passed=$(find "$work" -maxdepth 1 -name '*.log' | wc -l)
[ -z "${MATRIX:-}" ] || sort "$work"/*.row >"$MATRIX"
echo "$passed passed, $((all - passed)) failed"
[ "$passed" -eq "$all" ]
