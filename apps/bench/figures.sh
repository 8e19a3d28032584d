#!/bin/sh
# Draw run files: docs/figures/bench_RUN_FIGURE.svg for each figure that the run has points for.
#
#   sh apps/bench/figures.sh notes/runs/cpu.json ...
set -eu

nsa=${NSA:-./build/nsa}
out=${OUT:-docs/figures}

if ! command -v gnuplot >/dev/null 2>&1; then
    echo "figures: gnuplot is not installed (package gnuplot-nox)" >&2
    exit 1
fi
if [ $# -eq 0 ]; then
    echo "figures: no run file in notes/runs; make bench writes one" >&2
    exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
for run in "$@"; do
    name=$(basename "$run" .json)
    for pass in forward backward decode; do
        for figure in time speedup share phases; do
            "$nsa" bench --plot-data "$run" --what "$figure/$pass" >"$work/points"
            # a curve needs two points, bars need one program below the heading
            [ "$(grep -c '^[0-9"]' "$work/points" || true)" -gt 2 ] ||
                { [ $figure = phases ] && [ "$(wc -l <"$work/points")" -gt 1 ]; } || continue
            svg=$out/bench_${name}_${pass}_$figure.svg
            gnuplot -e "points='$work/points'; figure='$figure'; pass='$pass'" \
                -e "run='$run'" apps/bench/plot.gp >"$work/svg"
            cat "$work/svg" >"$svg"
            echo "figures: $svg"
        done
    done
done
