#!/usr/bin/env bash
# bench-server.sh [BUCKET_KIND...]: a pageserver that follows a Postgres, measured from outside. Kinds: file (a directory), s3 (versitygw).
#
# Import (T15), commit to bucket (T14), cold pages (T3), hot pages (T1a, T1c; unpinned and, for the first kind, with server and client on one
# processor and on one each).
. "$(dirname "${BASH_SOURCE[0]}")/servers.sh"

installed_postgres "${BENCH_MAJOR:-16}"
built "${CARGO_TARGET_DIR:-$cache/target}/release" pageserver pagectl
export PATH=$bin:$pg/clients:$PATH PGOPTIONS=
[ $# -gt 0 ] || set -- file s3
now() { date +%s%N; }
ms_since() { echo $((($(now) - $1) / 1000000)); }
value() { psql -qXAt "$db" -c "$1"; }

port=$(free_port)
db="host=127.0.0.1 port=$port user=postgres dbname=postgres"
make_cluster "$work/primary" --data-checksums
start_postgres "$work/primary" "$port" "$work/primary.log" -c shared_buffers=512MB -c max_wal_size=8GB
pgbench -iqs "${BENCH_SCALE:-40}" "$db" >"$work/pgbench.log" 2>&1 || die "pgbench -i: $(tail -2 "$work/pgbench.log")"
value CHECKPOINT
rel=$(value "SELECT '1663/' || (SELECT oid FROM pg_database WHERE datname = 'postgres') || '/' || pg_relation_filenode('pgbench_accounts')")
blocks=$(value "SELECT pg_relation_size('pgbench_accounts') / 8192")

serve() { # OPTIONS...
    pageserver -D "$work/disk" --bucket "$bucket" --listen-pg-addr "$pages" --listen-http-addr "$http" "$@" >>"$work/pageserver.log" 2>&1 &
    server=$!
    pids+=("$server")
    until_true 60 "the pageserver does not answer" curl -fsS "http://$http/v1/status"
}
end() { stop_process "$1" "$server"; }
detail() { curl -fsS "http://$http/v1/tenant/$tenant/timeline/$timeline"; }
fetches() { curl -fsS "http://$http/metrics" | sed -n 's/^palimpsest_chunk_cache{what="fetches"} //p'; }
active() { [ "$(detail | field state)" = Active ]; }
flushed() { [ "$(lsn_number "$(detail | field wal_flushed_lsn)")" -ge "$(lsn_number "$1")" ]; }
stored() { [ "$(lsn_number "$(detail | field wal_stored_lsn)")" -ge "$(lsn_number "$1")" ]; }
# How long after a commit its WAL is in the bucket, five times.
commits() {
    local lsn begun
    for _ in 1 2 3 4 5; do
        lsn=$(value 'INSERT INTO pgbench_history (tid) VALUES (1)' && value 'SELECT pg_current_wal_insert_lsn()')
        begun=$(now)
        until_true 30 "WAL is not stored" stored "$lsn"
        printf ' %s' "$(ms_since "$begun")"
    done
    printf ' ms\n'
}

for kind in "$@"; do
    printf '%s\n' "=== bucket: $kind"
    rm -rf "$work/disk" "$work/objects"
    mkdir "$work/objects"
    case $kind in
        file) bucket=file://$work/objects ;;
        s3)
            s3=$(free_port)
            export ROOT_ACCESS_KEY=bench ROOT_SECRET_KEY=bench-secret AWS_ACCESS_KEY_ID=bench AWS_SECRET_ACCESS_KEY=bench-secret \
                AWS_REGION=us-east-1 AWS_EC2_METADATA_DISABLED=true
            mkdir "$work/objects/bench"
            "$cache/versitygw/versitygw" --port "127.0.0.1:$s3" posix "$work/objects" >"$work/s3.log" 2>&1 &
            pids+=($!)
            until_true 30 "versitygw does not answer" bash -c "exec 3<>/dev/tcp/127.0.0.1/$s3"
            bucket="s3://bench/?endpoint=http://127.0.0.1:$s3&region=us-east-1"
            ;;
        *) die "no bucket kind $kind" ;;
    esac
    pagectl bench bucket --bucket "$bucket"
    pages=127.0.0.1:$(free_port) http=127.0.0.1:$(free_port) tenant=$(hex32) timeline=$(hex32)
    serve

    begun=$(now)
    pg_basebackup -d "$db" -c fast -X none -Ft -D - 2>/dev/null | wc -c >"$work/bytes"
    took=$(ms_since "$begun")
    printf 'floor, base backup into nothing: %s MiB in %s ms, %s MiB/s\n' $(($(cat "$work/bytes") >> 20)) "$took" $((($(cat "$work/bytes") >> 10) * 1000 / 1024 / took))
    begun=$(now)
    curl -fsS -o "$work/answer" "http://$http/v1/tenant/$tenant/timeline" -H 'content-type: application/json' \
        -d "{\"new_timeline_id\": \"$timeline\", \"primary\": {\"dsn\": \"$db\"}}" || die "no timeline: $(cat "$work/answer" 2>/dev/null)"
    until_true 600 "the import does not end" active
    took=$(ms_since "$begun")
    printf 'T15 import: %s MiB in %s ms, %s MiB/s; peak memory %s\n' $(($(cat "$work/bytes") >> 20)) "$took" \
        $((($(cat "$work/bytes") >> 10) * 1000 / 1024 / took)) "$(sed -n 's/^VmHWM:[[:space:]]*//p' "/proc/$server/status")"

    printf 'T14 commit to its WAL in the bucket, age 5 s:'; commits
    end TERM
    serve -c wal_seal_age=200ms
    printf 'T14 commit to its WAL in the bucket, age 0.2 s:'; commits

    end KILL
    rm -rf "$work/disk"
    serve
    before=$(fetches)
    pagectl bench getpage --cold --server "$pages" --tenant "$tenant" --timeline "$timeline" --rel "$rel" --blocks 1
    printf 'GETs for the first page: %s\n' $(($(fetches) - before))
    before=$(fetches)
    pagectl bench getpage --cold --server "$pages" --tenant "$tenant" --timeline "$timeline" --rel "$rel" --blocks "$blocks"
    printf 'GETs for all of these: %s\n' $(($(fetches) - before))

    hot() { "$@" pagectl bench getpage --server "$pages" --tenant "$tenant" --timeline "$timeline" --rel "$rel" --blocks "${BENCH_HOT_BLOCKS:-4000}" --pid "$server"; }
    printf '%s\n' "--- hot, unpinned"
    hot env
    if [ "$kind" = file ]; then
        printf '%s\n' "--- hot, server and client on one processor"
        taskset -apc 0 "$server" >/dev/null
        hot taskset -c 0
        printf '%s\n' "--- hot, server on one processor, client on another"
        hot taskset -c 1
    fi
    end TERM
done
