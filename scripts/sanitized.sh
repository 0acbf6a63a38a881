#!/usr/bin/env bash
# Python tests on a runtime that is built with a sanitizer: scripts/sanitized.sh PRESET PYTEST_ARGS...
# PRESET (debug or tsan) must have built _skate and skated. The interpreter is the usual one: the sanitizer is
# loaded before it, so that what it does not know of, the interpreter's own code, counts as uninstrumented.
set -euo pipefail
cd "$(dirname "$0")/.."
preset=$1
shift

# The package as it is, but for its native parts.
tree=$PWD/build/$preset/sanitized
rm -rf "$tree"
mkdir -p "$tree"
cp -rs "$PWD/python/skate" "$tree/skate"
rm -rf "$tree"/skate/_skate.*.so "$tree/skate/bin"
mkdir "$tree/skate/bin"
ln -s "$PWD/build/$preset"/python/bindings/_skate.*.so "$tree/skate/"
ln -s "$PWD/build/$preset/bin/skated" "$tree/skate/bin/"

case $preset in
  debug) runtime=libasan.so ;;
  tsan) runtime=libtsan.so ;;
  *) echo "$0: no sanitizer is known for '$preset'" >&2; exit 2 ;;
esac
logs=$tree/reports
mkdir "$logs"
# No leaks: an interpreter leaves much behind on purpose.
export ASAN_OPTIONS=${ASAN_OPTIONS:-}:detect_leaks=0:log_path=$logs/asan
export UBSAN_OPTIONS=${UBSAN_OPTIONS:-}:log_path=$logs/ubsan
export TSAN_OPTIONS=${TSAN_OPTIONS:-}:log_path=$logs/tsan:suppressions=$PWD/tests/tsan.supp
fixed=()
setarch -R true 2>/dev/null && fixed=(setarch -R)
failed=0
LD_PRELOAD=$(realpath "$(g++ -print-file-name=$runtime)") PYTHONPATH=$tree:$PWD/compat/ray \
  "${fixed[@]}" .venv/bin/python -m pytest -p no:cacheprovider "$@" || failed=1
# Also what a daemon or a worker reported, whose end a test may have taken for granted.
for report in "$logs"/*; do
  [ -s "$report" ] || continue
  failed=1
  echo "==== $report"
  head -n 120 "$report"
done
exit $failed
