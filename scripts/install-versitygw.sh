#!/usr/bin/env bash
# Builds the tests' S3 server into $HOME/.cache/palimpsest/versitygw. Idempotent, atomic, locked.
. "$(dirname "${BASH_SOURCE[0]}")/cache-dir.sh"
. "$scripts/go-toolchain.sh"

install_go_program versitygw "$versitygw" "the S3 server" github.com/versity/versitygw/cmd/versitygw
