#!/usr/bin/env bash
# sbatch refuses an --exclude file that names no node, and takes an empty --exclude.
#
# Slurm 22.05.8 of Debian 12, one machine that is two nodes. Needs root and apt's package lists; installs nothing outside of
# a temporary folder.
# Expected: --exclude=./FILE leaves out the nodes in the file: none where it is empty, as on a day on which a check of the nodes
#           that writes it has found nothing.
# Seen:     "sbatch: error: Hostlist is empty!", and no job, on just the day on which all nodes are well. `--exclude=` takes
#           nothing away, and is accepted.
# Output seen:
#   --exclude=./one-node: accepted
#   --exclude=./empty: refused
#   --exclude=: accepted
set -euo pipefail

folder="$(mktemp -d)"
daemons=()
trap 'kill "${daemons[@]}" 2>/dev/null; wait; rm -rf "$folder"' EXIT
chmod 755 "$folder"
mkdir "$folder"/{packages,root,state,node1,node2}
slurm=22.05.8-4+deb12u3
(cd "$folder/packages" && apt-get download -qq {slurmctld,slurmd,slurm-client,slurm-wlm-basic-plugins}="$slurm" \
    munge libmunge2 libhwloc15 libnuma1 2>"$folder/log")
for package in "$folder"/packages/*.deb; do dpkg -x "$package" "$folder/root"; done
libraries="$folder/root/usr/lib/$(uname -m)-linux-gnu"
export LD_LIBRARY_PATH="$libraries:$libraries/slurm-wlm" PATH="$folder/root/usr/bin:$folder/root/usr/sbin:$PATH"
export SLURM_CONF="$folder/slurm.conf"

head -c 1024 /dev/urandom >"$folder/key"
chmod 400 "$folder/key"
cat >"$SLURM_CONF" <<CONF
ClusterName=two
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=26901
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/socket
PluginDir=$libraries/slurm-wlm
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/%n/pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
NodeName=node1 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=26902 CPUs=4
NodeName=node2 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=26903 CPUs=4
PartitionName=all Nodes=node1,node2 Default=YES
CONF
munged --foreground --key-file="$folder/key" --socket="$folder/socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/seed" >"$folder/munged.out" 2>&1 &
daemons+=($!)
slurmctld -D >"$folder/slurmctld.log" 2>&1 &
daemons+=($!)
for node in node1 node2; do
    slurmd -D -N "$node" -d "$folder/root/usr/sbin/slurmstepd-wlm" >"$folder/$node.log" 2>&1 &
    daemons+=($!)
done

for ((tries = 0; tries < 300; tries++)); do
    [[ "$(sinfo --noheader --states=idle --format=%D 2>/dev/null)" == 2 ]] && break
    sleep 0.1
done
# told OPTION: what sbatch makes of it.
told() {
    if sbatch --parsable --output=/dev/null "$1" --wrap=true >>"$folder/log" 2>&1; then
        echo "$1: accepted"
    else
        echo "$1: refused"
    fi
}

cd "$folder"
touch empty
echo node1 >one-node
expected='--exclude=./one-node: accepted
--exclude=./empty: refused
--exclude=: accepted'
seen="$(told --exclude=./one-node
told --exclude=./empty
told --exclude=)"
printf '%s\n' "$seen"
[[ "$seen" == "$expected" ]] || { echo "changed: this is not what the header says" >&2; tail -n 3 "$folder/log" >&2; exit 1; }
