#!/bin/sh
# Show that a sanitizer run can fail: each tests/faults/KIND-*.patch plants one fault in a copy of
# the tree, and the run that its header names must end with an error that says what the header
# expects.
#
#   sh tests/teeth.sh KIND BUILD [MAKE VARIABLE...]
#
# KIND is asan, tsan, valgrind, orders or gpu; BUILD a folder that is built already, so that little
# is recompiled. Lines of a patch's header: "Run: check ...", "Run: threads ..." or "Run: sh ...",
# "Expect: text", and "Flags: ..." for further compiler flags, "Tool: ..." for the tool of
# compute-sanitizer to run under.
set -eu
cd "$(dirname "$0")/.."
kind=$1
build=$2
shift 2
make=${MAKE:-make}
start=${VALGRIND:-}
copy=$build/teeth
log=$build/teeth.log
caught=0
missed=0

# the line KEY of a patch's header
line_of() {
    sed -n "s/^$1: //p" "$2"
}

# plant PATCH [MAKE VARIABLE...]: a copy of the tree with that fault, compiled
plant() {
    patch=$1
    shift
    rm -rf "$copy"
    mkdir -p "$copy/$build"
    cp -Rp Makefile stages apps tests "$copy"
    for part in obj stages nsa threads libnsa.so; do
        cp -Rp "$build/$part" "$copy/$build"
    done
    patch -s -d "$copy" -p1 <"$patch" || return 1
    flags=$(line_of Flags "$patch")
    if [ -n "$flags" ]; then # for the faulty stage alone, whose objects are then made anew
        for variable in STAGE_CFLAGS STAGE_LIBS; do
            # shellcheck disable=SC2016 # for make to expand
            printf '$(BUILD)/stages/01_naive_nsa.so: %s := %s\n' "$variable" "$flags"
        done >>"$copy/stages/01_naive_nsa/stage.mk"
        touch "$copy"/stages/01_naive_nsa/*.c
    fi
    (cd "$copy" && $make BUILD="$build" "$@" "${TARGET:-checkable}")
}

# run PATCH: run what its header says in the copy
run() {
    words=$(line_of Run "$1")
    case $words in
    check*) words="$build/nsa $words" ;;
    sh*) ;;
    *) words="$build/$words" ;;
    esac
    tool=$(line_of Tool "$1")
    [ -z "$tool" ] ||
        start="${COMPUTE_SANITIZER:-compute-sanitizer} --error-exitcode 9 --tool $tool"
    # shellcheck disable=SC2086 # words
    (cd "$copy" && BUILD=$build $start $words)
}

for fault in tests/faults/"$kind"-*.patch; do
    if ! plant "$fault" "$@" >"$log" 2>&1; then
        cat "$log"
        echo "FAIL $fault: the faulty tree does not build"
        exit 1
    fi
    expect=$(line_of Expect "$fault")
    code=0
    run "$fault" >"$log" 2>&1 || code=$?
    if [ "$code" -ne 0 ] && grep -qF -e "$expect" "$log"; then
        echo "caught $(basename "$fault" .patch): $expect"
        caught=$((caught + 1))
    else
        tail -n 30 "$log"
        echo "FAIL $fault: exit code $code, expected an error that says \"$expect\""
        missed=$((missed + 1))
    fi
done
rm -rf "$copy"
echo "$kind: $caught planted faults caught, $missed missed"
[ "$missed" -eq 0 ] && [ "$caught" -gt 0 ]
