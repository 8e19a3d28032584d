#!/bin/sh
# Which clang-format formats this tree. Its versions break lines differently, so everybody uses
# version 14: $CLANG_FORMAT, clang-format or clang-format-14 where one of them is that version, else
# the one in build/clang-format, which comes from PyPI.
#
#   sh tests/clang_format.sh         print its name; without one, say how to get it, and fail
#   sh tests/clang_format.sh --get   put it into build/clang-format, unless one is there
set -eu
cd "$(dirname "$0")/.."

major=14
version=14.0.6 # on PyPI
folder=build/clang-format

find_it() {
    for name in ${CLANG_FORMAT:-} clang-format "clang-format-$major" "$folder/bin/clang-format"; do
        # "Debian clang-format version 14.0.6"
        if "$name" --version 2>/dev/null | grep -q "clang-format version $major\."; then
            echo "$name"
            return 0
        fi
    done
    return 1
}

case "${1:-}" in
'')
    find_it && exit 0
    here=$(clang-format --version 2>/dev/null || echo none)
    echo "clang-format $major is needed, here is $here: \`sh setup.sh\` gets it" >&2
    exit 1
    ;;
--get) ;;
*)
    echo "usage: sh tests/clang_format.sh [--get]" >&2
    exit 2
    ;;
esac

if find_it >/dev/null; then
    exit 0
fi
rm -rf "$folder"
python3 -m venv "$folder"
"$folder/bin/pip" --quiet --disable-pip-version-check install "clang-format==$version"
find_it >/dev/null
