# shellcheck shell=sh
# shellcheck disable=SC2154,SC2034 # variables of tests/bad_input.sh, which reads this file
# Paths: an input or output that does not exist, is a file, has no permission, or is the other
# folder.

E=$work/nowhere
refuse "input folder is not there" "nowhere/config.json: No such file" \
    run -s 01 -i "$E" -o "$work/out"
printf 'x' >"$work/file"
refuse "input is a file" "file/config.json: Not a directory" \
    run -s 01 -i "$work/file" -o "$work/out"
mkdir "$work/empty"
refuse "input folder is empty" "config.json: No such file" run -s 01 -i "$work/empty" -o "$work/out"
refuse "input path is empty" "config.json: No such file" run -s 01 -i "" -o "$work/out"
fresh one_token
refuse "output is a file" "file: not a folder" run -s 01 -i "$work/case" -o "$work/file"
refuse "output is the input" "the same folder as --input" \
    run -s 01 -i "$work/case" -o "$work/case/../case"
refuse "output path is empty" "the path is empty" run -s 01 -i "$work/case" -o ""
refuse "output in a folder that is not there" "nowhere: No such file" \
    run -s 01 -i "$work/case" -o "$E/out"
refuse "output in a file" "Not a directory" run -s 01 -i "$work/case" -o "$work/file/out"
long=$(head -c 5000 /dev/zero | tr '\0' a)
refuse "output path of 5000 bytes" "the path is too long" run -s 01 -i "$work/case" -o "$long"
refuse "output name of 300 bytes" "File name too long" \
    run -s 01 -i "$work/case" -o "$work/$(head -c 300 /dev/zero | tr '\0' a)"
refuse "input path of 5000 bytes" "the path is too long" run -s 01 -i "$long" -o "$work/out"
ln -s nowhere "$work/dangling"
refuse "output is a dangling link" "No such file" run -s 01 -i "$work/case" -o "$work/dangling"
refuse "output where not even root can write" "output" run -s 01 -i "$work/case" -o /proc/nsa_out
mkdir "$work/case/q"
refuse "a name with a newline stays one line" "no\x0awhere/config.json: No such file" \
    run -s 01 -i "$work/no
where" -o "$work/out"

# Results of an earlier run are unchanged if the next run is refused.
mkdir "$work/kept"
if nsa run -s 01 -i "$work/case" -o "$work/kept" >/dev/null 2>&1; then
    before=$(cat "$work/kept"/*.npy | cksum)
    fresh one_token
    rm "$work/case/v_win.npy"
    refuse "a bad input over old results" "v_win.npy is missing" \
        run -s 01 -i "$work/case" -o "$work/kept"
    after=$(cat "$work/kept"/*.npy | cksum)
    if [ "$before" = "$after" ]; then
        pass "old results stay whole" "$after"
    else
        fail "old results stay whole" "they changed"
    fi
else
    fail "a good run into a folder that is there" "it was refused"
fi

# A folder with the name of a result cannot be replaced; then nothing is replaced.
fresh one_token
rm "$work/kept/out_win.npy"
mkdir "$work/kept/out_win.npy"
before=$(cksum <"$work/kept/out.npy")
refuse "a folder where a result should be" "out_win.npy: Is a directory" \
    run -s 01 -i "$work/case" -o "$work/kept"
[ "$before" = "$(cksum <"$work/kept/out.npy")" ] || fail "the other results stay" "they changed"

# A user without permission to write. Root may write anywhere, so root becomes nobody.
mkdir -p "$work/locked"
chmod 555 "$work/locked"
chmod 777 "$work"
fresh one_token
chmod -R a+rX "$work/case"
as=''
[ "$(id -u)" -ne 0 ] || as='setpriv --reuid=65534 --regid=65534 --clear-groups'
kept_runner=$RUNNER
RUNNER="$as $RUNNER"
if nsa list >/dev/null 2>&1; then
    refuse "output folder without permission" "Permission denied" \
        run -s 01 -i "$work/case" -o "$work/locked"
    refuse "output in a folder without permission" "Permission denied" \
        run -s 01 -i "$work/case" -o "$work/locked/out"
    refuse "demo into a folder without permission" "cannot write in" demo -t 1 -o "$work/locked"
    chmod 000 "$work/case/k_cmp.npy"
    refuse "input without permission" "k_cmp.npy: Permission denied" \
        run -s 01 -i "$work/case" -o "$work/out"
else
    skip "permissions: cannot run the command as another user here"
fi
RUNNER=$kept_runner
chmod 755 "$work/locked"
