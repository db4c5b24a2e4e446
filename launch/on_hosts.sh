# shellcheck shell=bash
# A run on several hosts, for launch/hostfile.sh, torchrun.sh and mpirun.sh. Sourced, not run.
#
# Whoever sources this defines USAGE, VIA (the launcher's name for `roots launch --via`), `check_tools` (what the launcher
# needs here), `start_launcher CONFIG ...` (starts it in the background and sets `launcher`), and `own_option OPTION VALUE`
# (its own options; false: not one of them).
#
# Every rank leaves its process number and its exit code in a folder of this run on its host (launch/rank.py), and every
# process of the run has the name of that folder in its environment. By these, signals reach ranks and not launchers, the
# exit code is that of the rank that failed first, and nothing stays behind, whatever the launcher itself would do.

readonly PASSED_ON='^(PYTHON|NCCL_|GLOO_|UCX_|OMP_|CUDA_|TORCH_|TORCHINDUCTOR_|ROOTS_|WANDB_|HF_)'
readonly NOT_PASSED='^(PYTHON|CUDA_VISIBLE_DEVICES|ROOTS_HOME|ROOTS_VENV|ROOTS_CONSTRAINTS|ROOTS_LAUNCHER|ROOTS_RANK_RECORDS)$'
readonly SECRET='(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL)'
readonly NOTHING_TO_SAVE="stopped before there were ranks, nothing to save"
# When a rank has failed, how long the others have until they are told, and then until they are killed; and that after a
# rank has saved, or a host is lost: others may still save, or wait for the watchdog.
readonly END_SECONDS=10 KILL_SECONDS=30 SAVING_SECONDS=600

# What find_hosts is asked for, and what it finds: the hosts in their order, the slots of each, where ranks meet.
asked=()
filtered=""
hosts=()
declare -A slots_of=()
ranks=0
ssh=()
address=""
port=""
# A folder of this run, here.
folder=""
launcher=""
# What is asked before there is a launcher.
looking=""
guard=""
lookout=""
# The folder of records, and on a host its own in that.
records=""
here=""
stopped=""
# The ends of ranks after which the launcher starts none again, as a regular expression.
final="[1-9][0-9]*|killed"
# How long a launcher may outlive its ranks on a host.
outlives="$KILL_SECONDS"

# launch_on_hosts [option ...] HOSTFILE CONFIG ...: all that the three scripts do. Exits.
launch_on_hosts() {
    trap 'forward INT' INT
    trap 'forward TERM' TERM HUP
    trap 'forward USR1' USR1
    help_if_asked "$@"
    read_options "$@"
    shift "$options"
    (($# >= 2)) || fail "$USAGE"
    refuse_options "options stand before HOSTFILE" "${@:2}"
    local hostfile="$1" code=0
    [[ -f "$1" ]] || fail "HOSTFILE=$1: no such file; $USAGE"
    [[ -f "$2" ]] || fail "CONFIG=$2: no such file; $USAGE"
    shift
    # When the job began, for stop.wall_clock.
    ROOTS_JOB_START="${ROOTS_JOB_START:-$(printf '%(%s)T' -1)}"
    export ROOTS_JOB_START
    folder="$(mktemp -d)"
    trap 'rm -rf "$folder"' EXIT
    command -v ssh >/dev/null 2>&1 || fail "no ssh on PATH: run \`apt-get install openssh-client\`"
    use_python
    set_network
    check_tools
    find_hosts "$hostfile" "$@"
    # A name of this run alone, also where hosts share /tmp.
    records="/tmp/roots-ranks-$(basename "$folder")-$$"
    tell "$(words_of_hosts)"
    start "$@"
    wait_for_launcher || code=$?
    end_run "$SAVING_SECONDS"
    code="$(decide_code "$code")"
    on_hosts "rm -rf '$records'" >/dev/null || true
    exit "$code"
}

# read_options WORD ...: sets `options` to how many of the words are options.
# shellcheck disable=SC2034 # the launchers' scripts read them
read_options() {
    options=0
    while (($# > 0)) && [[ "$1" == -* ]]; do
        (($# >= 2)) || fail "$1: no such option, or no value after it; $USAGE"
        case "$1" in
            --include | --exclude)
                if [[ -n "$2" ]]; then filtered=yes; fi
                asked+=("$1=$2")
                ;;
            --ssh-port | --ssh-options) asked+=("$1=$2") ;;
            --checks)
                [[ "$2" == on || "$2" == off ]] || fail "--checks=$2: must be on or off; $USAGE"
                asked+=("$1=$2")
                ;;
            *) own_option "$@" || fail "$1: no such option; $USAGE" ;;
        esac
        shift 2
        options=$((options + 2))
    done
}

# look COMMAND ...: run it, its output into the file `found`, and return its code; a signal ends it, and this script, at once.
look() {
    local code=0
    "$@" >"$folder/found" </dev/null &
    looking=$!
    if [[ -n "$stopped" ]]; then forward "$stopped"; fi
    # bash would say in words of its own what ended it.
    while kill -0 "$looking" 2>/dev/null; do wait "$looking" 2>/dev/null || true; done
    wait "$looking" 2>/dev/null || code=$?
    looking=""
    if [[ -n "$stopped" ]]; then
        tell "$NOTHING_TO_SAVE"
        exit 3
    fi
    return "$code"
}

# find_hosts HOSTFILE CONFIG ...: what a look at the hosts finds, or its complaints and the end. Asked from /, as has_roots is.
# shellcheck disable=SC2034 # as above
find_hosts() {
    local kind rest
    look env -C / "$PYTHON" -m roots.launching --via "$VIA" --scripts "$ROOTS_HOME/launch" --folder "$PWD" \
        --hostfile "$1" "${asked[@]}" -- "${@:2}" || exit "$?"
    while read -r kind rest; do
        case "$kind" in
            ssh) ssh+=("$rest") ;;
            meet) read -r address port <<<"$rest" ;;
            host)
                hosts+=("${rest%% *}")
                slots_of["${rest%% *}"]="${rest#* }"
                ranks=$((ranks + $(wc -w <<<"$rest") - 1))
                ;;
        esac
    done <"$folder/found"
}

