#!/usr/bin/env bash
# N3: a build with -ffast-math or -Ofast stops at its start. The self-test is built as Linnet is and must pass (control);
# then with the flags that make NaNs invisible, and must refuse.
#   tests/torture/fast_math.sh [compiler]
set -euo pipefail
cd "$(dirname "$0")/../.."
compiler=${1:-g++}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/main.cpp" <<'CPP'
#include <cstdio>

#include "linnet/error.h"
#include "src/core/self_test.h"
int main() {
  try {
    linnet::self_test();
  } catch (const linnet::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return static_cast<int>(error.exit);
  }
}
CPP

passed=0 failed=0
check() {  # the exit code that is expected, then flags
  local expected=$1 got=0
  shift
  "$compiler" -w -std=c++20 "$@" -Iinclude -I. "$folder/main.cpp" src/core/self_test.cpp src/core/digest.cpp \
    -o "$folder/self_test" -lfmt -lcrypto -lxxhash
  "$folder/self_test" 2>"$folder/said" || got=$?
  if [ "$got" -eq "$expected" ] && { [ "$expected" -eq 0 ] || grep -q 'cannot tell a NaN from a number' "$folder/said"; }; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    echo "$*: expected exit $expected, got $got: $(cat "$folder/said")"
  fi
}
check 0 -O0
check 0 -O3 -fno-math-errno -fno-trapping-math
check 1 -Ofast
check 1 -O3 -ffast-math
check 1 -O2 -ffinite-math-only
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
