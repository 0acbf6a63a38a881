#!/usr/bin/env bash
# Formatting and lint of C++ and Python: scripts/lint.sh [--fix]. With --fix it formats, and stops there.
# LINT_CHANGED=1 gives clang-tidy only the files that differ from the commit before.
set -uo pipefail
cd "$(dirname "$0")/.."
export PATH=$PWD/.venv/bin:$PATH

mapfile -t cpp < <(find src python/bindings \( -name '*.cc' -o -name '*.h' \) | sort)
mapfile -t python < <(ls -d python compat bench examples scripts tests 2>/dev/null)

if [ "${1:-}" = --fix ]; then
  clang-format-16 -i "${cpp[@]}"
  ruff format --quiet "${python[@]}"
  ruff check --fix "${python[@]}"
  exit
fi

passed=0 failed=()
check() {
  local name=$1
  shift
  if "$@"; then
    passed=$((passed + 1))
  else
    failed+=("$name")
  fi
}

tidy() {
  local sources=()
  mapfile -t sources < <(printf '%s\n' "${cpp[@]}" | grep '\.cc$' | grep -v '_fuzz\.cc$')
  if [ -n "${LINT_CHANGED:-}" ]; then
    mapfile -t sources < <(git diff --name-only --diff-filter=d HEAD~ -- '*.cc' | grep -v '_fuzz\.cc$')
    [ ${#sources[@]} -gt 0 ] || return 0
  fi
  cmake --preset tidy -DSKATE_PYTHON=ON -DPython_EXECUTABLE="$PWD/.venv/bin/python" >build/tidy.log ||
    { cat build/tidy.log; return 1; }
  # One process per file, so that one slow file does not hold the others up.
  printf '%s\0' "${sources[@]}" |
    xargs -0 -n 1 -P "$(nproc)" clang-tidy-16 --quiet -p build/tidy 2> >(grep -v 'warnings\? generated\|^Suppressed\|^Use -header' >&2)
}

mkdir -p build
check clang-format clang-format-16 --dry-run --Werror "${cpp[@]}"
check ruff-format ruff format --check --quiet "${python[@]}"
check ruff ruff check --quiet "${python[@]}"
check mypy mypy
check clang-tidy tidy

[ ${#failed[@]} -eq 0 ] || echo "lint: failed: ${failed[*]} (\`make fmt\` mends the formatting)"
echo "lint: $passed passed, ${#failed[@]} failed"
[ ${#failed[@]} -eq 0 ]
