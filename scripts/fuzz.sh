#!/usr/bin/env bash
# Builds the fuzzers and runs each for a while: scripts/fuzz.sh [SECONDS]. What they learn stays in
# build/fuzz/corpus/; an input that fails is left in build/fuzz/failures/ and named.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}

cmake --preset fuzz >/dev/null
cmake --build --preset fuzz --parallel "${JOBS:-$(nproc)}" --target fuzzers

run_one() {
  local program=$1 seconds=$2 name corpus failures
  name=$(basename "$program")
  corpus=build/fuzz/corpus/$name failures=build/fuzz/failures/$name
  mkdir -p "$corpus" "$failures"
  if "$program" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -artifact_prefix="$failures/" \
    -print_final_stats=0 -verbosity=0 "$corpus" >"build/fuzz/$name.log" 2>&1; then
    echo "fuzz: $name: sound after $(ls "$corpus" | wc -l) inputs that mattered"
  else
    tail -n 60 "build/fuzz/$name.log"
    echo "fuzz: $name FAILED; to see it again: $program $(ls -t "$failures"/* 2>/dev/null | head -1)"
    return 1
  fi
}
export -f run_one

mapfile -t programs < <(find build/fuzz/fuzzers -type f -executable 2>/dev/null | sort)
[ ${#programs[@]} -gt 0 ] || { echo "fuzz: there is no fuzzer"; exit 1; }
printf '%s\0' "${programs[@]}" |
  xargs -0 -P "${JOBS:-$(nproc)}" -I{} bash -c 'run_one {} '"$seconds"' || touch {}.failed'
failed=$(find build/fuzz/fuzzers -name '*.failed' -print -delete | wc -l)
echo "fuzz: $((${#programs[@]} - failed)) passed, $failed failed"
[ "$failed" -eq 0 ]
