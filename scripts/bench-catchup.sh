#!/usr/bin/env bash
# bench-catchup.sh [WORKLOAD...]: how fast WAL is taken in, beside Postgres' own crash recovery of the same WAL on the same machine.
#
# Workloads: rows64, rows1k (bulk inserts of rows of 64 bytes and 1 KiB), pgbench. Each starts from a cluster that was shut down, writes
# WAL, and is killed; then Postgres 15 recovers it ("redo done ... elapsed" of its log), and pagectl ingests the same WAL over the same base.
. "$(dirname "${BASH_SOURCE[0]}")/servers.sh"

major=${BENCH_MAJOR:-15}
installed_postgres "$major"
built "${CARGO_TARGET_DIR:-$cache/target}/release" pagectl
export PATH=$pg/clients:$PATH PGOPTIONS=
[ $# -gt 0 ] || set -- rows64 rows1k pgbench
port=$(free_port)
db="host=127.0.0.1 port=$port user=postgres dbname=postgres"
# Nothing that waits for the disk, no checkpoint while WAL is written: recovery then has all of it to redo, and is not held up either.
start() { # DATA LOG
    start_postgres "$1" "$port" "$2" -c fsync=off -c synchronous_commit=off -c shared_buffers=1GB -c max_wal_size=64GB \
        -c checkpoint_timeout=1h -c autovacuum=off
}
rows() { # BYTES COUNT
    psql -qX "$db" -c 'CREATE TABLE rows (id int, filler text)' \
        -c "ALTER TABLE rows ALTER filler SET STORAGE PLAIN" \
        -c "INSERT INTO rows SELECT n, repeat('x', $(($1 - 36))) FROM generate_series(1, $2) n"
}

make_cluster "$work/base"
start "$work/base" "$work/base.log"
pgbench -iqs "${BENCH_SCALE:-10}" "$db" >"$work/pgbench.log" 2>&1 || die "pgbench -i: $(tail -2 "$work/pgbench.log")"
stop_process INT "$postgres_pid"

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
    stop_process QUIT "$postgres_pid" # an immediate shutdown: no checkpoint
    cp -a "$data/pg_wal" "$work/wal"
    start "$data" "$work/$workload-recovery.log"
    stop_process QUIT "$postgres_pid"
    printf '%s\n' "--- $workload"
    sed -n 's/.*LOG: *//; s/^redo done at \([^ ]*\) .*elapsed: \([0-9.]* s\).*/Postgres '"$major"' recovers up to \1 in \2/p' "$work/$workload-recovery.log"
    "$bin/pagectl" bench ingest --base "$work/base" --wal "$work/wal" --work "$work"
    rm -rf "$data" "$work/wal"
done
