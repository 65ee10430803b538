#!/usr/bin/env bash
# fuzz.sh [SECONDS] [TARGET...]: runs each fuzz target (all by default) for so long; fails at the first finding.
. "$(dirname "${BASH_SOURCE[0]}")/cache-dir.sh"
seconds=${1:-600}
shift || true
cd "$scripts/../fuzz"
rustup toolchain list | grep -q '^nightly' || die "fuzzing needs a nightly toolchain: rustup toolchain install nightly"
command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
if [ $# -eq 0 ]; then mapfile -t targets < <(cargo +nightly fuzz list); else targets=("$@"); fi
[ ${#targets[@]} -gt 0 ] || die "no fuzz targets in fuzz/"
for target in "${targets[@]}"; do
    say "fuzzing $target for $seconds s"
    cargo +nightly fuzz run "$target" -- -max_total_time="$seconds" -timeout=20 -rss_limit_mb=4096
done
say "${#targets[@]} targets, nothing found"
