#!/usr/bin/env bash
# manifests.sh [DIRECTORY]: writes what the charts print with their defaults, for those who use no helm. `make manifests`.
. "$(dirname "${BASH_SOURCE[0]}")/cache-dir.sh"

root=$(cd "$scripts/.." && pwd)
out=${1:-$root/manifests}
helm=$cache/helm/helm
[ -x "$helm" ] || helm=$(command -v helm) || die "helm is not here: run scripts/install-helm.sh"
mkdir -p "$out"

print() { # FILE CHART RELEASE NAMESPACE [OPTION...]
    local file=$out/$1 chart=$2 release=$3 namespace=$4
    shift 4
    {
        echo "# Printed from charts/$chart by make manifests: do not edit."
        # Tests of an installation are helm's.
        "$helm" template "$release" "$root/charts/$chart" --namespace "$namespace" --skip-tests "$@"
    } >"$file.new"
    mv "$file.new" "$file"
    say "$file"
}
print crds.yaml palimpsest-crds palimpsest-crds palimpsest-system
print operator.yaml palimpsest palimpsest palimpsest-system
print pool.yaml palimpsest-pool main storage --values "$root/manifests/examples/pool-values.yaml"
