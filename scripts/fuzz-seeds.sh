#!/usr/bin/env bash
# fuzz-seeds.sh: writes fuzz/seeds anew from a small cluster of every major. Only what changes parsers of WAL needs it.
. "$(dirname "${BASH_SOURCE[0]}")/cache-dir.sh"
cd "$scripts/.."
majors=(14 15 16 17 18)
work=$(mktemp -d /var/tmp/fuzz-seeds.XXXXXX)
chmod 755 "$work"
as_postgres() { if [ "$(id -u)" -eq 0 ]; then setpriv --reuid "$(postgres_user)" --regid "$(id -g "$(postgres_user)")" --clear-groups "$@"; else "$@"; fi; }
bin=
stop() { [ -z "$bin" ] || as_postgres "$bin/pg_ctl" -D "$data" -m fast -w stop >/dev/null 2>&1 || true; }
trap 'stop; rm -rf "$work"' EXIT

clusters=()
for major in "${majors[@]}"; do
    say "a cluster of Postgres $major"
    bin=$(shared_dir)/$major/bin
    [ -x "$bin/postgres" ] || die "Postgres $major is not installed; run scripts/install-deps.sh"
    data=$work/$major
    install -d -m 700 -o "$(postgres_user)" "$data"
    as_postgres "$bin/initdb" -D "$data" -U postgres -A trust --no-sync >/dev/null
    cat >>"$data/postgresql.conf" <<-CONF
	listen_addresses = ''
	unix_socket_directories = '$data'
	wal_level = logical
	max_prepared_transactions = 5
	track_commit_timestamp = on
	full_page_writes = off
	autovacuum = off
	fsync = off
	max_wal_size = 4GB
	wal_keep_size = 1GB
	CONF
    as_postgres "$bin/pg_ctl" -D "$data" -w -l "$data/log" start >/dev/null
    as_postgres "${bin%/bin}/clients/psql" -X -q -h "$data" -U postgres -d postgres -v ON_ERROR_STOP=1 -f "$scripts/fuzz-seeds.sql" >/dev/null
    as_postgres "$bin/pg_ctl" -D "$data" -m fast -w stop >/dev/null
    bin=
    clusters+=("$data")
done
rm -rf "$work/seeds"
cargo run --manifest-path fuzz/Cargo.toml --example seeds -- "$work/seeds" "${clusters[@]}"
rm -rf fuzz/seeds fuzz/server/seeds
for target in "$work"/seeds/*/; do
    target=$(basename "$target")
    if [ -f "fuzz/server/targets/$target.rs" ]; then to=fuzz/server/seeds; else to=fuzz/seeds; fi
    mkdir -p "$to"
    cp -r "$work/seeds/$target" "$to/"
done
du -sh fuzz/seeds fuzz/server/seeds >&2
