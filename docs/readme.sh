#!/bin/sh
# Rewrite what README.md shows of real runs, between
#
#   <!-- readme:PART -->  and  <!-- /readme:PART -->
#
#   demo     what `nsa demo` prints of the stages and of the planted passage
#   tests    the closing line of `make test-all`, from build/test-all.log
#   ladder   the stages: ideas and lines from their sources, times from notes/runs
#
#   sh docs/readme.sh            rewrite
#   sh docs/readme.sh --check    report what would change; exit status 1 if any. Of a demo's rows
#                                the stages and verdicts are compared, for times differ
set -eu
cd "$(dirname "$0")/.."
. docs/between_markers.sh

nsa=${NSA:-./build/nsa}
bench=${NSA_BENCH:-./build/nsa-bench}
log=${TEST_LOG:-build/test-all.log}

# The rows of the stages, and the planted passage, indented as code.
demo() {
    "$nsa" demo --time "${DEMO_SECONDS:-60}" --output "$work/map" 2>/dev/null |
        awk '/^stage / || /^ +1000 qu/ || /^[0-9][0-9]_.*[ %]/ && NF > 4 { print "    " $0 }
             /^The planted passage/ { print ""; inside = 1 }
             /^The map/ { inside = 0 }
             inside && NF { print "    " $0 }'
}

tests() {
    if [ ! -s "$log" ]; then
        echo "readme: no $log: make test-all | tee $log writes it" >&2
        return 1
    fi
    grep -E '^[0-9]+ passed, [0-9]+ failed, ' "$log" | tail -n 1 | sed 's/^/    /'
}

# lines STAGE: lines of code, neither blank nor comment alone, without its steps
lines() {
    find "stages/$1" -name steps -prune -o \( -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' \) \
        -print | xargs cat | grep -vcE '^[[:space:]]*$|^[[:space:]]*(/\*|\*|//)'
}

idea() {
    sed -n 's/^#define IDEA *"\(.*\)"$/\1/p' stages/"$1"/stage.h stages/"$1"/stage.cuh 2>/dev/null
}

# cells RUN T PROGRAM: "ms | vs stage below | vs dense attention |" of that row
cells() {
    "$bench" --table "notes/runs/$1.json" --what forward | awk -F '|' -v T="$2" -v program="$3" '
        function trim(x) { gsub(/^ +| +$/, "", x); return x }
        function ratio(x) { x = trim(x); sub(/ \(.*/, "", x); return x }
        $0 !~ /^\|/ { next }
        !heads { for (i = 1; i <= NF; i++) column[trim($i)] = i; heads = 1; next }
        trim($column["T"]) == T && trim($column["program"]) == program {
            print trim($column["ms"]) " | " ratio($column["vs stage below"]) " | " \
                ratio($column["vs dense attention"]) " |"
            found = 1
        }
        END { if (!found) { print "readme: no " program " at " T >"/dev/stderr"; exit 1 } }'
}

ladder() {
    echo '| stage | idea | lines | ms | times the stage before | times dense attention |'
    echo '|---|---|---:|---:|---:|---:|'
    for stage in 00_dense 01_naive_nsa 02_blocked; do
        echo "| [$stage](stages/$stage/README.md) | $(idea $stage) | $(lines $stage) | $(
            cells ladder 4096 $stage)"
    done
    echo "| | dense attention by OpenBLAS' sgemm | | $(cells ladder 4096 dense_openblas)"
    for stage in 03_fused_cuda/gpu 04_tensor_cores/gpu_64k_04; do
        run=${stage#*/} stage=${stage%/*}
        echo "| [$stage](stages/$stage/README.md) | $(idea $stage) | $(lines $stage) | $(
            cells "$run" 65536 "$stage")"
    done
    echo "| | PyTorch's FlashAttention-2, bfloat16 | | $(cells gpu_64k_04 65536 torch_flash2)"
}

# A stage's row of the demo without what differs from run to run: its queries, times, deviation.
mask() {
    sed -E 's/^( +[0-9]+_[a-z0-9_]+) .* (oracle|OK)$/\1 \2/
        s/selected by stage [0-9a-z_]+/selected by a stage/'
}

demo >"$work/parts/demo"
tests >"$work/parts/tests"
ladder >"$work/parts/ladder"
refresh readme README.md readme
echo "readme: README.md shows what the demo, the tests and the run files say"
