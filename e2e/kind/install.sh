#!/usr/bin/env bash
# Builds kind from its Go module into $HOME/.cache/palimpsest/kind-<version>/. Idempotent, locked.
#
#   install.sh        kind
#   install.sh all    and what a node image is made of besides Kubernetes: crictl, CoreDNS, the provisioner of volumes, pause
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/cache-dir.sh"
. "$scripts/go-toolchain.sh"

umask 022
exec 9>"$cache/install-kind.lock"
flock 9
home=$cache/kind-${kind#v}
mkdir -p "$home"
export CGO_ENABLED=0 GOWORK=off GOFLAGS="-mod=mod -trimpath -buildvcs=false" GOMEMLIMIT=${GOMEMLIMIT:-6GiB}
work=
trap '[ -z "$work" ] || rm -rf "$work"' EXIT
find_go

module() { # NAME: an empty Go module
    [ -z "$work" ] || rm -rf "$work"
    work=$(mktemp -d "${TMPDIR:-/tmp}/palimpsest-go-XXXXXX")
    cd "$work"
    "$go" mod init "palimpsest.dev/build/$1" 2>/dev/null
}
quietly() { "$@" >"$work/log" 2>&1 || die "$*: $(tail -5 "$work/log")"; }
put() { # PROGRAM PACKAGE
    say "building $1 …"
    quietly "$go" build -ldflags "-s -w" -o "$home/.$1-$$" "$2"
    mv -T "$home/.$1-$$" "$home/$1"
}
tool() { # PROGRAM PACKAGE VERSION
    [ ! -x "$home/$1" ] || return 0
    module "$1"
    quietly "$go" get -tool "$2@$3"
    put "$1" "$2"
}

tool kind sigs.k8s.io/kind "$kind"
if [ ! -d "$home/source" ]; then
    # Base files of node images and the default storage come from kind's own source; nothing of it is kept in this repository.
    module source
    quietly "$go" get "sigs.k8s.io/kind@$kind"
    cp -r --no-preserve=mode "$("$go" list -m -f '{{.Dir}}' sigs.k8s.io/kind)" "$home/.source-$$"
    mv -T "$home/.source-$$" "$home/source"
fi
ln -sfn "kind-${kind#v}" "$cache/.kind-$$"
mv -T "$cache/.kind-$$" "$cache/kind"
[ "${1:-}" = all ] || exit 0

tool crictl sigs.k8s.io/cri-tools/cmd/crictl "$crictl"
tool local-path-provisioner github.com/rancher/local-path-provisioner "$local_path_provisioner"
if [ ! -x "$home/coredns" ]; then
    # With the plugins that kubeadm's Corefile names, and no others: most of CoreDNS are clouds.
    module coredns
    plugins="reload bind health ready prometheus errors log cache loadbalance kubernetes loop forward"
    {
        echo 'package main'
        echo 'import ("github.com/coredns/coredns/core/dnsserver"; "github.com/coredns/coredns/coremain"'
        for plugin in ${plugins/prometheus/metrics}; do echo "_ \"github.com/coredns/coredns/plugin/$plugin\""; done
        echo ')'
        # shellcheck disable=SC2086 # a list of words
        echo "func main() { dnsserver.Directives = []string{$(printf '"%s",' $plugins)}; coremain.Run() }"
    } >main.go
    quietly "$go" get "github.com/coredns/coredns@$coredns"
    quietly "$go" mod tidy
    put coredns .
fi
if [ ! -x "$home/pause" ]; then
    module pause
    cat >main.go <<'GO'
package main

import (
	"os"
	"os/signal"
	"syscall"
)

// The first process of a pod: it waits to be ended, and reaps what is left to it.
func main() {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for received := range signals {
		if received != syscall.SIGCHLD {
			return
		}
		for {
			if pid, _ := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 {
				break
			}
		}
	}
}
GO
    put pause .
fi
say "kind: $home"
