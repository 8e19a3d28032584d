# shellcheck shell=sh
# shellcheck disable=SC2154,SC2034 # variables of tests/bad_input.sh, which reads this file
# config.json: every rule and bound, broken one at a time; and files that are no config.

# key|value|what the message says
while IFS='|' read -r key value says; do
    fresh mlp_small
    set_key "$key" "$value"
    refuse_case "config $key $value" "$says"
done <<'RULES'
seq_len|0|seq_len 0 is not in 1..2147483647
seq_len|-1|seq_len -1 is not in 1..2147483647
seq_len|2147483648|seq_len 2147483648 is not in
seq_len|1e300|seq_len 1.0000000000000001e+300 is not a whole number
q_heads|0|q_heads 0 is not in 1..2147483647
q_heads|-4|q_heads -4 is not in
q_heads|5|q_heads 5 is not a multiple of kv_heads 2
q_heads|258|G 129 is more than 128
kv_heads|0|kv_heads 0 is not in 1..
kv_heads|3|q_heads 4 is not a multiple of kv_heads 3
qk_dim|0|qk_dim 0 is not in 1..256
qk_dim|257|qk_dim 257 is not in 1..256
v_dim|-2|v_dim -2 is not in 1..256
v_dim|257|v_dim 257 is not in 1..256
cmp_block|0|cmp_block 0 is not in 1..256
cmp_block|257|cmp_block 257 is not in 1..256
cmp_block|10|cmp_block 10 is not a multiple of cmp_stride 4
cmp_block|20|cmp_block 20 is more than slc_block 16
cmp_stride|0|cmp_stride 0 is not in 1..256
cmp_stride|12|cmp_stride 12 is more than cmp_block 8
slc_block|0|slc_block 0 is not in 1..256
slc_block|257|slc_block 257 is not in 1..256
slc_block|18|slc_block 18 is not a multiple of cmp_stride 4
slc_count|0|slc_count 0 is not in 1..128
slc_count|129|slc_count 129 is not in 1..128
slc_count|2|slc_count 2 is less than slc_init 1 + slc_local 2
slc_init|-1|slc_init -1 is not in 0..128
slc_init|129|slc_init 129 is not in 0..128
slc_local|0|slc_local 0 is not in 1..128
slc_local|129|slc_local 129 is not in 1..128
window|0|window 0 is not in 1..2147483647
window|2147483648|window 2147483648 is not in
window|1.5|window 1.5 is not a whole number
window|"12"|window "12" is not a number
window|true|window is a boolean, expected a number
window|null|window is null, expected a number
window|[12]|window is an array, expected a number
window|{}|window is an object, expected a number
window|1e999|window inf is not a whole number
phi_hidden|0|phi_hidden 0 is not in 1..
max_seqs|0|max_seqs 0 is not in 1..
max_seqs|2147483648|max_seqs 2147483648 is not in
max_seq_len|0|max_seq_len 0 is not in 1..
scale|0|scale 0 is not in 2^-100..2^100
scale|-0.5|scale -0.5 is not in 2^-100..2^100
scale|1e999|scale inf is not in 2^-100..2^100
scale|1e-46|scale 1e-46 is not in 2^-100..2^100
scale|1e39|scale 1e+39 is not in 2^-100..2^100
phi|"max"|phi "max" is not one of "mean", "gated", "mlp"
phi|1|phi (a number) is not one of "mean", "gated", "mlp"
windw|12|unknown key "windw"
RULES

for key in seq_len q_heads kv_heads qk_dim v_dim; do
    fresh mlp_small
    set_key $key
    refuse_case "config without $key" "$key is required"
done

fresh mlp_small
for key in seq_len max_seqs max_seq_len q_heads kv_heads; do
    set_key $key 2147483647
done
refuse_case "config whose products overflow" "overflow 63-bit offsets"

fresh mlp_small
set_key window '12, "window": 13'
refuse_case "config with a key twice" 'key "window" stands there twice'

# text|what the message says
while IFS='|' read -r text says; do
    fresh mlp_small
    printf '%s' "$text" >"$work/case/config.json"
    refuse_case "config.json is '$text'" "$says"
