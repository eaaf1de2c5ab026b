#!/usr/bin/env bash
#
# The model checkers on the real code, and the asymmetric fence on this machine.
#
#   scripts/model.sh          a fixed number of executions, as .ci/run model
#   scripts/model.sh 30       about 30 minutes, from a seed of its own
#   MODEL_SEED=7 scripts/model.sh 30
#
# shuttle  src/model/, tasks under a random scheduler, sequentially consistent
# loom     src/model_weak.rs, all executions that the C11 memory model allows
# litmus   src/litmus.rs, `membarrier` on and off, on two processors

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

minutes="${1:-0}"
[[ "$minutes" =~ ^[0-9]+$ ]] || {
    echo "usage: scripts/model.sh [minutes]" >&2
    exit 2
}
target="${CARGO_TARGET_DIR:-target}"
export CARGO_TERM_COLOR=never

# Runs the unit tests whose names begin with $2, built with --cfg $1.
modelled() {
    RUSTFLAGS="--cfg $1" CARGO_TARGET_DIR="$target/$1" \
        cargo test -p tiered_allocator --lib -- "$2" --nocapture --test-threads=1
}

if ((minutes > 0)); then
    # Built and counted first, so that the minutes are spent on checking.
    tests="$(RUSTFLAGS="--cfg tiered_allocator_shuttle" \
        CARGO_TARGET_DIR="$target/tiered_allocator_shuttle" \
        cargo test -p tiered_allocator --lib -- model:: --list | grep -c ': test$')"
    seconds=$((minutes * 60 * 9 / 10 / tests))
    export MODEL_SECONDS=$((seconds > 4 ? seconds : 4))
    export MODEL_SEED="${MODEL_SEED:-$RANDOM$RANDOM}"
    export MODEL_PREEMPTIONS="${MODEL_PREEMPTIONS:-3}"
    export LITMUS_SECONDS=$((minutes * 3))
    echo "seed $MODEL_SEED, $MODEL_SECONDS s for each of $tests tests"
fi
modelled tiered_allocator_shuttle model::
modelled tiered_allocator_loom model_weak::
cargo test -p tiered_allocator --release --lib -- litmus:: --nocapture
