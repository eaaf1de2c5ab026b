#!/usr/bin/env bash
#
# Other crates' test suites on this heap: each suite is run with `System` and
# with `TieredAllocator` (in the scope of a client with a finite quota) as its
# global allocator, and every test must end the same way.
#
#   scripts/foreign-suites.sh               three small suites
#   scripts/foreign-suites.sh all           all of them
#   scripts/foreign-suites.sh NAME...       these
#   scripts/foreign-suites.sh --list        what there is
#
# The suites are those in the published packages, at fixed versions. A test that
# ended differently is run again by itself, both ways, three times: if it then
# ends the same way each time it is called unsteady and named, otherwise the
# script fails.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root="$PWD"

# Name, version, features, seconds that one run may take.
SUITES=(
    "hashbrown 0.17.1 - 300"
    "indexmap 2.14.2 - 300"
    "smallvec 1.16.6 - 300"
    "serde_json 1.0.154 - 600"
    "pest 2.9.6 - 600"
    "rayon 1.12.0 - 900"
    "slab 0.4.12 - 300"
    "async-executor 1.14.1 - 300"
    "redb 4.6.0 - 1200"
)
# More tests than this that end differently are no accident.
MOST_UNSTEADY=5
QUICK=(hashbrown smallvec async-executor)

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

suite() {
    local entry
    for entry in "${SUITES[@]}"; do
        [[ "${entry%% *}" != "$1" ]] || { printf '%s\n' "$entry"; return 0; }
    done
    die "there is no suite $1: --list names them"
}

case "${1:-}" in
    --list)
        printf '%s\n' "${SUITES[@]}" | cut -d ' ' -f 1,2
        exit 0
        ;;
    "") chosen=("${QUICK[@]}") ;;
    all) mapfile -t chosen < <(printf '%s\n' "${SUITES[@]}" | cut -d ' ' -f 1) ;;
    *) chosen=("$@") ;;
esac
for name in "${chosen[@]}"; do suite "$name" >/dev/null; done

target="$(mkdir -p "${CARGO_TARGET_DIR:-target}" && cd "${CARGO_TARGET_DIR:-target}" && pwd)/foreign"
mkdir -p "$target"
space="$(mktemp -d)"
trap 'rm -rf "$space"' EXIT
export CARGO_TARGET_DIR="$target" CARGO_INCREMENTAL=0 CARGO_PROFILE_DEV_DEBUG=0 CARGO_TERM_COLOR=never
unset RUSTFLAGS RUSTDOCFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_TARGET

