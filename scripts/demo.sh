#!/usr/bin/env bash
# demo.sh [DSN]: history of a real Postgres comes alive, on this machine, in under three minutes.
#
# Without a DSN it starts a Postgres of its own. With one (a role with REPLICATION that may create a database;
# wal_level = replica) it follows that server, works in a database `palimpsest_demo` of its own, and takes everything
# away again at the end: the database, the replication slot, all files but the picture.
# Every command it prints is a public one, and can be typed by hand.
. "$(dirname "${BASH_SOURCE[0]}")/servers.sh"

seconds=${DEMO_SECONDS:-15}
installed_postgres "${DEMO_MAJOR:-18}"
built "${CARGO_TARGET_DIR:-$cache/target}/debug" pageserver pagectl
export PATH=$bin:$pg/clients:$PATH PGCONNECT_TIMEOUT=5 PGOPTIONS=
began=$SECONDS
picture=${TMPDIR:-/tmp}/palimpsest-demo.svg
own_dsn=${1:-}

# Printing ------------------------------------------------------------------------------------------------------
if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' plain=$'\e[0m'; else bold='' dim='' green='' plain=''; fi
# Commands whose output goes elsewhere are shown all the same.
exec 4>&1
chapter() { printf '%s%3ds  %s%s\n' "$bold" $((SECONDS - began)) "$*" "$plain"; }
shown() { printf '      %s$ %s%s\n' "$dim" "${*//$work/\$work}" "$plain" >&4; }
fact() { printf '      %s%s%s\n' "$green" "$*" "$plain"; }
run() { shown "$@"; "$@"; }

# Cleaning up ---------------------------------------------------------------------------------------------------
slot=
take_away() {
    if [ -n "$own_dsn" ]; then
        # The slot is free once nobody follows it.
        for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
        psql -qX "$own_dsn" -c 'DROP DATABASE IF EXISTS palimpsest_demo' >/dev/null 2>&1 || true
        [ -z "$slot" ] || psql -qX "$own_dsn" -c "SELECT pg_drop_replication_slot('$slot')" >/dev/null 2>&1 || true
    fi
    clean_up
}
trap take_away EXIT

start_pageserver() {
    shown "pageserver -D $work/disk --bucket file://$work/bucket --listen-pg-addr $pages --listen-http-addr $http &"
    pageserver -D "$work/disk" --bucket "file://$work/bucket" --listen-pg-addr "$pages" --listen-http-addr "$http" \
        >>"$work/pageserver.log" 2>&1 &
    pageserver_pid=$!
    pids+=($pageserver_pid)
    until_true 20 "the pageserver does not answer" curl -fsS "http://$http/v1/status"
}
detail() { curl -fsS "http://$http/v1/tenant/$tenant/timeline/$1"; }
reached() { # TIMELINE LSN
    local at; at=$(detail "$1" | field last_record_lsn)
    [ -n "$at" ] && [ "$(lsn_number "$at")" -ge "$(lsn_number "$2")" ]
}
value() { psql -qXAt "$1" -c "$2"; }

# 1. A Postgres that works --------------------------------------------------------------------------------------
printf '%sPalimpsest: every version of every page%s\n' "$bold" "$plain"
if [ -z "$own_dsn" ]; then
    chapter "An ordinary, unpatched Postgres"
    port=$(free_port)
    shown "initdb -D $work/primary --data-checksums && postgres -D $work/primary"
    make_cluster "$work/primary" --data-checksums
    start_postgres "$work/primary" "$port" "$work/primary.log"
    server="host=127.0.0.1 port=$port user=postgres"
else
    server=$own_dsn
    chapter "Your Postgres"
    major=$(($(value "$server" 'SHOW server_version_num') / 10000))
    installed_postgres "$major"
    export PATH=$bin:$pg/clients:$PATH
fi
value "$server" 'CREATE DATABASE palimpsest_demo' >/dev/null
db="$server dbname=palimpsest_demo"
fact "$(value "$server" 'SELECT split_part(version(), $$ on $$, 1)'), untouched: no extension, no patch, wal_level = $(value "$server" 'SHOW wal_level')"
shown "pgbench -i -s 5 palimpsest_demo"
pgbench -iqs 5 "$db" >"$work/pgbench-init.log" 2>&1 || fail "pgbench -i: $(tail -2 "$work/pgbench-init.log")"

# 2. Follow it --------------------------------------------------------------------------------------------------
chapter "A pageserver imports it and follows its WAL"
pages=127.0.0.1:$(free_port)
http=127.0.0.1:$(free_port)
mkdir "$work/bucket"
start_pageserver
tenant=$(hex32)
main=$(hex32)
before_slots=$(value "$server" "SELECT string_agg(slot_name, ',') FROM pg_replication_slots")
run curl -fsS -o "$work/answer" "http://$http/v1/tenant/$tenant/timeline" -H 'content-type: application/json' \
    -d "{\"new_timeline_id\": \"$main\", \"primary\": {\"dsn\": \"$server\"}}" || fail "no timeline: $(cat "$work/answer" 2>/dev/null)"
active() { [ "$(detail "$main" | field state)" = Active ]; }
until_true 60 "the import does not end" active
slot=$(value "$server" "SELECT slot_name FROM pg_replication_slots WHERE NOT slot_name = ANY (string_to_array('$before_slots', ',')) OR '$before_slots' = '' LIMIT 1")
fact "imported $(value "$server" "SELECT pg_size_pretty(sum(pg_database_size(oid))) FROM pg_database"); following slot ${slot:-?}"

# 3. Work, an accident ------------------------------------------------------------------------------------------
chapter "Work for $seconds s, then an accident"
shown "pgbench -c 4 -T $seconds palimpsest_demo"
pgbench -n -c 4 -T "$seconds" "$db" >"$work/pgbench.log" 2>&1 || fail "pgbench: $(tail -2 "$work/pgbench.log")"
fact "$(sed -n 's/^number of transactions actually processed: \([0-9]*\).*/\1 transactions/p; s/^tps = \([0-9]*\).*/\1 a second/p' "$work/pgbench.log" | paste -sd' ')"
accounts='SELECT count(*) || $$ accounts, sum of balances $$ || sum(abalance) FROM pgbench_accounts'
history=$(value "$db" "$accounts")
block=$(value "$db" 'SELECT (ctid::text::point)[0]::int FROM pgbench_accounts WHERE aid = 1')
good=$(value "$db" 'SELECT pg_current_wal_insert_lsn()')
file=$(value "$db" "SELECT pg_relation_filepath('pgbench_accounts')")
run psql -qX "$db" -c 'DELETE FROM pgbench_accounts' -c 'VACUUM pgbench_accounts' -c 'DROP TABLE pgbench_tellers'
bad=$(value "$db" 'SELECT pg_current_wal_insert_lsn()')
value "$db" 'SELECT txid_current()' >/dev/null
until_true 30 "WAL up to $bad does not arrive" reached "$main" "$bad"
fact "at $good: $history; at $bad: $(value "$db" 'SELECT count(*) FROM pgbench_accounts') accounts, a table dropped"

# 4. The past is there ------------------------------------------------------------------------------------------
chapter "The page that held account 1, then and now"
database_oid=$(value "$db" 'SELECT oid FROM pg_database WHERE datname = current_database()')
relation="1663/$database_oid/${file##*/}"
for lsn in "$good" "$bad"; do
    run pagectl page get --server "$pages" --tenant "$tenant" --timeline "$main" --rel "$relation" --block "$block" --lsn "$lsn" --raw >"$work/page" \
        || fail "page get"
    used=$(tr -d '\0' <"$work/page" | wc -c)
    fact "at $lsn: $(wc -c <"$work/page") bytes, $used of them not zero"
done

# 5. Branch, kill, wipe, restore --------------------------------------------------------------------------------
chapter "A branch from just before the accident: metadata only"
branch=$(hex32)
run curl -fsS -o "$work/answer" "http://$http/v1/tenant/$tenant/timeline" -H 'content-type: application/json' \
    -d "{\"new_timeline_id\": \"$branch\", \"ancestor_timeline_id\": \"$main\", \"ancestor_start_lsn\": \"$good\"}" || fail "no branch"

chapter "The pageserver is killed and its disk wiped"
shown "kill -9 $pageserver_pid; rm -rf $work/disk"
kill -9 $pageserver_pid
wait $pageserver_pid 2>/dev/null || true
rm -rf "$work/disk"
killed=$(date +%s%N)
start_pageserver
until_true 30 "no page after the restart" pagectl page get --server "$pages" --tenant "$tenant" --timeline "$branch" --rel "$relation" \
    --block "$block" --lsn "$good" --raw
fact "first page from the bucket alone after $((($(date +%s%N) - killed) / 1000000)) ms; the bucket holds $(du -sh "$work/bucket" | cut -f1)"

chapter "Stock Postgres starts from the branch"
run pagectl restore --server "$pages" --tenant "$tenant" --timeline "$branch" --no-sync --quiet "$work/restored" || fail "restore"
[ "$(id -u)" -ne 0 ] || chown -R "$(postgres_user)" "$work/restored"
port2=$(free_port)
shown "postgres -D $work/restored -p $port2"
start_postgres "$work/restored" "$port2" "$work/restored.log"
restored="host=127.0.0.1 port=$port2 user=postgres dbname=palimpsest_demo"
now=$(value "$restored" "$accounts")
fact "restored: $now"
[ "$now" = "$history" ] || fail "it was: $history"

chapter "Its own WAL flows into the branch"
run curl -fsS -o "$work/answer" -X PUT "http://$http/v1/tenant/$tenant/timeline/$branch/primary" -H 'content-type: application/json' \
    -d "{\"dsn\": \"host=127.0.0.1 port=$port2 user=postgres\"}" || fail "the branch does not follow: $(cat "$work/answer" 2>/dev/null)"
run psql -qX "$restored" -c 'CREATE TABLE after_the_accident AS SELECT generate_series(1, 10000) AS n'
new=$(value "$restored" 'SELECT pg_current_wal_insert_lsn()')
value "$restored" 'SELECT txid_current()' >/dev/null
until_true 30 "the branch does not reach $new" reached "$branch" "$new"
fact "the branch went on from $good to $new; main is at $(detail "$main" | field last_record_lsn)"

# 6. A picture --------------------------------------------------------------------------------------------------
run pagectl timeline draw "http://$http/v1/tenant/$tenant" -o "$picture" >/dev/null || fail "no picture"
chapter "Done. The picture: $picture"
