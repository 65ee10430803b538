#!/usr/bin/env bash
# Installs what building, tests and the demo need beyond Rust: Debian packages through apt when we are root or
# have sudo (else names what is missing and stops), then Postgres 14-18, the S3 server of the tests, a Kubernetes API server and helm.
#
#   install-deps.sh          everything
#   install-deps.sh demo     only what `make demo` needs: one Postgres, no S3 server
. "$(dirname "${BASH_SOURCE[0]}")/cache-dir.sh"

what=${1:-all}

# Command or file that shows a package is there, and the package.
wanted=(
    "cc build-essential"
    "clang clang"
    "curl curl"
    "jq jq"
    "npm npm"
    "openssl openssl"
    "python3 python3"
    "setpriv util-linux"
    "flock util-linux"
)
missing=()
for pair in "${wanted[@]}"; do
    command -v "${pair%% *}" >/dev/null || missing+=("${pair#* }")
done
python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)

if ! command -v apt-get >/dev/null; then apt=()
elif [ "$(id -u)" -eq 0 ]; then apt=(env DEBIAN_FRONTEND=noninteractive)
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then apt=(sudo -n env DEBIAN_FRONTEND=noninteractive)
else apt=(); fi

# Debian's own 15 brings pg_waldump and replay of the same build; elsewhere 15 comes as the others do.
if [ "$what" = all ] && [ ! -x /usr/lib/postgresql/15/bin/postgres ] && [ ${#apt[@]} -gt 0 ]; then
    "${apt[@]}" apt-get update -qq
    if apt-cache show postgresql-15 >/dev/null 2>&1; then missing+=(postgresql-15); fi
fi

if [ ${#missing[@]} -gt 0 ]; then
    [ ${#apt[@]} -gt 0 ] || die "missing packages: ${missing[*]}. Install them (apt-get install ${missing[*]}) and run this again."
    say "installing ${missing[*]}"
    "${apt[@]}" apt-get update -qq
    if [[ " ${missing[*]} " = *" postgresql-15 "* ]]; then
        # We want the programs, not a server of the distribution's on port 5432.
        "${apt[@]}" apt-get install -y -qq --no-install-recommends postgresql-common >/dev/null
        "${apt[@]}" sed -i 's/^#\?create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
    fi
    "${apt[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

command -v cargo >/dev/null || die "cargo is missing: install Rust $(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$scripts/../Cargo.toml") or newer with rustup"

if [ "$what" = demo ]; then
    "$scripts/install-postgres.sh" "${DEMO_MAJOR:-18}"
else
    "$scripts/install-postgres.sh" all
    "$scripts/install-versitygw.sh"
    "$scripts/install-versitygw.sh" unconditional
    "$scripts/install-kubernetes.sh" etcd kube-apiserver kube-controller-manager kubectl
    "$scripts/install-helm.sh"
fi
