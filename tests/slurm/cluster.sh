#!/usr/bin/env bash
# A SLURM cluster of one node, this machine, for the tests: start | stop. Needs root, and Debian's slurm-wlm and munge.
set -euo pipefail
host=$(hostname -s)
state=/var/tmp/ldm-slurm
conf=/etc/slurm/slurm.conf

start() {
    if [ -s "$conf" ] && ! grep -q '^ClusterName=ldmtest$' "$conf"; then
        echo "this machine has a SLURM of its own ($conf): the test starts none beside it" >&2
        exit 1
    fi
    if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
        export DEBIAN_FRONTEND=noninteractive
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends slurm-wlm munge; } >/dev/null
    fi
    stop
    mkdir -p /etc/slurm "$state/ctld" "$state/d"
    cat > "$conf" <<CONF
ClusterName=ldmtest
SlurmctldHost=$host(127.0.0.1)
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SlurmUser=root
SlurmdUser=root
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobRequeue=1
StateSaveLocation=$state/ctld
SlurmdSpoolDir=$state/d
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd.pid
SlurmctldLogFile=$state/slurmctld.log
SlurmdLogFile=$state/slurmd.log
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
    if ! pgrep -x munged >/dev/null; then
        mkdir -p /etc/munge /run/munge /var/log/munge /var/lib/munge
        [ -s /etc/munge/munge.key ] || dd if=/dev/urandom of=/etc/munge/munge.key bs=1024 count=1 status=none
        chown -R munge: /etc/munge /run/munge /var/log/munge /var/lib/munge
        chmod 700 /etc/munge /var/log/munge /var/lib/munge
        chmod 755 /run/munge
        chmod 400 /etc/munge/munge.key
        su -s /bin/sh munge -c "$(command -v munged)"
    fi
    slurmctld -c
    slurmd -c
    for _ in $(seq 60); do
        [ "$(sinfo -h -o %T 2>/dev/null)" = idle ] && return
        sleep 1
    done
    echo "the cluster did not come up; its logs are in $state:" >&2
    tail -5 "$state"/*.log >&2
    exit 1
}

stop() { # the two daemons that `start` left, by the numbers they wrote down
    for file in "$state"/slurmd.pid "$state"/slurmctld.pid; do
        [ -s "$file" ] || continue
        pid=$(cat "$file")
        kill "$pid" 2>/dev/null || true
        for _ in $(seq 20); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.5
        done
        rm -f "$file"
    done
}

case "${1:-}" in
    start) start ;;
    stop) stop ;;
    *)
        echo "usage: $0 start|stop" >&2
        exit 2
        ;;
esac
