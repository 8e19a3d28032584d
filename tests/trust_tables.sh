#!/bin/sh
# The tables of docs/trust.md, generated from the sources: properties, mutants, planted faults and
# unreached lines. Writes Markdown to standard output; `make docs` keeps it in build/docs-src.
# shellcheck disable=SC2016 # backquotes are Markdown's
set -eu
cd "$(dirname "$0")/.."

# the value of a line "Key: value" above a patch's diff
header() {
    sed -n "/^--- /q; s/^$2: //p" "$1"
}

cat <<'END'
# What the tests are made of

Generated from the sources by `make docs`;
[How we know it is right](../../docs/trust.md) says what the tables mean.

## Properties

| property | what must hold |
|---|---|
END
tr '\n' ' ' <tests/harness/suite.c | grep -o '{"[a-z_0-9]*", *"[^"]*"' |
    sed 's/{"\([a-z_0-9]*\)", *"\(.*\)"/| `\1` | \2 |/'

printf '\n## Mutants\n\n'
printf 'Each breaks a copy of a stage, of what stages share or of the harness; '
printf 'what is named has to notice.\n\n'
sh tests/mutants.sh --table

# tests/mutants/matrix.txt, which `make mutant-matrix` writes: mutant, property, cases that catch it
printf '\n### Which property catches how many mutants of a stage\n\n'
printf 'Each mutant is judged by one property, on all its cases; the last column counts those\n'
printf 'that one case alone catches, so that it may not go.\n\n'
printf '| stage | property | mutants | caught by one case alone |\n|---|---|---|---|\n'
awk -F '\t' '{
    key = substr($1, 1, 2) " | `" $2 "`"
    all[key]++
    if ($3 ~ /^1 of /) alone[key]++
} END { for (key in all) printf "| %s | %d | %d |\n", key, all[key], alone[key] }' \
    tests/mutants/matrix.txt | sort

printf '\n## Planted faults\n\n'
printf '| fault | what it does | the run that must fail | and must say |\n|---|---|---|---|\n'
for patch in tests/faults/*.patch; do
    why=$(sed '/^[A-Z][a-z]*: /,$d' "$patch" | tr '\n' ' ')
    printf '| %s | %s| `%s` | %s |\n' "$(basename "$patch" .patch)" "$why" \
        "$(header "$patch" Run)" "$(header "$patch" Expect)"
done

printf '\n## Lines that no test reaches\n\n'
sh tests/coverage.sh --table
