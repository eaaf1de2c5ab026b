#!/bin/sh
# Counts the instructions that an allocation takes beyond the inner
# allocator's, and fails if they have become more. Needs valgrind.
set -eu
cd "$(dirname "$0")/.."
cargo build --release --quiet -p tiered_allocator_bench
exec cargo run --release --quiet -p tiered_allocator_bench -- check
