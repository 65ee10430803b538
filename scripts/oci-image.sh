# Images without any container tool: files, tar and three JSON documents. Sourced after cache-dir.sh.
#
# The archive is an OCI layout that `ctr images import`, `kind load image-archive` and `skopeo copy oci-archive:` understand.

# oci_image NAME ARCHIVE ROOT ENTRYPOINT-JSON [ENVIRONMENT-JSON-STRINGS [USER:GROUP]]
oci_image() {
    local name=$1 archive=$2 root=$3 entrypoint=$4 environment=${5:-} user=${6:-65532:65532} work layer size config config_size manifest architecture
    [ -n "$environment" ] || environment='"PATH=/usr/local/bin:/usr/bin:/bin"'
    case $(uname -m) in x86_64) architecture=amd64 ;; aarch64) architecture=arm64 ;; *) die "no images for $(uname -m) here" ;; esac
    work=$(mktemp -d "${TMPDIR:-/tmp}/palimpsest-image-XXXXXX")
    mkdir -p "$work/blobs/sha256"
    tar -C "$root" --owner=0 --group=0 --numeric-owner --sort=name --mtime=@0 -cf "$work/new" .
    size=$(stat -c %s "$work/new")
    layer=$(blob "$work")
    printf '{"architecture":"%s","os":"linux","config":{"Entrypoint":%s,"User":"%s","Env":[%s]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
        "$architecture" "$entrypoint" "$user" "$environment" "$layer" >"$work/new"
    config_size=$(stat -c %s "$work/new")
    config=$(blob "$work")
    printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:%s","size":%s},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:%s","size":%s}]}' \
        "$config" "$config_size" "$layer" "$size" >"$work/new"
    size=$(stat -c %s "$work/new")
    manifest=$(blob "$work")
    printf '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%s","size":%s,"annotations":{"io.containerd.image.name":"%s","org.opencontainers.image.ref.name":"%s"}}]}' \
        "$manifest" "$size" "$name" "${name##*:}" >"$work/index.json"
    echo '{"imageLayoutVersion":"1.0.0"}' >"$work/oci-layout"
    tar -C "$work" -cf "$archive.new" oci-layout index.json blobs
    mv -T "$archive.new" "$archive"
    rm -rf "$work"
    say "image $name: $archive ($(($(stat -c %s "$archive") >> 20)) MB)"
}
# Files "$1/new" under the sum of its bytes, which it prints.
blob() {
    local sum
    sum=$(sha256sum <"$1/new" | cut -d' ' -f1)
    mv "$1/new" "$1/blobs/sha256/$sum"
    echo "$sum"
}

# with_libraries ROOT FILE...: adds the shared libraries that files need, where the loader looks for them.
with_libraries() {
    local root=$1 library
    shift
    # Statically linked files need none, which ldd calls an error.
    { ldd "$@" 2>/dev/null | grep -o '/[^ :]*' || true; } | sort -u | while read -r library; do
        if [ ! -f "$library" ] || [[ $library = "$root"/* ]]; then continue; fi
        mkdir -p "$root$(dirname "$library")"
        cp -Lu "$library" "$root$library"
    done
}
# What any image has: users, certificates of the world's authorities, a place for temporary files.
with_basics() { # ROOT
    mkdir -p "$1"/{etc/ssl/certs,tmp,usr/local/bin}
    printf 'root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n' >"$1/etc/passwd"
    printf 'root:x:0:\nnonroot:x:65532:\n' >"$1/etc/group"
    [ ! -f /etc/ssl/certs/ca-certificates.crt ] || cp -L /etc/ssl/certs/ca-certificates.crt "$1/etc/ssl/certs/"
    chmod 1777 "$1/tmp"
}