# Unpacks package $1 of version $2 into the directory $3.
unpack() {
    local fetch="$space/fetch-$1" path
    mkdir -p "$fetch/src"
    : >"$fetch/src/lib.rs"
    printf '[package]\nname = "fetch"\nedition = "2024"\n[workspace]\n[dependencies]\n%s = "=%s"\n' \
        "$1" "$2" >"$fetch/Cargo.toml"
    path="$(cargo metadata --format-version 1 --manifest-path "$fetch/Cargo.toml" 2>"$fetch/errors" \
        | grep -oE '"manifest_path":"[^"]*/'"$1-$2"'/Cargo\.toml"' | cut -d '"' -f 4)" \
        || die "$1 $2 could not be fetched: $(cat "$fetch/errors")"
    cp -r "$(dirname "$path")" "$3"
    chmod -R u+w "$3"
    # The caller's toolchain, and today's dependencies.
    rm -f "$3"/Cargo.lock "$3"/rust-toolchain "$3"/rust-toolchain.toml
}

# Makes every test binary of the package in $1 use the crate `foreign_heap`.
inject() {
    local file
    printf '\n[workspace]\n\n[dev-dependencies.foreign_heap]\npath = "%s/scripts/foreign_heap"\n' \
        "$root" >>"$1/Cargo.toml"
    printf '\n#[cfg(test)]\nextern crate foreign_heap as _;\n' >>"$1/src/lib.rs"
    for file in "$1"/tests/*.rs "$1"/tests/*/main.rs; do
        [[ ! -e "$file" ]] || printf '\nextern crate foreign_heap as _;\n' >>"$file"
    done
}

# Runs `cargo test` of the package in $1 with heap $2 and features $3; the
# further arguments go to cargo. Writes the output to stdout.
run() {
    local package="$1" heap="$2" features=()
    [[ "$3" == - ]] || features=(--features "$3")
    [[ "$heap" == system ]] || features+=(--features foreign_heap/tiered)
    shift 3
    (cd "$package" && "${limit[@]}" cargo test --lib --tests --no-fail-fast "${features[@]}" "$@" 2>&1)
}

# "binary test outcome" for each test in the output on stdin.
outcomes() {
    sed -nE \
        -e '/^ *Running /{s/^ *Running (unittests )?([^ ]+) .*$/\2/;h;d}' \
        -e '/^test .* \.\.\. (ok|FAILED|ignored)/{s/^test (.*) \.\.\. (ok|FAILED|ignored).*$/\1\t\2/;G;s/^(.*)\t(.*)\n(.*)$/\3\t\1\t\2/p}' \
        | sort
}

counts() {
    printf '%s passed, %s failed, %s ignored' \
        "$(grep -c $'\tok$' "$1" || true)" "$(grep -c $'\tFAILED$' "$1" || true)" \
        "$(grep -c $'\tignored$' "$1" || true)"
}

# Runs test $4 of package $1 (features $2) by itself with heap $3.
alone() {
    run "$1" "$3" "$2" -- --exact "${4%% - *}" | outcomes | cut -f 2- | grep -F "$4" | sort -u
}

steady=true
compare() {
    local name version features seconds
    read -r name version features seconds <<<"$(suite "$1")"
    local package="$space/$name" system="$space/$name.system" tiered="$space/$name.tiered"
    local differing heap allocations binaries peak refusals test code
    limit=(timeout "$seconds")
    unpack "$name" "$version" "$package"
    inject "$package"
    export FOREIGN_EVIDENCE="$space/$name.evidence"
    for heap in system tiered; do
        : >"$FOREIGN_EVIDENCE"
        code=0
        run "$package" "$heap" "$features" >"$space/$name.$heap.output" || code=$?
        ((code != 124)) || die "$name: did not end within $seconds s with $heap"
        outcomes <"$space/$name.$heap.output" >"$space/$name.$heap"
        [[ -s "$space/$name.$heap" ]] || {
            tail -n 60 "$space/$name.$heap.output" >&2
            die "$name: no test ran with $heap"
        }
        ! grep -E 'signal: [0-9]|could not compile|doctest' "$space/$name.$heap.output" >&2 \
            || [[ "$heap" == system ]] || die "$name: a test binary did not end by itself"
    done
    read -r binaries allocations peak refusals < <(awk '
        { n++; a += $1; if ($2 > p) p = $2; r += $3 }
        END { print n + 0, a + 0, int(p / 1048576), r + 0 }' "$FOREIGN_EVIDENCE")
    ((allocations > 0)) || die "$name: nothing shows that the heap was a TieredAllocator"
    printf '%-18s System: %s; TieredAllocator: %s; %s allocations of %s test binaries charged, at most %s MiB at once, %s refused\n' \
        "$name $version" "$(counts "$system")" "$(counts "$tiered")" \
        "$allocations" "$binaries" "$peak" "$refusals"
    mapfile -t differing < <(diff "$system" "$tiered" \
        | sed -nE 's/^[<>] [^\t]*\t([^\t]*)\t.*$/\1/p' | sort -u)
    ((${#differing[@]} <= MOST_UNSTEADY)) || {
        diff "$system" "$tiered" >&2 || true
        die "$name: ${#differing[@]} tests ended differently"
    }
    for test in "${differing[@]}"; do
        for _ in 1 2 3; do
            if ! diff <(alone "$package" "$features" system "$test") \
                <(alone "$package" "$features" tiered "$test"); then
                printf '%s: %s ends differently\n' "$name" "$test" >&2
                grep -F -A 20 -- "---- $test" "$space/$name.tiered.output" >&2 || true
                steady=false
            fi
        done
        printf '%s: unsteady: %s\n' "$name" "$test"
    done
}

for name in "${chosen[@]}"; do
    compare "$name"
done
"$steady" || die "a suite ended differently with TieredAllocator"
printf '%s suites ended the same way with both heaps\n' "${#chosen[@]}"
