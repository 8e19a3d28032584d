#!/bin/sh
# Rewrite the text between
#
#   <!-- explain:STEP -->  and  <!-- /explain:STEP -->
#
# in docs/specification.md, from what stage 00 prints of the worked example. STEP is a word of a
# step's first line: query, compress, compressed, importance, select, selected, window, gate.
#
#   sh docs/examples/excerpts.sh            rewrite
#   sh docs/examples/excerpts.sh --check    report what would change; exit status 1 if any
set -eu
cd "$(dirname "$0")/../.."
. docs/between_markers.sh

page=docs/specification.md
"${NSA:-./build/nsa}" run --stage 00 --input docs/examples/by_hand --explain 19 >"$work/printed"

# A step goes from its number at the margin, "3 importance: ...", to the next empty line; in the
# page it is indented as code.
awk -v parts="$work/parts/" '
    $0 == "" { step = ""; next }
    /^[0-9] / { step = $2; sub(/:$/, "", step) }
    step != "" { print "    " $0 >(parts step) }' "$work/printed"
refresh explain "$page" examples
echo "examples: $page shows what stage 00 prints"
