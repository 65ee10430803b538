#!/usr/bin/env bash
# bench-catchup.sh [WORKLOAD...]: how fast WAL is taken in, beside Postgres' own crash recovery of the same WAL on the same machine.
#
# Workloads: rows64, rows1k (bulk inserts of rows of 64 bytes and 1 KiB), pgbench. Each starts from a cluster that was shut down, writes
# WAL, and is killed; then Postgres 15 recovers it ("redo done ... elapsed" of its log), and pagectl ingests the same WAL over the same base.
. "$(dirname "${BASH_SOURCE[0]}")/cache-dir.sh"

major=${BENCH_MAJOR:-15}
bin=${CARGO_TARGET_DIR:-$cache/target}/release
pg=$(readlink -f "$cache/postgres/$major") || die "Postgres $major is not here: run scripts/install-postgres.sh $major"
[ -x "$bin/pagectl" ] || die "no pagectl in $bin: run make bench"
export PATH=$pg/clients:$PATH PGOPTIONS=
[ $# -gt 0 ] || set -- rows64 rows1k pgbench
work=$(mktemp -d "${TMPDIR:-/tmp}/palimpsest-catchup-XXXXXX")
chmod 755 "$work"
pid=
clean_up() { trap - EXIT; [ -z "$pid" ] || kill -9 "$pid" 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$work"; }
trap clean_up EXIT
trap 'exit 130' INT TERM

as_postgres() {
    if [ "$(id -u)" -eq 0 ]; then
        local user; user=$(postgres_user)
        setpriv --reuid "$user" --regid "$(id -g "$user")" --clear-groups --pdeathsig KILL -- "$@"
    else setpriv --pdeathsig KILL -- "$@"; fi
}
port=$((RANDOM % 20000 + 12000))
db="host=127.0.0.1 port=$port user=postgres dbname=postgres"
# Nothing that waits for the disk, no checkpoint while WAL is written: recovery then has all of it to redo, and is not held up either.
start() { # DATA LOG
    as_postgres env LD_LIBRARY_PATH="$pg/lib" "$pg/bin/postgres" -D "$1" -p "$port" -c unix_socket_directories= -c listen_addresses=127.0.0.1 \
        -c fsync=off -c synchronous_commit=off -c shared_buffers=1GB -c max_wal_size=64GB -c checkpoint_timeout=1h -c autovacuum=off \
        >"$2" 2>&1 &
    pid=$!
    local limit=$((SECONDS + 300))
    until psql -qX "$db" -c 'SELECT 1' >/dev/null 2>&1; do
        [ $SECONDS -lt $limit ] && kill -0 "$pid" 2>/dev/null || die "Postgres did not start: $(tail -5 "$2")"
        sleep 0.2
    done
}
stop() { kill -"$1" "$pid"; wait "$pid" 2>/dev/null || true; pid=; }
rows() { # BYTES COUNT
    psql -qX "$db" -c 'CREATE TABLE rows (id int, filler text)' \
        -c "ALTER TABLE rows ALTER filler SET STORAGE PLAIN" \
        -c "INSERT INTO rows SELECT n, repeat('x', $(($1 - 36))) FROM generate_series(1, $2) n"
}

mkdir "$work/base"
[ "$(id -u)" -ne 0 ] || chown "$(postgres_user)" "$work/base"
as_postgres env LD_LIBRARY_PATH="$pg/lib" "$pg/bin/initdb" -D "$work/base" -U postgres -A trust --no-sync >"$work/initdb.log" 2>&1 \
    || die "initdb: $(tail -3 "$work/initdb.log")"
start "$work/base" "$work/base.log"
psql -qX "$db" -c 'SELECT 1' >/dev/null
pgbench -iqs "${BENCH_SCALE:-10}" "$db" >"$work/pgbench.log" 2>&1 || die "pgbench -i: $(tail -2 "$work/pgbench.log")"
stop INT

for workload in "$@"; do
    data=$work/$workload
    cp -a "$work/base" "$data"
    start "$data" "$work/$workload.log"
    case $workload in
        rows64) rows 64 "${BENCH_ROWS:-2000000}" ;;
        rows1k) rows 1024 $((${BENCH_ROWS:-2000000} / 8)) ;;
        pgbench) pgbench -n -N -c 8 -T "${BENCH_SECONDS:-20}" "$db" >"$work/pgbench.log" 2>&1 || die "pgbench: $(tail -2 "$work/pgbench.log")" ;;
        *) die "no workload $workload" ;;
    esac
    sleep 1 # the WAL writer's turn
    stop QUIT # an immediate shutdown: no checkpoint
    cp -a "$data/pg_wal" "$work/wal"
    start "$data" "$work/$workload-recovery.log"
    stop QUIT
    printf '%s\n' "--- $workload"
    sed -n 's/.*LOG: *//; s/^redo done at \([^ ]*\) .*elapsed: \([0-9.]* s\).*/Postgres '"$major"' recovers up to \1 in \2/p' "$work/$workload-recovery.log"
    "$bin/pagectl" bench ingest --base "$work/base" --wal "$work/wal" --work "$work"
    rm -rf "$data" "$work/wal"
done
