# shellcheck shell=sh
# shellcheck disable=SC2154,SC2034 # variables of tests/bad_input.sh, which reads this file
# Paths that are not regular files, wherever a file is read: a pipe would block forever, a device
# may never end. Each must be refused at once.

# A socket without a listener; it needs Python to create one.
make_socket() {
    python3 -c 'import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])' "$1" \
        2>/dev/null
}

mkdir "$work/odd"
mkfifo "$work/odd/pipe"
ln -s /dev/zero "$work/odd/device"
ln -s "$work/odd" "$work/odd/folder"
make_socket "$work/odd/socket" || skip "sockets: no Python to make one"

LIMIT=10
for kind in pipe device socket folder; do
    [ -e "$work/odd/$kind" ] || continue
    odd=$work/odd/$kind
    says="a $kind, expected a regular file"
    for name in config.json q.npy gate.npy expect/out.npy; do
        fresh one_token
        rm "$work/case/$name"
        ln -s "$odd" "$work/case/$name"
        refuse_case "$name is a $kind" "$(basename $name): $says"
    done
    fresh one_token
    rm -rf "$work/vectors" "$work/stages" "$work/share"
    mkdir "$work/vectors" "$work/stages" "$work/share"
    cp -R "$work/case" "$work/vectors/one"
    rm "$work/vectors/one/k_cmp.npy"
    ln -s "$odd" "$work/vectors/one/k_cmp.npy"
    NSA_VECTORS=$work/vectors refuse "a vector's k_cmp.npy is a $kind" "k_cmp.npy: $says" \
        check --stage 01 --case vector=one
    ln -s "$odd" "$work/stages/99_odd.so"
    refuse "--stage is a $kind" "stage 99_odd: $says" \
        run -s "$work/stages/99_odd.so" -i "$work/case" -o "$work/out"
    refuse "--stage of a folder is a $kind" "stage 99_odd: $says" \
        run -s 99 -S "$work/stages" -i "$work/case" -o "$work/out"
    ln -s "$(cd "$(dirname "$NSA")" && pwd)/stages/00_dense.so" "$work/stages"
    NSA_STAGES=$work/stages refuse "a check of a stage that is a $kind" "stage 99_odd: $says" \
        check --stage 99
    if nsa list -S "$work/stages" >"$work/stdout" 2>"$work/err" &&
        tr -d '\n' <"$work/stdout" | tr -s ' ' |
        grep -q "99_odd .*a $kind, expected a regular"; then
        pass "a list with a stage that is a $kind" "with the reason"
    else
        fail "a list with a stage that is a $kind" "$(cat "$work/stdout" "$work/err")"
    fi
    refuse "demo of a $kind" "$kind: $says" demo -t 1 -o "$work/out" "$odd"
    ln -s "$odd" "$work/share/text.txt"
    NSA_SHARE=$work/share refuse "the demo's own text is a $kind" "$says" demo -t 1 -o "$work/out"
    refuse "a run file is a $kind" "$kind: $says" bench --table "$odd"
    [ $kind = folder ] || refuse "the stages' folder is a $kind" "Not a directory" list -S "$odd"
    [ $kind = folder ] || refuse "the input is a $kind" "Not a directory" \
        run -s 01 -i "$odd" -o "$work/out"
    [ $kind = folder ] || refuse "the output is a $kind" "not a folder" \
        run -s 01 -i "$work/case" -o "$odd"
done
LIMIT=
rm -rf "$work/odd" "$work/stages" "$work/vectors" "$work/share"
