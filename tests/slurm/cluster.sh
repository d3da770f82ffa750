#!/usr/bin/env bash
# tests/slurm/cluster.sh COMMAND...: run a command with a temporary SLURM cluster of one node, this machine.
# Needs root, and Debian's slurm-wlm and munge, which it installs with apt. It uses its own files, ports and keys and
# does not touch other clusters. With `bash` as the command, sbatch and squeue in that shell use this cluster.
set -euo pipefail
host=$(hostname -s)

refuse() {
    echo "error: $1" >&2
    exit 2
}

install() {
    command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null && return
    command -v apt-get >/dev/null ||
        refuse "SLURM is not installed and there is no apt: install slurmctld, slurmd and munged yourself"
    export DEBIAN_FRONTEND=noninteractive
    echo "installing slurm-wlm and munge"
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends slurm-wlm munge; } >/dev/null 2>&1 ||
        refuse "cannot install slurm-wlm and munge: see the errors of 'apt-get install slurm-wlm munge'"
}

start() {
    state=$(mktemp -d /var/tmp/ldm-slurm.XXXXXX)
    mkdir "$state/ctld" "$state/d"
    chmod 755 "$state"
    (umask 077 && dd if=/dev/urandom of="$state/key" bs=1024 count=1 status=none)
    number=$(shuf -n 1 -i 1-1300)
    export SLURM_CONF="$state/slurm.conf"
    # 4 CPUs, whatever the machine has: most jobs only sleep. The ports of the ranks depend on the job number.
    cat > "$SLURM_CONF" <<CONF
ClusterName=ldmtest
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$((30000 + 2 * number))
SlurmdPort=$((30001 + 2 * number))
FirstJobId=$((7 * number))
AuthType=auth/munge
AuthInfo=socket=$state/munge.socket
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
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=4 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
    munged --socket="$state/munge.socket" --key-file="$state/key" --pid-file="$state/munged.pid" \
        --log-file="$state/munged.log" --seed-file="$state/munged.seed"
    slurmctld -c
    slurmd -c
    for _ in $(seq 60); do
        [ "$(sinfo -h -o %T 2>/dev/null)" = idle ] && return
        sleep 1
    done
    tail -n 5 "$state"/*.log >&2
    refuse "the cluster did not start: see the end of its logs above"
}

running() { # the process exists and is not a zombie
    [ -e "/proc/$1" ] && ! grep -qs '^State:.*Z' "/proc/$1/status"
}

stop() { # the command first, after a signal, then the jobs, then the daemons
    trap '' INT TERM
    [ -z "${command:-}" ] || kill "$command" 2>/dev/null || true
    if sinfo >/dev/null 2>&1; then
        squeue -h -o %A | xargs -r scancel --full --signal=KILL 2>/dev/null || true
        squeue -h -o %A | xargs -r scancel 2>/dev/null || true
        for _ in $(seq 60); do
            [ -z "$(squeue -h 2>/dev/null)" ] && break
            sleep 0.5
        done
    fi
    for file in "$state"/slurmd.pid "$state"/slurmctld.pid "$state"/munged.pid; do
        [ -s "$file" ] || continue
        pid=$(cat "$file")
        kill "$pid" 2>/dev/null || true
        for _ in $(seq 40); do
            running "$pid" || break
            sleep 0.25
        done
    done
    rm -rf "$state"
}

[ $# -gt 0 ] || refuse "give a command to run: $0 COMMAND..."
[ "$(id -u)" = 0 ] || refuse "starting a SLURM cluster needs root: run this as root, or in a container"
install
trap stop EXIT
start
"$@" <&0 & # in the foreground, bash would handle signals only after the command ends
command=$!
wait "$command"
