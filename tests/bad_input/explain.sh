# shellcheck shell=sh
# shellcheck disable=SC2154,SC2034 # variables of tests/bad_input.sh, which reads this file
# nsa run --explain: what cannot be explained, and that what is printed is what an independent
# program computed (tests/vectors). tests/liars.sh has the stages that return something else.

while IFS= read -r value; do
    refuse "--explain \"$value\"" "is not T or T,HEAD" \
        run -s 00 -i "$VECTORS/one_token" --explain="$value"
done <<'VALUES'

x
-1
 1
1.5
0,
0,x
0,0,0
99999999999999999999
VALUES
refuse "--explain without a stage" "--stage NAME is missing" run -e 0
refuse "--explain without an input" "--input DIR is missing" run -s 00 -e 0
refuse "--explain into a folder" "expected no --output" \
    run -s 00 -i "$VECTORS/one_token" -e 0 -o "$work/out"
refuse "--explain of a decode" "expected no --decode" \
    run -s 00 -i "$VECTORS/one_token" -e 0 --decode 0
refuse "a position past the end" "--explain 1: the case has positions 0 to 0" \
    run -s 00 -i "$VECTORS/one_token" -e 1
refuse "a position past int32" "the case has positions 0 to 0" \
    run -s 00 -i "$VECTORS/one_token" -e 4294967296
refuse "a kv head that is not there" "--explain 129,2: the case has kv heads 0 to 1" \
    run -s 00 -i "$VECTORS/mean_small" -e 129,2
refuse "a pack to explain" "cu_seqlens.npy packs" run -s 00 -i "$VECTORS/packed" -e 0
refuse "a stage in float32 to explain" "expected a stage that computes in it, such as 00" \
    run -s 01 -i "$VECTORS/mean_small" -e 0
refuse "a case to explain that is not there" "nowhere/config.json: No such file" \
    run -s 00 -i "$work/nowhere" -e 0

# ------------------------------------------------------------------ what is printed

# The first two numbers of expect/out.npy, float64, from element INDEX on, as they are printed.
# expected_out VECTOR INDEX
expected_out() {
    file=$VECTORS/$1/expect/out.npy
    offset=$(od -An -tu2 -j8 -N2 "$file")
    od -An -v -w8 -tf8 -j$((10 + offset + 8 * $2)) -N16 "$file" |
        awk '{printf "%s%.6g", NR == 1 ? "(" : ", ", $1 + 0}'
}

# The last lines of an explanation are the outputs of the group's heads, one every two lines.
# explain VECTOR T KV_HEAD: every head's output is that of the vector
explain() {
    key() {
        sed -n "s/^ \"$1\": \([0-9]*\),*$/\1/p" "$VECTORS/$vector/config.json"
    }
    vector=$1 what="explain $1 at $2, kv head $3"
    heads=$(key q_heads)
    group=$((heads / $(key kv_heads)))
    if ! nsa run -s 00 -i "$VECTORS/$1" -e "$2,$3" >"$work/stdout" 2>"$work/err"; then
        fail "$what" "$(cat "$work/err")"
        return
    fi
    g=0
    while [ $g -lt $group ]; do
        out=$(expected_out "$1" $((($2 * heads + $3 * group + g) * $(key v_dim))))
        line=$(tail -n $((2 * (group - g) - 1)) "$work/stdout" | head -n 1)
        case $line in
        *"= ${out:-no expectation}"*) ;;
        *)
            fail "$what" "head $g of the group: \"$line\", expected $out"
            return
            ;;
        esac
        g=$((g + 1))
    done
    pass "$what" "$(tail -n 1 "$work/stdout")"
}

# every compressor, forced blocks, ties, few and many blocks, nothing to see
while read -r name t kv_head; do
    explain "$name" "$t" "$kv_head"
done <<'QUERIES'
all_ties 139 0
forced_index 139 1
gated_small 149 0
mean_small 129 1
mean_small 3 0
mlp_small 149 1
no_init_scaled 70 0
no_overlap 75 0
one_token 0 0
paper_ratio 359 0
planted_ties 139 0
shorter_than_block 4 1
QUERIES
