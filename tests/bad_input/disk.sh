# shellcheck shell=sh
# shellcheck disable=SC2154,SC2034 # variables of tests/bad_input.sh, which reads this file
# No space left: a limit on the size of a file, a small disk in memory, and /dev/full.

# limited BLOCKS WHAT FRAGMENT ARGUMENT...: under a limit of so many blocks of 512 or 1024 bytes
limited() {
    blocks=$1
    what=$2
    fragment=$3
    shift 3
    # The limit is large enough for messages, but not for the largest array.
    (
        ulimit -f "$blocks"
        nsa "$@"
    ) >"$work/stdout" 2>"$work/err" </dev/null
    judge "$what" "$fragment" $?
}

fresh paper_ratio
limited 8 "results under a file-size limit" "cannot write: File too large" \
    run -s 01 -i "$work/case" -o "$work/out"
limited 8 "decoded results under a file-size limit" "cannot write: File too large" \
    run -s 01 -i "$work/case" -o "$work/out" --decode 3
limited 2 "the demo's picture under a file-size limit" "File too large" \
    demo -t 1 -o "$work/pictures"
if [ -e "$work/pictures/block_map.svg" ]; then
    fail "the demo's picture under a file-size limit" "left a picture"
fi

mkdir "$work/disk"
if [ "$(id -u)" -eq 0 ] && mount -t tmpfs -o size=64k tmpfs "$work/disk" 2>/dev/null; then
    mounted=$work/disk
    refuse "results on a full disk" "No space left on device" \
        run -s 01 -i "$work/case" -o "$work/disk/out"
    [ ! -e "$work/disk/out" ] || fail "results on a full disk" "left an output folder"
    mkdir "$work/disk/there"
    refuse "results in a folder of a full disk" "No space left on device" \
        run -s 01 -i "$work/case" -o "$work/disk/there"
    [ -z "$(ls -A "$work/disk/there")" ] || fail "results in a folder of a full disk" "left files"
    refuse "results on the top of a full disk" "No space left on device" \
        run -s 01 -i "$work/case" -o "$work/disk"
    head -c 64000 /dev/zero >"$work/disk/fill"
    refuse "the demo's picture on a full disk" "No space left on device" \
        demo -t 1 -o "$work/disk/there"
    [ -z "$(ls -A "$work/disk/there")" ] || fail "the demo's picture on a full disk" "left files"
    rm -r "$work/disk/fill" "$work/disk/there"
    mount -o remount,ro "$work/disk"
    refuse "a disk that cannot be written" "Read-only file system" \
        run -s 01 -i "$work/case" -o "$work/disk/out"
    umount "$work/disk"
    mounted=''
else
    skip "a full disk: no tmpfs can be mounted here"
fi

# full WHAT ARGUMENT...: with standard output on /dev/full
full() {
    what=$1
    shift
    nsa "$@" >/dev/full 2>"$work/err" </dev/null
    code=$?
    rm -rf "$work/out" # results are whole when only the closing line could not be written
    judge "$what" "standard output" $code
}
fresh one_token
full "a list on a full standard output" list
full "the properties on a full standard output" check --list
full "a check on a full standard output" check --stage 01 --property vector
full "a run on a full standard output" run -s 01 -i "$work/case" -o "$work/out"
full "a demo on a full standard output" demo -t 1 -o "$work/pictures"
rm -rf "$work/pictures"
