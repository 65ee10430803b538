#!/usr/bin/env bash
# run.sh [STORY...]: tells stories on a real cluster. Without names all of them, in the order of their folders.
# run.sh guide [--note]: runs the commands of docs/operations.md there instead (guide.sh).
#
# KUBECONFIG names a cluster: it is used as it is; its nodes must be able to get the images E2E_IMAGES/{pageserver,operator,postgres,versitygw}:E2E_TAG.
# Else one is made with kind, and is gone at the end (unless E2E_KEEP is set): with kind's own node image where a registry of images answers,
# else with one built on the spot. What there is to see of a story that failed lies in E2E_EVIDENCE.
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/cache-dir.sh"

root=$(cd "$scripts/.." && pwd)
here=$root/e2e
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache/target}
export E2E_EVIDENCE=${E2E_EVIDENCE:-$CARGO_TARGET_DIR/e2e}
cd "$root"

stories=("$@")
if [ "${1:-}" = guide ]; then
    # Its commands name the images that are published.
    export PUBLISHED=yes
elif [ ${#stories[@]} -eq 0 ]; then
    for folder in "$here"/stories/*/; do
        name=$(basename "$folder")
        stories+=("${name//-/_}")
    done
fi

"$scripts/install-helm.sh"
"$scripts/install-kubernetes.sh" kubectl
# Everything that needs a network beyond the machine's comes before the cluster: it may have none. Built as `make test` builds, so nothing is built
# twice.
cargo build --workspace --bins --tests --locked

beside=()
clean_up() {
    local status=$?
    trap - EXIT
    if [ -n "${made:-}" ]; then
        [ $status -eq 0 ] || "${beside[@]}" "$kind_program" export logs "$E2E_EVIDENCE/kind" --name palimpsest >/dev/null 2>&1 || true
        if [ -n "${E2E_KEEP:-}" ]; then
            say "the cluster stays: ${beside[*]} env KUBECONFIG=$KUBECONFIG kubectl …"
        else
            "${beside[@]}" "$kind_program" delete cluster --name palimpsest || true
            [ "$made" != offline ] || "$here/kind/offline.sh" down || true
            rm -rf "$state"
        fi
    fi
    exit "$status"
}

if [ -z "${KUBECONFIG:-}" ]; then
    "$here/kind/install.sh"
    "$scripts/install-postgres.sh" 18
    "$scripts/install-versitygw.sh"
    kind_program=$cache/kind/kind
    state=$(mktemp -d "${TMPDIR:-/tmp}/palimpsest-e2e-XXXXXX")
    trap clean_up EXIT
    trap 'exit 130' INT TERM
    export KUBECONFIG=$state/kubeconfig
    mkdir -p "$state/audit"
    cp "$here/kind/audit-policy.yaml" "$state/audit/policy.yaml"
    sed "s#@AUDIT@#$state/audit#" "$here/kind/cluster.yaml" >"$state/cluster.yaml"
    export E2E_AUDIT_LOG=$state/audit/audit.log
    node=()
    if [ -n "${E2E_NODE_IMAGE:-}" ]; then
        node=(--image "$E2E_NODE_IMAGE")
        made=online
    elif docker info >/dev/null 2>&1 && curl -s --max-time 10 -o /dev/null https://registry-1.docker.io/v2/; then
        made=online
    else
        say "no Docker with a registry of images here: building a node image on the spot"
        made=offline
        "$here/kind/offline.sh" up
        beside=("$here/kind/offline.sh" run)
        node=(--image "local/node:$kubernetes")
    fi
    "$scripts/images-from-machine.sh" "$state/images" pageserver operator postgres versitygw
    "${beside[@]}" "$kind_program" create cluster --config "$state/cluster.yaml" "${node[@]}" --wait 180s
    for archive in "$state"/images/*.tar; do "${beside[@]}" "$kind_program" load image-archive "$archive" --name palimpsest; done
fi

if [ "${1:-}" = guide ]; then
    shift
    "${beside[@]}" "$here/guide.sh" "$@"
    exit
fi

since=$SECONDS
for story in "${stories[@]}"; do
    "${beside[@]}" cargo test --workspace --locked --offline --test "$story" -- --ignored --nocapture --test-threads=1
done
say "${#stories[@]} stories in $((SECONDS - since)) s"