words_of_hosts() {
    local host words=""
    for host in "${hosts[@]}"; do words+="; $host slots ${slots_of[$host]// /,}"; done
    printf '%s ranks: %s' "$ranks" "${words#; }"
}

tell() {
    printf '%s: %s\n' "$(basename "$0")" "$1" >&2
}

# on_host NUMBER SCRIPT: run it by bash on that host, which knows the folder of records there as `here`.
on_host() {
    # The name of the host there, which need not be that of HOSTFILE.
    "${ssh[@]}" "${hosts[$1]}" bash -s <<<"number=$1; records='$records'; here=\"\$records/\$(uname -n)\"; $2"
}

# on_hosts SCRIPT: run it on every host that is not lost, all at once.
on_hosts() {
    local number host
    (
        for number in "${!hosts[@]}"; do
            host="${hosts[$number]}"
            if [[ -e "$folder/lost.$host" ]]; then continue; fi
            on_host "$number" "$1" &
        done
        wait
    )
}

# write_variables: what the ranks on every host get, into a file of lines `NAME=value`, each value fit to stand between
# double quotes of a shell, where four signs keep a meaning.
write_variables() {
    local name value
    for name in $(compgen -e); do
        [[ "$name" =~ $PASSED_ON && ! "$name" =~ $NOT_PASSED ]] || continue
        if [[ "$name" =~ $SECRET ]]; then
            tell "$name looks like a secret and stays on this host"
            continue
        fi
        # shellcheck disable=SC2001 # a class of signs, each kept
        value="$(sed 's/[\\"$`]/\\&/g' <<<"${!name}")"
        if [[ "$value" != *$'\n'* ]]; then printf '%s=%s\n' "$name" "$value" >>"$folder/variables"; fi
    done
    # There a rank watches the sshd that holds the connection from here.
    printf 'ROOTS_RANK_RECORDS=%s/%%h\nROOTS_LAUNCHER=ssh\n' "$records" >>"$folder/variables"
}

# start CONFIG ...: job control gives the launcher a process group of its own: Ctrl-C must reach the ranks, and it would
# kill them. The guard outlives this script if that is killed, and tells the ranks.
start() {
    set -m
    start_launcher "$@"
    { while grep -qs 'State:.[^ZX]' "/proc/$$/status"; do sleep 1; done && end_run "$SAVING_SECONDS" && on_hosts "rm -rf '$records'" && rm -rf "$folder"; } >/dev/null 2>&1 &
    guard=$!
    { for number in "${!hosts[@]}"; do look_at "$number" & done; wait; } &
    lookout=$!
    set +m
    # A signal that came before there was a launcher.
    if [[ -n "$stopped" ]]; then forward "$stopped"; fi
}

# start_by_ssh FUNCTION CONFIG ...: on each host, the script that `FUNCTION NUMBER CONFIG ...` prints; with the name of the
# host before every line that it says, as pdsh has it.
start_by_ssh() {
    {
        local number pid pids=() code=0
        for number in "${!hosts[@]}"; do
            say_as "${hosts[$number]}" on_host "$number" "$("$1" "$number" "${@:2}")" &
            pids+=($!)
        done
        for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
        exit "$code"
    } &
    launcher=$!
}

# say_as NAME COMMAND ...
say_as() {
    { { "${@:2}" 2>&3 | sed -u "s/^/$1: /" >&4; } 3>&1 | sed -u "s/^/$1: /" >&2; } 4>&1
}

# there COMMAND ...: prints the script that runs it on a host, in this folder and with the variables.
there() {
    sed -E 's/^([^=]*)=(.*)$/export \1="\2"/' "$folder/variables"
    printf 'cd %q && exec' "$PWD"
    printf ' %q' "$@"
    printf ' </dev/null\n'
}

# The functions down to look_here run on the hosts.

# processes_of_run: all processes of this run on this host, launchers too.
processes_of_run() {
    grep -lsF "ROOTS_RANK_RECORDS=$records/" /proc/[0-9]*/environ | cut -d/ -f3
}

# live_ranks: those that have begun and not recorded their end.
live_ranks() {
    local file all
    all="$(processes_of_run)"
    for file in "$here"/*.pid; do
        if [[ -f "$file" && ! -f "${file%.pid}.code" ]]; then grep -xF "$(<"$file")" <<<"$all"; fi
    done
}

# tell_here SIGNAL: prints a line for each rank that was told.
tell_here() {
    local pid
    for pid in $(live_ranks); do kill -s "$1" "$pid" && echo told; done
}

# end_here SECONDS: ranks save and end when they are told, launchers after them; whoever does not in time is killed, and so
# is who is stopped, whom nothing else reaches.
end_here() {
    local pid all some told=" "
    while all="$(processes_of_run)" && [[ -n "$all" ]]; do
        some="$(live_ranks)"
        for pid in ${some:-$all}; do
            if [[ "$told" != *" $pid "* ]]; then kill -s TERM "$pid"; fi
            told+="$pid "
            if grep -qs 'State:.[Tt]' "/proc/$pid/status"; then kill -s KILL "$pid"; fi
        done
        # shellcheck disable=SC2086 # a list
        if ((SECONDS >= $1)); then kill -s KILL $all; fi
        sleep 0.5
    done
} 2>/dev/null

# killed_rank: says so when one is gone that has not recorded its end.
killed_rank() {
    local file
    for file in "$here"/*.pid; do
        if [[ -f "$file" ]] && ! grep -qs 'State:.[^ZX]' "/proc/$(<"$file")/status" && [[ ! -f "${file%.pid}.code" ]]; then
            echo killed
            return
        fi
    done
}

# look_here FINAL SECONDS: says a code of a rank that FINAL matches, and, at its end, that all of the run has ended here. A
# launcher that outlives its ranks for so long is killed: where the link is cut, torchrun waits for ever, and Open MPI's
# daemon for as long as TCP does. Where hosts share /tmp, others have removed the records by then.
look_here() {
    local code begun="" ranked="" alone="$SECONDS"
    while sleep 2; do
        code="$(cat "$here"/*.code 2>/dev/null | sort -n | awk '$2 != 0 { print $2; exit }')"
        code="${code:-$(killed_rank)}"
        # Ends this when nobody reads.
        if [[ "$code" =~ ^($1)$ ]]; then echo "failed $code"; else echo; fi
        if compgen -G "$here/*.pid" >/dev/null; then ranked=yes; fi
        if [[ -z "$ranked" || -n "$(live_ranks)" ]]; then alone="$SECONDS"; fi
        if ((SECONDS - alone > $2)); then processes_of_run | xargs -r kill -s KILL; fi
        if [[ -n "$(processes_of_run)" ]]; then
            begun=yes
        elif [[ -n "$begun" ]]; then
            echo "ended ${code:-0} $(find "$here" -name '*.code' | wc -l)"
            return
        fi
    done
}

# look_at NUMBER: when something of that host has failed, or the host is lost, nothing must wait for it on the others.
look_at() {
    local host="${hosts[$1]}" line slots
    slots="$(wc -w <<<"${slots_of[$host]}")"
    while read -r line; do
        case "$line" in
            "" | "ended 0 $slots") continue ;;
            lost)
                : >"$folder/lost.$host"
                tell "host $host is lost: the connection to it broke off; ranks on other hosts save, if they can, and end"
                ;;
            *) if [[ ! -d "$folder/ending" ]]; then sleep "$END_SECONDS"; fi ;;
        esac
        if [[ "$line" == lost || "$line" == "failed 3" ]]; then end_others "$SAVING_SECONDS"; else end_others "$KILL_SECONDS"; fi
    done < <(on_host "$1" "$(declare -f processes_of_run live_ranks killed_rank look_here); look_here '$final' '$outlives'" 2>/dev/null || (($? != 255)) || echo lost)
}

# end_others SECONDS: end the run, and its launcher, which may wait for a host that is lost. One caller does.
end_others() {
    mkdir "$folder/ending" 2>/dev/null || return 0
    end_run "$1"
    sleep 5
    kill -s TERM -- "-$launcher" 2>/dev/null || return 0
    sleep 5
    kill -s KILL -- "-$launcher" 2>/dev/null || true
}

# end_run SECONDS: nothing of the run is left on any host, but on those that are lost.
end_run() {
    on_hosts "$(declare -f processes_of_run live_ranks end_here); end_here $1" >/dev/null 2>&1 || true
}

# forward SIGNAL: to the ranks alone; the launcher ends when they do. Before there are ranks there is nothing to save.
forward() {
    stopped="$1"
    if [[ -n "$looking" ]]; then kill -s TERM "$looking" 2>/dev/null || true; fi
    [[ -n "$launcher" ]] || return 0
    if [[ -z "$(on_hosts "$(declare -f processes_of_run live_ranks tell_here); tell_here $1" 2>/dev/null)" ]]; then
        kill -s TERM -- "-$launcher" 2>/dev/null || true
    fi
}

# A trapped signal ends `wait` early; the launcher's own code is what it gives when the process is gone.
wait_for_launcher() {
    local code=0
    while kill -0 "$launcher" 2>/dev/null; do wait "$launcher" || true; done
    wait "$launcher" || code=$?
    kill "$guard" 2>/dev/null || true
    kill -- "-$lookout" 2>/dev/null || true
    return "$code"
}

# decide_code CODE: the rank that failed first knows the reason. The launcher's own code, which may be 0 when it was killed, is
# only told.
decide_code() {
    local ended first lost begun
    # shellcheck disable=SC2016 # `here` is that of each host
    on_hosts 'cat "$here"/*.code' 2>/dev/null | sort -n >"$folder/codes" || true
    ended="$(wc -l <"$folder/codes")"
    first="$(awk '$2 != 0 { print $2; exit }' "$folder/codes")"
    # shellcheck disable=SC2016
    begun="$(on_hosts 'ls "$here"' 2>/dev/null)"
    lost="$(find "$folder" -name 'lost.*' | wc -l)"
    # Others have saved without a rank that was killed, or whose host is lost.
    if [[ "${first:-3}" == 3 ]] && ((lost > 0)); then
        echo 7
    elif [[ "$first" == 3 ]] && ((ended < ranks)); then
        tell "$((ranks - ended)) of $ranks ranks ended without an exit code: killed, perhaps for lack of memory"
        echo 7
    elif [[ -n "$first" ]]; then
        echo "$first"
    elif [[ -n "$stopped" && -z "$begun" ]]; then
        tell "$NOTHING_TO_SAVE"
        echo 3
    elif [[ -z "$begun" ]]; then
        tell "no rank has begun: $VIA ended with code $1, and has said above why"
        echo 1
    elif ((ended < ranks)); then
        tell "$((ranks - ended)) of $ranks ranks ended without an exit code: never started, or killed, perhaps for lack of memory"
        echo 7
    else
        echo 0
    fi
}
