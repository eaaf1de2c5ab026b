#!/usr/bin/env bash
#
# Kills tenants under load for a while, and checks what their neighbours
# compute, that every byte comes back, and that the process does not grow:
# tests/soak.rs, optimised.
#
#   scripts/soak.sh            a minute
#   scripts/soak.sh 600        ten
#   scripts/soak.sh 8h         eight hours
#   SOAK_SEED=7 scripts/soak.sh    the choices of an earlier run

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

time="${1:-60}"
if [[ "$time" =~ ^[0-9]+h$ ]]; then
    seconds=$((10#${time%h} * 3600))
elif [[ "$time" =~ ^[0-9]+$ ]]; then
    seconds=$((10#$time))
else
    printf 'error: %s is neither seconds nor hours (8h)\n' "$time" >&2
    exit 1
fi
export SOAK_SECONDS="$seconds"
export SOAK_SEED="${SOAK_SEED:-$((RANDOM << 15 | RANDOM))}"
printf 'SOAK_SEED=%s, %s s\n' "$SOAK_SEED" "$SOAK_SECONDS"
cargo test --release --test soak --no-run
# What is beyond the time asked for is a thread that never ends.
exec timeout "$((seconds + 600))" cargo test --release --test soak -- --nocapture
