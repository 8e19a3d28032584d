#!/bin/sh
# The CUDA stages under compute-sanitizer: `make test-sanitizer`. Every property of the suite on a
# small case or a few, each trial a process of its own, several in parallel: racecheck makes a
# kernel a hundred times slower.
#
#   sh tests/sanitizer.sh                   the trials below
#   sh tests/sanitizer.sh PROPERTY:CASE...  others; `PROPERTY:CASE` as nsa check takes them
#
# A trial passes if the tool found nothing and the property held. A tool also fails if a property of
# CUDA stages has no trial. The output of each run is kept in build/sanitizer. Environment:
# NSA_REPEATS (2); BUILD, where build/nsa is; JOBS (2); TOOLS; STAGES (all that have .cu files);
# COMPUTE_SANITIZER.
set -u
cd "$(dirname "$0")/.." || exit 2
BUILD=${BUILD:-build} JOBS=${JOBS:-2} COMPUTE_SANITIZER=${COMPUTE_SANITIZER:-compute-sanitizer}
TOOLS=${TOOLS:-memcheck racecheck initcheck synccheck}
NSA_VECTORS=${NSA_VECTORS:-tests/vectors}
work=$BUILD/sanitizer
NSA_REPEATS=${NSA_REPEATS:-2} # not the 20 runs of a GPU
export BUILD COMPUTE_SANITIZER NSA_VECTORS NSA_REPEATS work

# No trial can reach these: central differences are for float64 stages, the number of the host's
# threads is nothing to a device, and the tool's own memory would count as the stage's.
beyond='differences no_malloc threads'

# The longest first. Blocks have 64 keys, so 66 tokens are two blocks; more than 64 give blocks to
# select and to reject; a group of 20 heads is two tiles.
trials() {
    cat <<'END'
repeat:T=20,l=4,d=2,l2=4,n=3,w=5,phi=mlp,hidden=5
nan:T=12,l=4,d=2,l2=4,n=3,w=5,phi=gated
decode:T=66
decode:T=20,phi=mlp,hidden=5
decode:seqs=15+0+9,phi=gated
vector:vector=mean_small
reads:T=24,l=4,d=2,l2=4,n=3,w=5
equal:T=24,l=4,d=2,l2=4,n=3,w=5,phi=mlp,hidden=5
causality:T=24,l=4,d=2,l2=4,n=3,w=5
limits:T=66
packing:seqs=15+0+55
backward:T=66,phi=mlp,hidden=5
backward:T=70,phi=gated
backward:seqs=15+0+55
backward:T=66,Hq=20,Hkv=1,dk=5,dv=3
backward:T=20,Hq=2,Hkv=1,dk=192,dv=128,phi=mlp,hidden=5
forward:T=66,phi=mlp,hidden=5
forward:T=70,phi=gated
forward:seqs=15+0+55
forward:T=66,Hq=20,Hkv=1,dk=5,dv=3
forward:T=20,Hq=2,Hkv=1,dk=192,dv=128,phi=mlp,hidden=5
branches:T=66
forced:T=70,phi=gated
rows:T=66
nan_order:T=66
vector:vector=shorter_than_block
bfloat16:T=20,l=4,d=2,l2=4,n=3,w=5,phi=mlp,hidden=5
device:T=20,l=4,d=2,l2=4,n=3,w=5,phi=mlp,hidden=5
device:seqs=15+0+9,phi=gated
graph:T=9,l=4,d=2,l2=4,n=3,w=5
graph_step:T=12,l=4,d=2,l2=4,n=3,w=5,phi=mlp,hidden=5
bad_device:T=100,phi=gated
bad_input:T=100,phi=gated
bad_config:T=100
END
}

# one "TOOL STAGE PROPERTY:CASE": run it, print a line, and what was wrong. A property of bad
# configs never uses the GPU, which is not an error. Nor is that calls of CUDA fail in bad_device,
# which asks for what is not there.
one() {
    # shellcheck disable=SC2086 # words
    set -- $1
    tool=$1 stage=$2 property=${3%%:*} text=${3#*:} code=0 calls=
    [ "$tool $property" != 'memcheck bad_device' ] || calls='--report-api-errors no'
    log=$(mktemp "$work/$tool.$property.XXXXXX")
    begin=$(date +%s)
    # shellcheck disable=SC2086 # words
    $COMPUTE_SANITIZER --tool "$tool" --error-exitcode 9 --require-cuda-init no $calls \
        "$BUILD/nsa" check \
        --stage "$stage" --property "$property" --case "$text" --verbose >"$log" 2>&1 || code=$?
    seconds=$(($(date +%s) - begin))
    if [ $code -eq 0 ] && grep -qF "pass $stage $property " "$log" &&
        ! grep -q 'SUMMARY: [1-9]' "$log"; then
        echo "ok   $tool $stage $property $text ${seconds} s"
    else
        echo "FAIL $tool $stage $property $text ${seconds} s: exit status $code, see $log"
        grep -v '^=========  *Host Frame\|^=========  *in ' "$log" | head -n 20 | sed 's/^/  /'
    fi
}

if [ "${1:-}" = --one ]; then
    one "$2"
    exit 0
fi

rm -rf "$work" && mkdir -p "$work" || exit 2
if [ $# -gt 0 ]; then printf '%s\n' "$@"; else trials; fi >"$work/trials"
[ -n "${STAGES:-}" ] || STAGES=$(for f in stages/[0-9][0-9]_*/*.cu; do dirname "$f"; done |
    sort -u | sed 's,.*/,,')
"$BUILD/nsa" check --list | awk '{print $1}' >"$work/properties"
[ -s "$work/properties" ] || exit 2

passed=0 all=0 missed=0
for tool in $TOOLS; do
    for stage in $STAGES; do
        lines=$work/$tool.$stage.lines
        sed "s/^/$tool $stage /" "$work/trials" >"$work/todo"
        xargs -P "$JOBS" -I{} sh tests/sanitizer.sh --one {} <"$work/todo" >"$lines"
        grep -v '^ok' "$lines"
        some=$(grep -c '^ok' "$lines") reached='' unreached=''
        while read -r property; do
            if grep -q "^ok   $tool $stage $property " "$lines"; then
                reached="$reached $property"
            elif ! echo " $beyond " | grep -q " $property "; then
                unreached="$unreached $property"
            fi
        done <"$work/properties"
        of=$(wc -l <"$work/todo" | tr -d ' ')
        passed=$((passed + some)) all=$((all + of))
        echo "$tool: $stage: $some of $of trials passed; properties:$reached"
        if [ -n "$unreached" ]; then
            echo "FAIL $tool: $stage: no trial passed of:$unreached"
            missed=$((missed + 1))
        fi
    done
done
echo "$passed passed, $((all - passed + missed)) failed"
[ "$all" -gt 0 ] && [ "$passed" -eq "$all" ] && [ "$missed" -eq 0 ]
