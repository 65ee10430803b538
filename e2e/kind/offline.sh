#!/usr/bin/env bash
# offline.sh up | run COMMAND... | down: Docker and kind where no registry of images answers. Needs root.
#
#   up     builds a node image on the spot if there is none yet (Kubernetes, kind and the rest from Go modules, Docker and the nodes' files from
#          Debian), and starts a Docker daemon of its own
#   run    runs a command beside it: whatever talks to the cluster, tests too
#   down   ends clusters, daemon and network; the image and what was built stay for the next time
#
# Daemon and nodes live in network, mount and process namespaces of their own: no packet can leave the machine, addresses clash with nobody's, and
# ending the first process ends everything. kind itself and its configuration are unchanged; what such a machine needs is in the node image.
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/cache-dir.sh"
. "$scripts/oci-image.sh"

here=$scripts/../e2e/kind
state=$cache/kind-offline
image=local/node:$kubernetes
network=palimpsest-e2e
programs=$cache/kubernetes-$kubernetes
tools=$cache/kind-${kind#v}
docker_state=$state/docker
mkdir -p "$state"/{log,docker,bin}
export PATH="$tools:$programs:/usr/sbin:/usr/bin:/sbin:/bin:$PATH" DOCKER_HOST=unix://$docker_state/docker.sock
in_network() { nsenter --net="/run/netns/$network" "$@"; }

packages() {
    local wanted=(docker.io debootstrap containerd runc containernetworking-plugins conntrack iptables jq busybox-static tini python3) missing=() package
    for package in "${wanted[@]}"; do dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package"); done
    [ ${#missing[@]} -gt 0 ] || return 0
    say "installing ${missing[*]}"
    apt-get update -qq
    # We start the daemons that we want, ourselves.
    local policy=/usr/sbin/policy-rc.d had_policy=
    [ ! -e $policy ] || had_policy=yes
    [ -n "$had_policy" ] || { printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy; }
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    [ -n "$had_policy" ] || rm -f $policy
}

# The files of a node: what kind's own images/base/Dockerfile does, on Debian's containerd, runc and network plugins.
node_files() { # ROOT
    local root=$1 files=$tools/source/images/base/files name
    rm -rf "$root"
    say "a Debian for nodes (a minute or two)"
    debootstrap --variant=minbase --include=systemd,systemd-sysv,containerd,runc,containernetworking-plugins,conntrack,iptables,nftables,iproute2,ethtool,util-linux,mount,kmod,procps,jq,socat,pigz,ca-certificates,curl,openssl,hostname,e2fsprogs \
        bookworm "$root" >"$state/log/debootstrap.log" || die "debootstrap: $(tail -3 "$state/log/debootstrap.log")"
    install -m 755 "$files"/usr/local/bin/* "$root/usr/local/bin/"
    cp -r --no-preserve=mode "$files/kind" "$files/etc" "$root/"
    chmod 755 "$root/kind" "$root/kind/bin" "$root"/kind/bin/*
    find "$root/lib/systemd/system/sysinit.target.wants/" -name systemd-tmpfiles-setup.service -delete
    (cd "$root" && rm -f lib/systemd/system/multi-user.target.wants/* etc/systemd/system/*.wants/* lib/systemd/system/local-fs.target.wants/* \
        lib/systemd/system/sockets.target.wants/*{udev,initctl}* lib/systemd/system/basic.target.wants/*)
    # These would change the settings of the machine itself, and give all nodes one identity.
    rm -f "$root"/usr/lib/sysctl.d/* "$root/etc/sysctl.d/99-sysctl.conf" "$root/etc/machine-id"
    echo ReadKMsg=no >>"$root/etc/systemd/journald.conf"
    ln -sf /usr/lib/systemd/systemd "$root/sbin/init"
    for name in containerd ctr containerd-shim-runc-v2; do ln -sf /usr/bin/$name "$root/usr/local/bin/$name"; done
    mkdir -p "$root"/opt/cni "$root"/etc/kubernetes/{manifests,kubelet.conf.d} "$root/kind/manifests"
    ln -s /usr/lib/cni "$root/opt/cni/bin"
    chroot "$root" systemctl enable kubelet.service containerd.service undo-mount-hacks.service 2>>"$state/log/systemctl.log"
    chroot "$root" systemctl mask systemd-binfmt.service 2>>"$state/log/systemctl.log"
    chroot "$root" ctr oci spec | jq '.hooks.createContainer[.hooks.createContainer|length] |= . + {"path":"/kind/bin/mount-product-files.sh"} | del(.process.rlimits)' \
        >"$root/etc/containerd/cri-base.json"
    install -m 755 "$programs"/{kubelet,kubectl,kubeadm} "$root/usr/bin/"
    install -m 755 "$tools/crictl" "$root/usr/local/bin/"
    printf 'v%s' "$kubernetes" >"$root/kind/version"
    # Where root may not lower oom_score_adj no container would start otherwise, and without this no kubelet on a machine with cgroup v1.
    sed -i 's/restrict_oom_score_adj = false/restrict_oom_score_adj = true/' "$root/etc/containerd/config.toml"
    printf 'apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nfailCgroupV1: false\noomScoreAdj: 0\n' >"$root/etc/kubernetes/kubelet.conf.d/10-here.conf"
    echo 'KUBELET_EXTRA_ARGS=--runtime-cgroups=/system.slice/containerd.service --config-dir=/etc/kubernetes/kubelet.conf.d' >"$root/etc/default/kubelet"
    python3 - "$tools/source/pkg/build/nodeimage/const_storage.go" >"$root/kind/manifests/default-storage.yaml" <<'PY'
import re, sys
source = open(sys.argv[1]).read()
constants = dict(re.findall(r'const (\w+) = "([^"]+)"', source))
manifest = re.search(r'const defaultStorageManifest = `(.*)`\s*$', source, re.S)[1]
print(re.sub(r'` \+ (\w+) \+ `', lambda match: constants[match[1]], manifest))
PY
    cp "$here/pod-routes.yaml" "$root/kind/manifests/default-cni.yaml"
}

# Every image that kubeadm and kind expect on a node, under the name they expect. Their user is root.
node_images() { # ROOT DIRECTORY
    local root=$1 out=$2 trees name storage=$1/kind/manifests/default-storage.yaml
    trees=$(mktemp -d "${TMPDIR:-/tmp}/palimpsest-images-XXXXXX")
    rm -rf "$out" && mkdir -p "$out"
    tree() { # IMAGE PROGRAM...
        local image=$1
        shift
        mkdir -p "$trees/$image"/{usr/local/bin,usr/bin,etc,tmp}
        chmod 1777 "$trees/$image/tmp"
        echo root:x:0:0::/root:/bin/sh >"$trees/$image/etc/passwd"
        cp "$@" "$trees/$image/usr/local/bin/"
    }
    with_box() { # ROOT APPLET...
        local box=$1 applet
        shift
        mkdir -p "$box/bin"
        cp /bin/busybox "$box/bin/"
        for applet in "$@"; do ln -sf busybox "$box/bin/$applet"; done
    }
    with_tables() { # ROOT: iptables and conntrack, in /usr/bin since the images' PATH has no sbin
        local box=$1 name
        mkdir -p "$box"/{usr/bin,usr/lib/x86_64-linux-gnu,run}
        cp /usr/sbin/xtables-nft-multi /usr/sbin/conntrack "$box/usr/bin/"
        cp -r /usr/lib/x86_64-linux-gnu/xtables "$box/usr/lib/x86_64-linux-gnu/"
        for name in ip{,6}tables{,-save,-restore}; do ln -sf xtables-nft-multi "$box/usr/bin/$name"; done
        with_libraries "$box" /usr/sbin/xtables-nft-multi /usr/sbin/conntrack /usr/lib/x86_64-linux-gnu/xtables/*.so
        with_box "$box" sh cat ls mkdir sleep ip mv cp
    }
    for name in kube-apiserver kube-controller-manager kube-scheduler kube-proxy; do
        tree $name "$programs/$name"
        [ $name != kube-proxy ] || with_tables "$trees/$name"
        oci_image "registry.k8s.io/$name:v$kubernetes" "$out/$name.tar" "$trees/$name" "[\"/usr/local/bin/$name\"]" '' 0:0
    done
    # The versions in these names are what kubeadm expects, not what is inside.
    tree etcd "$programs/etcd"
    oci_image "$("$programs/kubeadm" config images list --kubernetes-version "v$kubernetes" | grep /etcd:)" "$out/etcd.tar" "$trees/etcd" '["/usr/local/bin/etcd"]' '' 0:0
    tree coredns "$tools/coredns"
    oci_image "$("$programs/kubeadm" config images list --kubernetes-version "v$kubernetes" | grep /coredns:)" "$out/coredns.tar" "$trees/coredns" '["/usr/local/bin/coredns"]' '' 0:0
    mkdir "$trees/pause"
    cp "$tools/pause" "$trees/pause/"
    oci_image registry.k8s.io/pause:3.10 "$out/pause.tar" "$trees/pause" '["/pause"]' '' 65535:65535
    tree local-path-provisioner "$tools/local-path-provisioner"
    oci_image "$(grep -o '[^ ]*kindest/local-path-provisioner:[^ ]*' "$storage" | head -1)" "$out/local-path-provisioner.tar" "$trees/local-path-provisioner" '["/usr/local/bin/local-path-provisioner"]' '' 0:0
    mkdir "$trees/helper"
    with_box "$trees/helper" sh rm mkdir
    oci_image "$(grep -o '[^ ]*kindest/local-path-helper:[^ ]*' "$storage" | head -1)" "$out/helper.tar" "$trees/helper" '["/bin/sh"]' '' 0:0
    tree cni "$programs/kubectl" "$here/pod-routes.sh"
    with_tables "$trees/cni"
    chmod 755 "$trees/cni/usr/local/bin/pod-routes.sh"
    oci_image localhost/cni:dev "$out/cni.tar" "$trees/cni" '["/usr/local/bin/pod-routes.sh"]' '' 0:0
    rm -rf "$trees"
}

# Images go into the containerd of the node's files, not unpacked, as kind's own build does; then the files become an image of Docker's.
node_image() { # ROOT IMAGES
    local root=$1 images=$2
    rm -rf "$root/var/lib/containerd"
    unshare --mount --pid --fork --kill-child --mount-proc="$root/proc" --propagation slave bash -euc '
        root=$1 images=$2
        mount -t tmpfs tmpfs "$root/run"; mount -t tmpfs tmpfs "$root/tmp"; mkdir "$root/tmp/images"; mount --bind "$images" "$root/tmp/images"
        chroot "$root" /usr/local/bin/containerd --config /dev/null >/dev/null 2>&1 &
        containerd=$!
        until chroot "$root" ctr version >/dev/null 2>&1; do sleep 0.2; done
        for archive in "$images"/*.tar; do chroot "$root" ctr -n k8s.io images import --all-platforms --no-unpack --digests "/tmp/images/${archive##*/}" >/dev/null; done
        chroot "$root" ctr -n k8s.io images tag registry.k8s.io/pause:3.10 registry.k8s.io/pause:3.10.2 >/dev/null
        kill $containerd; wait $containerd || true' _ "$root" "$images"
    tar -C "$root" --numeric-owner --exclude='./proc/*' --exclude='./sys/*' --exclude='./dev/*' -c . |
        docker import -c 'ENV container=docker' -c 'ENTRYPOINT ["/usr/local/bin/entrypoint","/sbin/init"]' - local/node:raw >/dev/null
    # An import knows no signal to stop with.
    printf 'FROM local/node:raw\nSTOPSIGNAL SIGRTMIN+3\n' | DOCKER_BUILDKIT=0 docker build -q -t "$image" - >/dev/null
}

start_docker() {
    cat >"$state/bin/runc-available" <<'SH'
#!/bin/bash
# runc, after a capability that some machines withhold from root is taken out of what is asked for.
args=("$@")
for ((i = 0; i < $#; i++)); do
    case "${args[i]}" in
    --bundle | -b) file=${args[i + 1]}/config.json query=.process ;;
    --process | -p) file=${args[i + 1]} query=. ;;
    esac
done
if [ -n "${file:-}" ]; then
    jq -c "$query"' |= if .capabilities then .capabilities |= with_entries(if (.value|type)=="array" then .value -= ["CAP_SYS_RESOURCE"] else . end) else . end' "$file" >"$file.new" && cat "$file.new" >"$file"
    rm -f "$file.new"
fi
exec /usr/sbin/runc "$@"
SH
    chmod 755 "$state/bin/runc-available"
    # systemd in a node raises it for the whole machine.
    sysctl -n fs.file-max >"$state/file-max"
    ip netns add "$network"
    in_network sh -c 'ip link set lo up; sysctl -qw net.ipv4.ip_forward=1'
    setsid nohup nsenter --net="/run/netns/$network" unshare --mount --pid --fork --kill-child --mount-proc --propagation slave \
        env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME="$HOME" tini -s -- \
        dockerd --data-root "$docker_state/root" --exec-root "$docker_state/exec" --pidfile "$docker_state/docker.pid" -H "unix://$docker_state/docker.sock" \
        --storage-driver overlay2 --add-runtime available="$state/bin/runc-available" --default-runtime available >"$state/log/dockerd.log" 2>&1 &
    echo $! >"$state/dockerd.pid"
    local tries=0
    until docker version >/dev/null 2>&1; do
        tries=$((tries + 1))
        [ $tries -lt 150 ] || die "dockerd does not start: $(tail -5 "$state/log/dockerd.log")"
        sleep 0.2
    done
}

up() {
    [ "$(id -u)" -eq 0 ] || die "Docker in a network of its own needs root; set KUBECONFIG to a cluster that is there instead"
    if [ -e "/run/netns/$network" ]; then
        ! kill -0 "$(cat "$state/dockerd.pid" 2>/dev/null || echo none)" 2>/dev/null || die "it is up already: end it with $0 down"
        say "tidying up after one that was broken off"
        down
    fi
    packages
    "$scripts/install-kubernetes.sh" all
    "$here/install.sh" all
    start_docker
    if ! docker image inspect "$image" >/dev/null 2>&1; then
        node_files "$state/root"
        node_images "$state/root" "$state/images"
        node_image "$state/root" "$state/images"
        rm -rf "$state/root" "$state/images"
    fi
    say "node image $image"
}

down() {
    local cluster pid group
    for cluster in $(kind get clusters 2>/dev/null); do kind delete cluster --name "$cluster" || true; done
    if pid=$(cat "$state/dockerd.pid" 2>/dev/null); then
        # The first process inside: with it everything there ends.
        pid=$(pgrep -P "$pid" || true)
        [ -z "$pid" ] || kill "$pid"
        sleep 2
        rm -f "$state/dockerd.pid"
    fi
    [ ! -e "/run/netns/$network" ] || ip netns del "$network"
    for group in /sys/fs/cgroup/*/docker; do [ ! -d "$group" ] || find "$group" -depth -type d -exec rmdir {} \; ; done
    rmdir /lib/modules 2>/dev/null || true
    [ ! -s "$state/file-max" ] || sysctl -qw fs.file-max="$(cat "$state/file-max")"
}

case ${1:-} in
up) up ;;
down) down ;;
run)
    shift
    unset KUBERNETES_SERVICE_HOST KUBERNETES_SERVICE_PORT
    in_network "$@"
    ;;
*) die "usage: $0 up | run COMMAND... | down" ;;
esac
