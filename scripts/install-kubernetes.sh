#!/usr/bin/env bash
# install-kubernetes.sh [--version V] [PROGRAM...]: builds parts of Kubernetes from Go modules, without Docker or a registry of images,
# into $HOME/.cache/palimpsest/kubernetes-<version>/. Idempotent, locked; each program appears whole.
#
#   install-kubernetes.sh                    a control plane without nodes: what tests start (testkit::kubernetes)
#   install-kubernetes.sh all                what a cluster is made of as well
#   install-kubernetes.sh --version 1.35.4   another minor beside the default one
#
# Two cores with empty caches: etcd half a minute, kube-apiserver 4 min, all 7 min and 9 GB of Go's caches. With warm caches seconds.
. "$(dirname "${BASH_SOURCE[0]}")/cache-dir.sh"
. "$scripts/go-toolchain.sh"

version=$kubernetes
if [ "${1:-}" = --version ]; then
    [[ ${2:-} =~ ^1\.[0-9]+\.[0-9]+$ ]] || die "usage: $0 [--version 1.MINOR.PATCH] [PROGRAM...|all]"
    version=$2
    shift 2
fi
of_etcd="etcd etcdctl etcdutl"
of_kubernetes="kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubeadm kubectl"
[ $# -gt 0 ] || set -- etcd kube-apiserver kube-controller-manager
# shellcheck disable=SC2086 # lists of words
if [ "$1" = all ]; then set -- $of_etcd $of_kubernetes; fi

umask 022
exec 9>"$cache/install-kubernetes.lock"
flock 9
home=$cache/kubernetes-$version
mkdir -p "$home"
if [ "$version" = "$kubernetes" ]; then
    ln -sfn "kubernetes-$version" "$cache/.kubernetes-$$"
    mv -T "$cache/.kubernetes-$$" "$cache/kubernetes"
fi
export CGO_ENABLED=0 GOWORK=off GOFLAGS="-mod=mod -trimpath -buildvcs=false" GOMEMLIMIT=${GOMEMLIMIT:-6GiB}
work=
clean_up() { [ -z "$work" ] || rm -rf "$work"; }
trap clean_up EXIT

module() { # NAME: an empty Go module to build dependencies of
    clean_up
    work=$(mktemp -d "${TMPDIR:-/tmp}/palimpsest-go-XXXXXX")
    cd "$work"
    "$go" mod init "$1" 2>/dev/null
}
quietly() { "$@" >"$work/log" 2>&1 || die "$*: $(tail -5 "$work/log")"; }
build() { # PROGRAM PACKAGE LINKER-FLAGS DIRECTORY
    local since=$SECONDS
    say "building $1 …"
    quietly "$go" build -ldflags "$3" -o "$4/.$1-$$" "$2"
    mv -T "$4/.$1-$$" "$4/$1"
    say "built $1 in $((SECONDS - since)) s"
}

missing_of() { # DIRECTORY KNOWN WANTED...: which of the known ones are wanted and are not there
    local directory=$1 known=$2 program
    shift 2
    for program in "$@"; do
        [[ " $known " != *" $program "* ]] || [ -x "$directory/$program" ] || printf '%s ' "$program"
    done
}
for program in "$@"; do
    [[ " $of_etcd $of_kubernetes " = *" $program "* ]] || die "no $program here: one of $of_etcd $of_kubernetes, or all"
done

# etcd has versions of its own and is shared; its three programs are modules of one release.
etcd_home=$cache/etcd-${etcd#v}
mkdir -p "$etcd_home"
wanted=$(missing_of "$etcd_home" "$of_etcd" "$@")
if [ -n "$wanted" ]; then
    find_go
    module palimpsest.dev/build/etcd
    for program in $wanted; do
        package=go.etcd.io/etcd/$program/v3
        [ "$program" != etcd ] || package=go.etcd.io/etcd/server/v3
        quietly "$go" get -tool "$package@$etcd"
        build "$program" "$package" "-s -w" "$etcd_home"
    done
fi
for program in $of_etcd; do [ ! -x "$etcd_home/$program" ] || ln -sfn "../etcd-${etcd#v}/$program" "$home/$program"; done

wanted=$(missing_of "$home" "$of_kubernetes" "$@")
if [ -n "$wanted" ]; then
    find_go
    command -v jq >/dev/null || die "jq is missing: install the package jq"
    module palimpsest.dev/build/kubernetes
    say "fetching Kubernetes $version"
    "$go" mod download -json "k8s.io/kubernetes@v$version" >download.json || die "no Kubernetes $version: $(jq -r .Error download.json)"
    "$go" mod edit -json "$(jq -r .GoMod download.json)" >upstream.json
    # Kubernetes requires the modules of its own tree at v0.0.0 and finds them there; for everyone else each is published under a tag.
    jq -r '.Require[] | select(.Version == "v0.0.0") | .Path' upstream.json | sort -u >staging
    while read -r path; do "$go" mod edit -replace "$path=$path@v0.${version#1.}"; done <staging
    jq -r '.Replace[]? | select(.New.Path | startswith("./") | not) | "\(.Old.Path)=\(.New.Path)@\(.New.Version)"' upstream.json >replaced
    while read -r pair; do "$go" mod edit -replace "$pair"; done <replaced
    jq -r '.Godebug[]? | "\(.Key)=\(.Value)"' upstream.json >debug
    while read -r pair; do "$go" mod edit -godebug "$pair"; done <debug
    "$go" mod edit -go "$(jq -r .Go upstream.json)" -require "k8s.io/kubernetes@v$version"
    for program in $wanted; do "$go" mod edit -tool "k8s.io/kubernetes/cmd/$program"; done
    quietly "$go" mod tidy
    # helm and kubectl compare versions, so they have to be there as in a release.
    flags="-s -w"
    for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
        flags+=" -X $package.gitVersion=v$version -X $package.gitMajor=1 -X $package.gitMinor=$(cut -d. -f2 <<<"$version")"
        flags+=" -X $package.gitCommit=$(printf %040d 0) -X $package.gitTreeState=clean -X $package.buildDate=1970-01-01T00:00:00Z"
    done
    for program in $wanted; do build "$program" "k8s.io/kubernetes/cmd/$program" "$flags" "$home"; done
fi
say "Kubernetes $version: $home"
