#!/usr/bin/env bash
# Builds helm from its Go module into $HOME/.cache/palimpsest/helm. Idempotent, atomic, locked.
. "$(dirname "${BASH_SOURCE[0]}")/cache-dir.sh"
. "$scripts/go-toolchain.sh"

install_go_program helm "$helm" helm helm.sh/helm/v4/cmd/helm "-s -w -X helm.sh/helm/v4/internal/version.version=$helm"
