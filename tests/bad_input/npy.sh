# shellcheck shell=sh
# shellcheck disable=SC2154,SC2034 # variables of tests/bad_input.sh, which reads this file
# .npy files that are inconsistent, or of an unsupported kind. q of the vector is [1,2,4] float64 or
# float32: the format is judged before the shape.

Q="(1, 2, 4)"

# size to truncate the file to|expected message
while IFS='|' read -r bytes says; do
    fresh one_token
    head -c "$bytes" "$VECTORS/one_token/q.npy" >"$work/case/q.npy"
    refuse_case "q.npy cut to $bytes bytes" "$says"
done <<'CUTS'
0|not a .npy file
5|not a .npy file
9|not a .npy file
10|the header ends at byte 128, the file at byte 10
100|the header ends at byte 128, the file at byte 100
128|0 bytes of data, expected
140|12 bytes of data, expected
CUTS

fresh one_token
rm "$work/case/q.npy"
refuse_case "no q.npy" "q.npy is missing"
ln -s nowhere "$work/case/q.npy"
refuse_case "q.npy is a dangling link" "q.npy: No such file"
rm "$work/case/q.npy"
mkdir "$work/case/q.npy"
refuse_case "q.npy is a folder" "a folder, expected a regular file"
rmdir "$work/case/q.npy"
mkfifo "$work/case/q.npy"
refuse_case "q.npy is a pipe" "a pipe, expected a regular file"

fresh one_token
printf 'x' >>"$work/case/q.npy"
refuse_case "q.npy with a trailing byte" "bytes of data, expected"

# offset|bytes|expected message
while IFS='|' read -r at bytes says; do
    fresh one_token
    npy q.npy '<f4' False "$Q" 32
    poke q.npy "$at" "$bytes"
    refuse_case "q.npy byte $at is $bytes" "$says"
done <<'POKES'
0|\000|not a .npy file
6|\002|.npy version 2.0, expected 1.0
7|\001|.npy version 1.1, expected 1.0
8|\377|the header ends at byte
8|\010|header byte
9|\377|the header ends at byte
10|[|expected '{'
21|>|type '>f4' is not one of
POKES

# dtype, order, shape, bytes, expected message
while IFS='|' read -r descr order shape bytes says; do
    fresh one_token
    npy q.npy "$descr" "$order" "$shape" "$bytes"
    refuse_case "q.npy of $descr $order $shape" "$says"
done <<'FILES'
>f4|False|(1, 2, 4)|32|type '>f4' is not one of '<f4', '<f8', '<i4'
>f8|False|(1, 2, 4)|64|type '>f8' is not one of
<f2|False|(1, 2, 4)|16|type '<f2' is not one of
<i8|False|(1, 2, 4)|64|type '<i8' is not one of
<i4|False|(1, 2, 4)|32|q is int32, expected float32, float64 or bfloat16
<f4|True|(1, 2, 4)|32|fortran_order is True, expected False
<f4|Maybe|(1, 2, 4)|32|expected True or False
<f4|False|(1, 2, 5)|32|32 bytes of data, expected 40
<f4|False|(1, 2, 3)|32|32 bytes of data, expected 24
<f4|False|(0, 2, 4)|0|holds 0 tokens, seq_len in config.json is 1
<f4|False|(1, 0, 4)|0|q has shape [1,0,4], expected [1,2,4]
<f4|False|(8,)|32|q.npy holds 8 tokens
<f4|False|(1, 8)|32|q has shape [1,8], expected [1,2,4]
<f4|False|(1, 4, 2)|32|q has shape [1,4,2], expected [1,2,4]
<f4|False|(1, 1, 2, 4)|32|more than 3 dimensions
<f4|False|()|4|0 dimensions, expected 1 to 3
<f4|False|(8)|32|for one dimension
<f4|False|[8]|32|expected the shape, a tuple
<f4|False|(-1, 2, 4)|32|expected a dimension
<f4|False|(1, 2, 04)|32|expected a dimension
<f4|False|(1 2, 4)|32|expected ',' or ')'
<f4|False|(9223372036854775808,)|32|a dimension overflows 63 bits
<f4|False|(18446744073709551617, 2, 4)|32|a dimension overflows 63 bits
<f4|False|(4294967296, 4294967296, 4)|32|overflow 63-bit sizes
<f4|False|(18446744073709551617, 2, 4)|32|a dimension overflows 63 bits
<f4|False|(340282366920938463463374607431768211457, 2, 4)|32|a dimension overflows 63 bits
<f4|False|(1, 18446744073709551618, 4)|32|a dimension overflows 63 bits
<f4|False|(2305843009213693953, 2, 4)|32|overflow 63-bit sizes
<f4|False|(4611686018427387912,)|32|overflow 63-bit sizes
<f8|False|(9223372036854775807,)|32|overflow 63-bit sizes
<f4|False|(1000000000000, 2, 4)|32|32 bytes of data, expected 32000000000000
FILES

# a header|expected message
while IFS='~' read -r text says; do
    fresh one_token
    header q.npy "$text"
    refuse_case "q.npy with header $text" "$says"
done <<'HEADERS'
~expected '{', found the header's end
{}~the header has no descr
{'descr': '<f4', 'shape': (1, 2, 4), }~the header has no fortran_order
{'descr': '<f4', 'fortran_order': False, }~the header has no shape
{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1, 2, 4), }~second key 'descr'
{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2, 4), 'x': 1, }~unknown key 'x'
{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (8,), }~descr, a quoted type
{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2, 4), } x~nothing but white space after
{'descr': '<f4' 'fortran_order': False, 'shape': (1, 2, 4), }~expected ',' or '}'
{'descr' '<f4', 'fortran_order': False, 'shape': (1, 2, 4), }~expected ':'
{descr: '<f4', 'fortran_order': False, 'shape': (1, 2, 4), }~expected a quoted key
{'descr': '<f4~the end of a short plain string
HEADERS
