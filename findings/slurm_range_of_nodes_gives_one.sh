#!/usr/bin/env bash
# Slurm gives one of two idle nodes to a job that asks for --nodes=1-2 and one task a node, and both without the latter.
#
# Slurm 22.05.8 of Debian 12, one machine that is two nodes. Needs root and apt's package lists; installs nothing outside of
# a temporary folder.
# Expected: both nodes: sbatch's manual has a job get as many nodes as possible within the range it asks for.
# Seen:     it is so for --nodes=1-2, and with two tasks a node. With --ntasks-per-node=1 the job has one task in all, and so one
#           node, --exclusive or not. A job that is to start one launcher a node so stays on the smallest number it allows.
# Output seen:
#   --nodes=1-2: 2 nodes
#   --nodes=1-2 --ntasks-per-node=2: 2 nodes
#   --nodes=1-2 --ntasks-per-node=1: 1 nodes
#   --nodes=1-2 --ntasks-per-node=1 --exclusive: 1 nodes
#   --nodes=2 --ntasks-per-node=1: 2 nodes
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
# given OPTION...: how many nodes a job with these options gets while both are idle.
given() {
    local job told tries
    job="$(sbatch --parsable --output=/dev/null "$@" --wrap=true)"
    for ((tries = 0; tries < 300; tries++)); do
        told="$(scontrol --oneliner show job "$job")"
        [[ "$told" != *JobState=COMPLETED* ]] || break
        sleep 0.1
    done
    told="${told##* NumNodes=}"
    echo "$*: ${told%% *} nodes"
}

expected='--nodes=1-2: 2 nodes
--nodes=1-2 --ntasks-per-node=2: 2 nodes
--nodes=1-2 --ntasks-per-node=1: 1 nodes
--nodes=1-2 --ntasks-per-node=1 --exclusive: 1 nodes
--nodes=2 --ntasks-per-node=1: 2 nodes'
seen="$(given --nodes=1-2
given --nodes=1-2 --ntasks-per-node=2
given --nodes=1-2 --ntasks-per-node=1
given --nodes=1-2 --ntasks-per-node=1 --exclusive
given --nodes=2 --ntasks-per-node=1)"
printf '%s\n' "$seen"
[[ "$seen" == "$expected" ]] || { echo "changed: this is not what the header says" >&2; exit 1; }
