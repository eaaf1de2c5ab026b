#!/usr/bin/env bash
#
# Runs each fuzz target for a while. Needs a nightly toolchain, a C++ compiler,
# and `cargo install cargo-fuzz`.
#
#   scripts/fuzz.sh [seconds]     for each target; default: 60
#
# What was found interesting is kept in fuzz/corpus, a failing input in
# fuzz/artifacts; neither is committed.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seconds="${1:-60}"
for target in actions config; do
    echo "--- fuzz target: $target"
    cargo +nightly fuzz run "$target" -- \
        -max_total_time="$seconds" -timeout=30 -rss_limit_mb=4096 -max_len=4096 -print_final_stats=1
done