done <<'TEXTS'
|not JSON: stuck at byte 0 of 0: expected a value, found its end
{|stuck at byte 1 of 1: expected a string in double quotes, found its end
[1]|not a JSON object
7|not a JSON object
[1 2]|stuck at byte 3 of 5: expected ',' or ']', found 2]
[1,]|expected a value, found ]
{"window": 12} x|stuck at byte 15 of 16: expected nothing more, found x
{"window": 12} {}|expected nothing more, found {}
{"window": 12,}|stuck at byte 14 of 15: expected a string in double quotes, found }
{"window": 12 "phi": "mean"}|expected ',' or '}', found "phi": "mean
{"window" 12}|expected ':', found 12}
{window: 12}|expected a string in double quotes, found window: 12}
{'window': 12}|expected a string in double quotes, found 'window': 12
{"window": 0012}|expected a number without leading zeros, found 012}
{"window": -012}|expected a number without leading zeros, found 12}
{"window": 12.}|expected a digit, found }
{"window": .5}|expected a value, found .5}
{"window": +12}|expected a value, found +12}
{"window": -}|expected a digit, found }
{"window": 12e}|expected a digit, found }
{"window": 1.e2}|expected a digit, found e2}
{"window": 0x12}|expected ',' or '}', found x12}
{"window": 12_0}|expected ',' or '}', found _0}
{"window": NaN}|expected a value, found NaN}
{"window": Infinity}|expected a value, found Infinity}
{"window": -Infinity}|expected a digit, found Infinity}
{"window": nul}|expected null, true or false, found }
{"window": True}|expected a value, found True}
{"window": 12 /* tokens */}|expected ',' or '}', found /* tokens */
{"window": 12} // tokens|expected nothing more, found // tokens
{"phi": "mean}|expected a closing quote, found its end
{"wind\u006fw": 12}|is a backslash
TEXTS

# the same with bytes in printf's notation
while IFS='~' read -r text says; do
    fresh mlp_small
    # shellcheck disable=SC2059 # the bytes are a format on purpose
    printf "$text" >"$work/case/config.json"
    refuse_case "config.json is '$text'" "$says"
done <<'BYTES'
\357\273\277{"window": 12}~stuck at byte 0 of 17: expected a value, found \xef\xbb\xbf{"window
{"window":\01312}~expected a value, found \x0b12}
{"window":\302\24012}~expected a value, found
{"phi": "me\nan"}~expected an escape in place of a control character, found \x0aan"}
{"win\377dow": 12}~stuck at byte 5 of 15: expected UTF-8 in a string, found \xffdow": 12}
{"\300\257": 12}~expected UTF-8 in a string, found \xc0\xaf": 12}
{"\355\240\200": 12}~expected UTF-8 in a string, found \xed\xa0\x80": 12}
{"\340\200\257": 12}~expected UTF-8 in a string, found \xe0\x80\xaf": 12}
{"\360\200\200\257": 12}~expected UTF-8 in a string, found \xf0\x80\x80\xaf": 12}
{"\364\220\200\200": 12}~expected UTF-8 in a string, found \xf4\x90\x80\x80": 12}
{"\303": 12}~expected UTF-8 in a string, found \xc3": 12}
{"\302\233m": 12}~unknown key "\xc2\x9bm"
{"\342\200\256m": 12}~unknown key "\xe2\x80\xaem"
{"fen\303\252tre\177": 12}~unknown key "fenêtre\x7f"
{"phi": "\342\202\254"}~phi "€" is not one of "mean"
BYTES

fresh mlp_small
{ for _ in $(seq 65); do printf '['; done; } >"$work/case/config.json"
refuse_case "config.json of 65 brackets" "expected fewer brackets within brackets"

fresh mlp_small
poke config.json 3 '\000'
refuse_case "config.json with a NUL" "is a NUL"
head -c 70000 /dev/zero | tr '\0' ' ' >"$work/case/config.json"
refuse_case "config.json of 70000 bytes" "longer than 65536 bytes"
rm "$work/case/config.json"
refuse_case "no config.json" "config.json: No such file"
mkdir "$work/case/config.json"
refuse_case "config.json is a folder" "config.json: a folder, expected a regular file"
rmdir "$work/case/config.json"
mkfifo "$work/case/config.json"
refuse_case "config.json is a pipe" "config.json: a pipe, expected a regular file"
