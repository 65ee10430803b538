#!/usr/bin/env bash
# fuzz.sh [SECONDS] [TARGET...]: runs each fuzz target (all by default) for so long; fails at the first finding. Keeps what it has learned in
# fuzz/corpus and fuzz/server/corpus, begins with what is in seeds, and prints per target: seconds, executions, coverage (edges), corpus.
. "$(dirname "${BASH_SOURCE[0]}")/cache-dir.sh"
seconds=${1:-600}
shift || true
cd "$scripts/../fuzz"
rustup toolchain list | grep -q '^nightly' || die "fuzzing needs a nightly toolchain: rustup toolchain install nightly"
command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
# Parsers, and apart from them what needs the server, which takes minutes to build.
packages=(. server)
if [ $# -eq 0 ]; then mapfile -t targets < <(for package in "${packages[@]}"; do cargo +nightly fuzz list --fuzz-dir "$package"; done); else targets=("$@"); fi
[ ${#targets[@]} -gt 0 ] || die "no fuzz targets in fuzz/"

# Longer inputs say nothing new to these, but cost time. Redo and layers have a page or two.
longest() {
    case $1 in
        layer | redo | chain | wal_record | import) echo 20000 ;;
        index_part | tar | wal_stream | manifest) echo 8192 ;;
        *) echo 2048 ;;
    esac
}

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
printf '%-14s %8s %12s %9s %8s\n' target seconds executions coverage corpus
for target in "${targets[@]}"; do
    package=.
    [ -f "targets/$target.rs" ] || package=server
    [ -f "$package/targets/$target.rs" ] || die "there is no fuzz target $target"
    mkdir -p "$package/corpus/$target"
    from=("$package/corpus/$target")
    if [ -d "$package/seeds/$target" ]; then from+=("$package/seeds/$target"); fi
    log=$logs/$target
    cargo +nightly fuzz build --fuzz-dir "$package" "$target" >"$log" 2>&1 || { cat "$log" >&2; die "$target cannot be built"; }
    begun=$SECONDS
    if ! cargo +nightly fuzz run --fuzz-dir "$package" "$target" "${from[@]}" -- \
        -max_total_time="$seconds" -timeout=20 -rss_limit_mb=4096 -print_funcs=0 -max_len="$(longest "$target")" >"$log" 2>&1; then
        tail -60 "$log" >&2
        die "$target has found something"
    fi
    grep -oE '#[0-9]+[[:space:]]+DONE +cov: [0-9]+ ft: [0-9]+ corp: [0-9]+' "$log" | tail -1 |
        awk -v target="$target" -v seconds=$((SECONDS - begun)) \
            '{ printf "%-14s %8d %12d %9d %8d\n", target, seconds, substr($1, 2), $4, $8 }'
done
say "${#targets[@]} targets, nothing found"
