#!/usr/bin/env bash
# install-versitygw.sh [unconditional]: builds the tests' S3 server into $HOME/.cache/palimpsest/versitygw, or, as versitygw-unconditional, one of
# before it had conditional writes. Idempotent, atomic, locked.
. "$(dirname "${BASH_SOURCE[0]}")/cache-dir.sh"
. "$scripts/go-toolchain.sh"

program=github.com/versity/versitygw/cmd/versitygw
case ${1:-} in
    '') install_go_program versitygw "$versitygw" "the S3 server" "$program" ;;
    unconditional)
        install_go_program versitygw "$versitygw_unconditional" "an S3 server without conditional writes" "$program" '' versitygw-unconditional
        ;;
    *) die "usage: $0 [unconditional]" ;;
esac
