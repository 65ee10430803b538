# What scripts need that start servers on this machine. Sourced, after `major` is set; sets `pg` and `work` (removed at the end).
#
# Every server is a child of the script itself (no function in between), so that its process can be signalled, and dies with it.
. "$(dirname "${BASH_SOURCE[0]}")/cache-dir.sh"

work=$(mktemp -d "${TMPDIR:-/tmp}/palimpsest-XXXXXX")
chmod 755 "$work"
pids=()
clean_up() { # more is done by those who redefine it
    trap - EXIT
    for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$work"
}
trap 'clean_up' EXIT
trap 'exit 130' INT TERM

# The user that Postgres runs as: root is refused.
as_postgres=(setpriv --pdeathsig KILL)
if [ "$(id -u)" -eq 0 ]; then
    as_postgres+=(--reuid "$(postgres_user)" --regid "$(id -g "$(postgres_user)")" --clear-groups)
fi
as_postgres+=(--)

installed_postgres() { # MAJOR
    pg=$(readlink -f "$cache/postgres/$1") && [ -x "$pg/bin/postgres" ] || die "Postgres $1 is not here: run scripts/install-postgres.sh $1"
}
built() { # DIRECTORY PROGRAM...
    bin=$1
    shift
    for program in "$@"; do [ -x "$bin/$program" ] || die "no $program in $bin: it has to be built first"; done
}
fail() { say "failed: $*"; [ ! -s "$work/pageserver.log" ] || tail -15 "$work/pageserver.log" >&2; exit 1; }
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
        [ $SECONDS -lt $limit ] || fail "$what"
        sleep 0.02
    done
}

make_cluster() { # DATA [INITDB OPTION...]
    local data=$1
    shift
    mkdir "$data"
    [ "$(id -u)" -ne 0 ] || chown "$(postgres_user)" "$data"
    "${as_postgres[@]}" env LD_LIBRARY_PATH="$pg/lib" "$pg/bin/initdb" -D "$data" -U postgres -A trust --no-sync "$@" \
        >"$work/initdb.log" 2>&1 || fail "initdb: $(tail -3 "$work/initdb.log")"
}
# Starts a Postgres and waits until it answers; `postgres_pid` is its process.
start_postgres() { # DATA PORT LOG [OPTION...]
    local data=$1 port=$2 log=$3
    shift 3
    # LD_LIBRARY_PATH is for this one program: its neighbours bring their own libraries.
    "${as_postgres[@]}" env LD_LIBRARY_PATH="$pg/lib" "$pg/bin/postgres" -D "$data" -p "$port" -c unix_socket_directories= \
        -c listen_addresses=127.0.0.1 "$@" >"$log" 2>&1 &
    postgres_pid=$!
    pids+=("$postgres_pid")
    local limit=$((SECONDS + 300))
    until psql -qX "host=127.0.0.1 port=$port user=postgres dbname=postgres" -c 'SELECT 1' >/dev/null 2>&1; do
        [ $SECONDS -lt $limit ] && kill -0 "$postgres_pid" 2>/dev/null || fail "Postgres did not start: $(tail -5 "$log")"
        sleep 0.05
    done
}
stop_process() { # SIGNAL PID
    kill -"$1" "$2"
    wait "$2" 2>/dev/null || true
}

hex32() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }
# One string field of JSON.
field() { sed -n "s/.*\"$1\" *: *\"\([^\"]*\)\".*/\1/p" | head -1; }
lsn_number() { local high=${1%/*} low=${1#*/}; echo $(((16#$high << 32) + 16#$low)); }
