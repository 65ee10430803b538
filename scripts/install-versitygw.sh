#!/usr/bin/env bash
# Builds the tests' S3 server into $HOME/.cache/palimpsest/versitygw. Idempotent, atomic, locked.
. "$(dirname "${BASH_SOURCE[0]}")/cache-dir.sh"
. "$scripts/go-toolchain.sh"

exec 9>"$cache/install-versitygw.lock"
flock 9
home=$cache/versitygw-${versitygw#v}
if [ ! -x "$home/versitygw" ]; then
    find_go
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
