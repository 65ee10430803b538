#!/usr/bin/env bash
# bench-server.sh [BUCKET_KIND...]: a pageserver that follows a Postgres, measured from outside. Kinds: file (a directory), s3 (versitygw).
#
# Import (T15), commit to bucket (T14), cold pages (T3), hot pages (T1a, T1c; unpinned and, for the first kind, with server and client on one
# processor and on one each).
. "$(dirname "${BASH_SOURCE[0]}")/cache-dir.sh"

major=${BENCH_MAJOR:-16}
bin=${CARGO_TARGET_DIR:-$cache/target}/release
pg=$(readlink -f "$cache/postgres/$major") || die "Postgres $major is not here: run scripts/install-postgres.sh $major"
[ -x "$bin/pageserver" ] && [ -x "$bin/pagectl" ] || die "no pageserver in $bin: run make bench"
export PATH=$bin:$pg/clients:$PATH PGOPTIONS=
[ $# -gt 0 ] || set -- file s3
work=$(mktemp -d "${TMPDIR:-/tmp}/palimpsest-bench-XXXXXX")
chmod 755 "$work"
pids=()
clean_up() { trap - EXIT; for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null || true; done; wait 2>/dev/null || true; rm -rf "$work"; }
trap clean_up EXIT
trap 'exit 130' INT TERM

as_postgres() {
    if [ "$(id -u)" -eq 0 ]; then
        local user; user=$(postgres_user)
        setpriv --reuid "$user" --regid "$(id -g "$user")" --clear-groups --pdeathsig KILL -- "$@"
    else setpriv --pdeathsig KILL -- "$@"; fi
}
free_port() {
    local port
    while :; do
        port=$((RANDOM % 20000 + 12000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo $port; return; }
    done
}
until_true() { # SECONDS WHAT COMMAND...
    local limit=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $limit ] || { [ ! -s "$work/pageserver.log" ] || tail -5 "$work/pageserver.log" >&2; die "$what"; }
        sleep 0.02
    done
}
now() { date +%s%N; }
ms_since() { echo $((($(now) - $1) / 1000000)); }
hex32() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }
field() { sed -n "s/.*\"$1\" *: *\"\([^\"]*\)\".*/\1/p" | head -1; }
lsn_number() { local high=${1%/*} low=${1#*/}; echo $(((16#$high << 32) + 16#$low)); }
value() { psql -qXAt "$db" -c "$1"; }

port=$(free_port)
db="host=127.0.0.1 port=$port user=postgres dbname=postgres"
mkdir "$work/primary"
[ "$(id -u)" -ne 0 ] || chown "$(postgres_user)" "$work/primary"
as_postgres env LD_LIBRARY_PATH="$pg/lib" "$pg/bin/initdb" -D "$work/primary" -U postgres -A trust --data-checksums --no-sync >"$work/initdb.log" 2>&1 \
    || die "initdb: $(tail -3 "$work/initdb.log")"
as_postgres env LD_LIBRARY_PATH="$pg/lib" "$pg/bin/postgres" -D "$work/primary" -p "$port" -c unix_socket_directories= \
    -c listen_addresses=127.0.0.1 -c shared_buffers=512MB -c max_wal_size=8GB >"$work/primary.log" 2>&1 &
pids+=($!)
until_true 30 "Postgres did not start" psql -qX "$db" -c 'SELECT 1'
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
end() { kill -"$1" "$server"; wait "$server" 2>/dev/null || true; }
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
