#!/usr/bin/env bash
#
# Tests under tools that watch memory: AddressSanitizer (leaks included, on a
# nightly toolchain, with the standard library as it comes) and valgrind's
# memcheck.
#
#   scripts/sanitizers.sh [address] [memcheck]     default: both
#
# ThreadSanitizer is not here. It must see the standard library's locks and
# reference counts, or it takes all that they order for races; that needs the
# standard library's sources (rust-src) and -Zbuild-std. Of this crate's own
# protocol, the fence on one side only is nothing it could know, either:
# `--cfg tiered_allocator_fence` has the fences of the CPU instead.
#
# Nor is `cargo careful`: it builds the standard library with its debug
# assertions, and needs the same sources (rust-src).

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

host="$(rustc -vV | sed -n 's/^host: //p')"
target="${CARGO_TARGET_DIR:-target}"
# A few random programs are enough here: what matters is every path once.
export PROPTEST_CASES="${PROPTEST_CASES:-4}"

run_address() {
    ASAN_OPTIONS="detect_leaks=1:detect_stack_use_after_return=1" \
        RUSTFLAGS="-Zsanitizer=address" CARGO_TARGET_DIR="$target/address" \
        cargo +nightly test --target "$host" \
        --test model --test properties --test ownership --test blocks
}

run_memcheck() {
    local name binary
    for name in ownership scopes; do
        binary="$(cargo test --no-run --test "$name" --message-format=json 2>/dev/null |
            sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)"
        echo "--- memcheck: $name"
        valgrind --quiet --error-exitcode=9 --fair-sched=yes --leak-check=full \
            --errors-for-leak-kinds=definite --show-leak-kinds=definite \
            "$binary" --test-threads=1
    done
}

chosen=("$@")
((${#chosen[@]})) || chosen=(address memcheck)
for tool in "${chosen[@]}"; do
    echo "=== $tool"
    "run_$tool"
done
