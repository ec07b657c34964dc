# Read by the scripts beside it: containers of our own, on a machine that reaches no registry of images.
# shellcheck shell=sh
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/tools.sh"

place=$tools/containers
debian=docker.io/library/debian:bookworm-slim
rust=docker.io/library/rust:1.95-bookworm

# Podman with a storage of its own, and limits that hold inside another container too.
containers() {
    [ "$(id -u)" = 0 ] || fail "runs as root: it makes root file systems and containers"
    need podman podman buildah runc
    need catatonit catatonit
    need mmdebstrap mmdebstrap
    need python3 python3
    mkdir -p "$place"
    cat >"$place/containers.conf" <<'END'
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
END
    cat >"$place/storage.conf" <<END
[storage]
driver = "overlay"
graphroot = "$place/storage"
runroot = "$place/run"
END
    export CONTAINERS_CONF="$place/containers.conf" CONTAINERS_STORAGE_CONF="$place/storage.conf"
}

# The images that the Dockerfile and the tests begin from, under their public names: Debian's packages, with
# an application's Python and a systemd; and the same with this machine's Rust toolchain, mounted at build time.
base_images() {
    podman image exists "$rust" && return
    say "base images"
    sources=/etc/apt/sources.list.d/debian.sources
    [ -e "$sources" ] || sources=/etc/apt/sources.list
    packages=ca-certificates,gcc,libc6-dev,python3,systemd,systemd-sysv,dbus
    mmdebstrap --quiet --variant=minbase --include="$packages" bookworm "$place/debian.tar" "$sources"
    podman import -q "$place/debian.tar" "$debian"
    path=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    podman import -q --change "ENV PATH=$path" "$place/debian.tar" "$rust"
    rm "$place/debian.tar"
}

# The image, built from the Dockerfile as it is, unless it was from these very sources before. The toolchain,
# crates that were fetched before and the CA roots that package registries are reached with are this machine's.
image() {
    cd "$root" || exit
    sources=$({
        git ls-files -s Dockerfile .dockerignore .cargo Cargo.toml Cargo.lock src benches
        git diff HEAD -- Dockerfile .dockerignore .cargo Cargo.toml Cargo.lock src benches
    } | sha256sum)
    if [ "$(cat "$place/image.sum" 2>/dev/null)" = "$sources" ] && podman image exists hookward:0.1.0; then
        return
    fi
    say "the image"
    registry=${CARGO_HOME:-$HOME/.cargo}/registry
    mkdir -p "$registry"
    podman build -q --format docker --network host --pull=never --tag hookward:0.1.0 \
        --build-arg "HOOKWARD_REVISION=$(git rev-parse --short HEAD)" \
        --volume "$(rustc --print sysroot):/usr/local/rust:ro" \
        --volume "$registry:/root/.cargo/registry" \
        --volume /etc/ssl/certs/ca-certificates.crt:/etc/ssl/certs/ca-certificates.crt:ro \
        .
    echo "$sources" >"$place/image.sum"
}
