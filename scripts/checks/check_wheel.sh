#!/usr/bin/env bash
# Check the wheel and the source archive of the last commit:
#   1. build them twice and compare them byte for byte,
#   2. run the checks of PyPI (twine),
#   3. install the wheel into a fresh environment outside of the repository, and run the demo there.
# If a folder is named, as in `scripts/checks/check_wheel.sh dist`, put the checked wheel and source archive there.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_QUIET=1
# the builds are reproducible only if the archives get a fixed time
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH

python3 -m venv "$work/tools"
"$work/tools/bin/pip" install build twine
for i in 1 2; do
    # from the commit, not from the working tree: files that git does not track must not get in
    git archive HEAD | (mkdir "$work/source$i" && tar -x -C "$work/source$i")
    "$work/tools/bin/python" -m build --outdir "$work/dist$i" "$work/source$i" >"$work/build$i.log"
done
for file in "$work"/dist1/*; do
    cmp "$file" "$work/dist2/$(basename "$file")"
    sha256sum "$file" | sed "s|$work/dist1/||"
done
"$work/tools/bin/twine" check --strict "$work"/dist1/*

# away from the repository, whose src/ Python could import instead of the wheel
python3 -m venv "$work/fresh"
"$work/fresh/bin/pip" install "$work"/dist1/*.whl
(
    cd "$work"
    fresh/bin/alpro demo --output demo --clips 12
    fresh/bin/alpro index demo/test/clips --output again
    fresh/bin/python -c "from alpro_hf.assets import bundled_vocabulary as v; assert v().stat().st_size == 231508"
)
if [ $# -gt 0 ]; then
    mkdir -p "$1"
    cp "$work"/dist1/* "$1"
fi
