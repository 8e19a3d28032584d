# shellcheck shell=sh
# shellcheck disable=SC2154,SC2034 # variables of tests/bad_input.sh, which reads this file
# Tensors that are valid files but illegal inputs: shapes, offsets, rows, block lists, gates, unused
# inputs.

for name in k_cmp v_cmp k_slc v_slc k_win v_win gate; do
    fresh one_token
    rm "$work/case/$name.npy"
    refuse_case "no $name.npy" "$name.npy is missing"
    npy $name.npy '<f4' False "(1, 3, 7)" 84
    refuse_case "$name of a wrong shape" "$name has shape [1,3,7], expected [1,"
done

fresh gated_small
rm "$work/case/phi_v_b.npy"
refuse_case "no phi_v_b.npy" "phi_v_b.npy is missing"
npy phi_v_b.npy '<f4' False "(9,)" 36
refuse_case "phi_v_b of a wrong shape" "phi_v_b has shape [9], expected [8]"
fresh one_token
npy phi_k_w1.npy '<f4' False "(8,)" 32
refuse_case "a weight that phi does not have" 'phi "mean" has no such weight'
rm "$work/case/phi_k_w1.npy"
npy active.npy '<i4' False "(1,)" 4
refuse_case "an input of another call" "no input has that name"
fresh one_token
npy querry.npy '<f4' False "(1,)" 4
refuse_case "a file of no input" "querry.npy: no input has that name"
rm "$work/case/querry.npy"
npy expect/outt.npy '<f4' False "(1,)" 4
refuse_case "a file of no result in expect/" "outt.npy: no result has that name"
rm -r "$work/case/expect"
printf 'x' >"$work/case/expect"
refuse_case "expect is a file" "expect: Not a directory"

fresh one_token
npy dout.npy '<f4' False "(1, 2, 5)" 40
refuse_case "dout of a wrong shape" "dout has shape [1,2,5], expected [1,2,4]"
fresh one_token
npy gate.npy '<f8' False "(1, 2, 3)" 48
poke gate.npy 135 '\100' # the first gate: 2.0
refuse_case "a gate of 2" "gate[0,0,0] = 2 is not in [0,1]"
poke gate.npy 134 '\370\177'
refuse_case "a gate that is NaN" "gate[0,0,0] = nan is not in [0,1]"
poke gate.npy 134 '\360\277'
refuse_case "a gate of -1" "gate[0,0,0] = -1 is not in [0,1]"

# cu_seqlens of the vector is 0 15 15 130 250, its data starts at byte 128
while IFS='|' read -r at bytes says; do
    fresh packed
    poke cu_seqlens.npy "$at" "$bytes"
    refuse_case "cu_seqlens byte $at is $bytes" "$says"
done <<'OFFSETS'
128|\001|cu_seqlens[0] = 1, expected 0
131|\200|cu_seqlens[0] = -2147483648, expected 0
132|\020|cu_seqlens[2] = 15 is less than the entry before, 16
140|\373|cu_seqlens[4] = 250 is less than the entry before, 251
144|\371|cu_seqlens ends with 249, expected T = 250
144|\373|cu_seqlens ends with 251, expected T = 250
147|\200|is less than the entry before
OFFSETS

while IFS='|' read -r descr shape bytes says; do
    fresh packed
    npy cu_seqlens.npy "$descr" False "$shape" "$bytes"
    refuse_case "cu_seqlens of $descr $shape" "$says"
done <<'SHAPES'
<i4|(0,)|0|cu_seqlens has 0 entries, expected at least 2
<i4|(1,)|4|cu_seqlens has 1 entries, expected at least 2
<i4|(2,)|8|cu_seqlens ends with 0, expected T = 250
<i4|(2, 2)|16|cu_seqlens has 2 dimensions, expected 1
<f4|(5,)|20|cu_seqlens is float32, expected int32
SHAPES
fresh packed
set_key max_seqs 3
refuse_case "more sequences than max_seqs" "cu_seqlens packs 4 sequences, max_seqs is 3"

# block_idx is [140,2,4]; rows 0..15 see block 0 alone
while IFS='|' read -r at bytes says; do
    fresh forced_index
    poke block_idx.npy "$at" "$bytes"
    refuse_case "block_idx byte $at is $bytes" "$says"
done <<'BLOCKS'
128|\001\000\000\000|block_idx of row 0 holds 1, expected -1 or 0..0
128|\376\377\377\377|block_idx of row 0 holds -2, expected -1 or 0..0
128|\377\377\377\177|block_idx of row 0 holds 2147483647, expected -1 or 0..0
128|\000\000\000\200|block_idx of row 0 holds -2147483648, expected -1 or 0..0
128|\000\000\000\000\000\000\000\000|block_idx of row 0 holds block 0 twice
4592|\010\000\000\000\010\000\000\000|block_idx of row 139 holds block 8 twice
4592|\011\000\000\000|block_idx of row 139 holds 9, expected -1 or 0..8
BLOCKS
fresh forced_index
npy block_idx.npy '<f4' False "(140, 2, 4)" 4480
refuse_case "block_idx of float32" "block_idx is float32, expected int32"
npy block_idx.npy '<i4' False "(140, 2, 3)" 3360
refuse_case "block_idx one place short" "block_idx has shape [140,2,3], expected [140,2,4]"

# rows of zeros: (1,) is row 0 and legal
while IFS='|' read -r descr shape bytes says; do
    fresh one_token
    npy rows.npy "$descr" False "$shape" "$bytes"
    refuse_case "rows of $descr $shape" "$says"
done <<'ROWS'
<i4|(2,)|8|rows[1] = 0 does not come after the row before, 0
<f8|(1,)|8|rows is float64, expected int32
<i4|(1, 1)|4|rows has 2 dimensions, expected 1
ROWS
fresh one_token
npy rows.npy '<i4' False "(1,)" 4
refuse_case "rows with --decode" "--decode computes every row, expected none" --decode 0
poke rows.npy 128 '\001'
refuse_case "a row behind the last" "rows[0] = 1 is not in 0..0"
poke rows.npy 128 '\377\377\377\377'
refuse_case "a row of -1" "rows[0] = -1 is not in 0..0"
fresh packed
set_key max_seq_len 100
refuse_case "a sequence longer than its slot" "tokens, max_seq_len is 100" --decode 200
set_key seq_len 251
refuse_case "fewer tokens than seq_len" "q.npy holds 250 tokens, seq_len in config.json is 251"
