#!/usr/bin/env bash
# Builds helm from its Go module into $HOME/.cache/palimpsest/helm. Idempotent, atomic, locked.
. "$(dirname "${BASH_SOURCE[0]}")/cache-dir.sh"
. "$scripts/go-toolchain.sh"

exec 9>"$cache/install-helm.lock"
flock 9
home=$cache/helm-${helm#v}
if [ ! -x "$home/helm" ]; then
    find_go
    say "building helm $helm (a minute and a half)"
    new=$(mktemp -d "$cache/.helm-XXXXXX")
    trap 'rm -rf "$new"' EXIT
    GOBIN=$new GOFLAGS=-trimpath CGO_ENABLED=0 "$go" install -ldflags "-s -w -X helm.sh/helm/v4/internal/version.version=$helm" \
        "helm.sh/helm/v4/cmd/helm@$helm" >&2
    chmod 755 "$new"
    mv -T "$new" "$home"
    trap - EXIT
fi
ln -sfn "helm-${helm#v}" "$cache/.helm-$$"
mv -T "$cache/.helm-$$" "$cache/helm"
say "helm: $cache/helm/helm"
