#!/usr/bin/env bash
#
# Random programs against the model and the oracle, more of them than `cargo
# test` tries, optimised.
#
#   scripts/properties.sh [programs]     default: 1000 of each kind

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export PROPTEST_CASES="${1:-1000}"
cargo test --release --features jemalloc --test model --test properties
