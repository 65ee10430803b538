#!/usr/bin/env bash
# guide.sh [--note]: runs the commands of docs/operations.md, those in blocks of `sh`, one after the other as a reader would, on the cluster of
# KUBECONFIG, which has nothing of ours. Says how long each took; with --note, writes that behind the commands in the guide.
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/cache-dir.sh"

root=$(cd "$scripts/.." && pwd)
guide=$root/docs/operations.md
PATH=$cache/kubernetes:$cache/helm:$PATH
for program in openssl kubectl helm; do command -v $program >/dev/null || die "$program is missing"; done
times=$(mktemp) place=$(mktemp -d)
trap 'rm -rf "$times" "$place"' EXIT
# What the guide writes it writes into the reader's folder, where the charts are.
ln -s "$root/charts" "$root/manifests" "$place/"
cd "$place"

now() { printf '%s' "${EPOCHREALTIME/./}"; }
since=$(now)
# Line by line: a command of the guide is one line. The notes of an earlier run are comments.
while IFS=: read -r -u 3 line command; do
    began=$(now)
    say "$ ${command%%  #*}"
    # Not in a subshell: what a command sets, the next ones use.
    eval "$command" >&2 || die "line $line of the guide failed"
    took=$(($(now) - began))
    printf '%s %s\n' "$line" "$(((took + 50000) / 100000))" >>"$times"
    say "    $((took / 1000)) ms"
done 3< <(awk '/^```/ { inside = ($0 == "```sh"); next } inside && !/^(#|$)/ { print NR ":" $0 }' "$guide")
say "the whole guide: $((($(now) - since) / 1000000)) s"

if [ "${1:-}" = --note ]; then
    awk '
        NR == FNR { took[$1] = $2; next }
        FNR in took { sub(/  # [0-9.]+ s$/, ""); if (took[FNR] >= 10) $0 = sprintf("%s  # %.1f s", $0, took[FNR] / 10) }
        { print }
    ' "$times" "$guide" >"$times.new"
    cat "$times.new" >"$guide"
    rm "$times.new"
fi
