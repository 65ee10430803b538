# Where tests keep what they fetch. Sourced. Sets `cache` (downloads, build output) and `shared` (what the
# unprivileged user that runs Postgres must be able to read and execute).
#
# Postgres refuses to run as root, so under root it runs as `postgres` or `nobody`, who often cannot pass
# through root's home. Then the binaries live under /var/tmp, and a symlink in the cache names them.
set -euo pipefail

scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=versions.env
. "$scripts/versions.env"

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

cache=${TESTKIT_CACHE:-$HOME/.cache/palimpsest}
mkdir -p "$cache/downloads"

# The user that Postgres runs as: ourselves, unless we are root.
postgres_user() {
    if [ "$(id -u)" -ne 0 ]; then id -un
    elif id postgres >/dev/null 2>&1; then echo postgres
    else echo nobody; fi
}

# May that user read below directory $1?
reachable() {
    [ "$(id -u)" -ne 0 ] && return 0
    command -v setpriv >/dev/null || die "setpriv is missing (package util-linux): root cannot start Postgres without it"
    setpriv --reuid "$(postgres_user)" --regid "$(id -g "$(postgres_user)")" --clear-groups test -x "$1" -a -r "$1"
}

shared_dir() {
    mkdir -p "$cache/postgres"
    if reachable "$cache/postgres/."; then echo "$cache/postgres"; return; fi
    local away
    away=/var/tmp/palimpsest-$(id -u)
    mkdir -m 755 "$away" 2>/dev/null || true
    # A name that anyone could have made first: believed only if it is our own plain directory.
    [ ! -L "$away" ] && [ -d "$away" ] && [ "$(stat -c %u "$away")" = "$(id -u)" ] || die "$away is not a directory of ours"
    chmod 755 "$away"
    mkdir -p "$away/postgres"
    echo "$away/postgres"
}
