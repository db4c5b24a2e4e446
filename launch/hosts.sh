# shellcheck shell=bash
# Which hosts and slots a run uses, and whether they can: options, hostfile, filters, checks. Sourced by launch/on_hosts.sh.

hosts=()
declare -A slots_of=()
ranks=0
include=""
exclude=""
ssh_options=()
address=""
port=""
# A folder of this run, here.
folder=""

# read_options WORD ...: sets `options` to how many of the words are options.
read_options() {
    options=0
    while (($# > 0)) && [[ "$1" == -* ]]; do
        (($# >= 2)) || fail "$1: no such option, or no value after it; $USAGE"
        case "$1" in
            --include) include="$2" ;;
            --exclude) exclude="$2" ;;
            --ssh-port)
                [[ "$2" =~ ^[1-9][0-9]{0,4}$ ]] || fail "--ssh-port=$2: must be a port; $USAGE"
                ssh_options=(-p "$2" "${ssh_options[@]}")
                ;;
            --ssh-options) read -ra more <<<"$2"; ssh_options+=("${more[@]}") ;;
            *) own_option "$@" || fail "$1: no such option; $USAGE" ;;
        esac
        shift 2
        options=$((options + 2))
    done
    [[ -z "$include" || -z "$exclude" ]] || fail "--include and --exclude: give one of them"
}

# read_hosts FILE: sets `hosts`, in the order of the file, and `slots_of` each; or names the line that is wrong.
read_hosts() {
    local line number=0 name
    while IFS= read -r line || [[ -n "$line" ]]; do
        number=$((number + 1))
        line="${line%$'\r'}"
        [[ ! "${line%%#*}" =~ ^[[:space:]]*$ ]] || continue
        [[ "${line%%#*}" =~ ^[[:space:]]*([A-Za-z0-9][A-Za-z0-9._:@-]*)[[:space:]]+slots[[:space:]]*=[[:space:]]*([1-9][0-9]*)([[:space:]]+max[_-]slots[[:space:]]*=[[:space:]]*[0-9]+)?[[:space:]]*$ ]] ||
            fail "HOSTFILE=$1: line $number is '$line', must be 'NAME slots=N'"
        name="${BASH_REMATCH[1]}"
        [[ -z "${slots_of[$name]:-}" ]] ||
            fail "HOSTFILE=$1: line $number names $name again; give each host one line with all its slots"
        hosts+=("$name")
        slots_of[$name]="$(seq -s ' ' 0 "$((BASH_REMATCH[2] - 1))")"
    done <"$1"
    ((${#hosts[@]} > 0)) || fail "HOSTFILE=$1: names no host; write a line 'NAME slots=N' for each"
}

# choose_slots: apply --include or --exclude as DeepSpeed does: hosts stay in the order of the file, slots are sorted and
# count once, and a host that is named with slots and without is named with those slots alone. Sets `ranks`.
choose_slots() {
    local host slot kept left=()
    local -A named=()
    read_filter
    for host in "${hosts[@]}"; do
        kept=""
        for slot in ${slots_of[$host]}; do
            if is_chosen "$host" "$slot"; then
                kept+=" $slot"
                ranks=$((ranks + 1))
            fi
        done
        slots_of[$host]="${kept# }"
        if [[ -n "$kept" ]]; then left+=("$host"); fi
    done
    ((ranks > 0)) || fail "--exclude=$exclude: leaves no slot"
    hosts=("${left[@]}")
}

# read_filter: sets `named` of the caller to the slots that the filter names of each of its hosts; " ": all.
read_filter() {
    local word="--include=$include" part parts host slot
    if [[ -n "$exclude" ]]; then word="--exclude=$exclude"; fi
    [[ -n "$include$exclude" ]] || return 0
    [[ "${hosts[*]}" != *@* ]] || fail "$word: @ separates hosts there, and stands in names of HOSTFILE; give the user in ~/.ssh/config"
    IFS=@ read -ra parts <<<"$include$exclude"
    for part in "${parts[@]}"; do
        [[ "$part" =~ ^[^:]+(:[0-9]{1,6}(,[0-9]{1,6})*)?$ ]] || fail "$word: '$part' must be NAME or NAME:SLOT,SLOT,..."
        host="${part%%:*}"
        [[ -n "${slots_of[$host]:-}" ]] || fail "$word: HOSTFILE has no host $host"
        named[$host]="${named[$host]:- }"
        [[ "$part" == *:* ]] || continue
        for slot in $(tr , ' ' <<<"${part#*:}"); do
            [[ " ${slots_of[$host]} " == *" $((10#$slot)) "* ]] || fail "$word: host $host has no slot $((10#$slot))"
            named[$host]+="$((10#$slot)) "
        done
    done
}

is_chosen() {
    local is_named=""
    if [[ "${named[$1]:-}" == " " || "${named[$1]:-}" == *" $2 "* ]]; then is_named=yes; fi
    if [[ -n "$include" ]]; then [[ -n "$is_named" ]]; else [[ -z "$is_named" ]]; fi
}

words_of_hosts() {
    local host words=""
    for host in "${hosts[@]}"; do words+="; $host slots ${slots_of[$host]// /,}"; done
    printf '%s ranks: %s' "$ranks" "${words#; }"
}

# check_hosts CONFIG: every host answers and has what ranks need, or is named. Sets `address` and `port`, where ranks meet:
# on the first host.
check_hosts() {
    local host answer script
    [[ "${MASTER_PORT:-1}" =~ ^[1-9][0-9]{0,4}$ ]] || fail "MASTER_PORT=$MASTER_PORT: must be a port"
    mkdir "$folder/answers"
    printf -v script '%q ' check_this_host "$PWD" "$ROOTS_HOME" "$PYTHON" "$1" "${MASTER_PORT:-}"
    on_hosts "$(declare -f check_this_host free_port); $script" "$folder/answers"
    for host in "${hosts[@]}"; do
        answer="$(sed -n 's/^roots: //p' "$folder/answers/$host")"
        [[ -n "$answer" ]] || fail_without_answer "$host" "$(tail -n 1 "$folder/answers/$host.errors" | tr -d '\r')"
        [[ "$answer" == "ok "* ]] || fail "host $host: $answer"
    done
    read -r _ port address _ <<<"$(sed -n 's/^roots: //p' "$folder/answers/${hosts[0]}")"
    address="${MASTER_ADDR:-$address}"
    [[ -n "$address" ]] || fail "host ${hosts[0]}: \`hostname -I\` names no address; set MASTER_ADDR to one that all hosts reach"
}

# check_this_host FOLDER CHECKOUT PYTHON CONFIG PORT: runs there. Prints what is missing, or `ok`; on the first host also a
# free port and the addresses.
check_this_host() {
    local port=""
    if ! cd "$1" 2>/dev/null; then
        echo "roots: no folder $1 there: ROOTS and the run need the same paths on every host"
    elif [[ ! -f "$2/launch/rank.py" ]]; then
        echo "roots: no checkout of ROOTS in $2 there: put it at the same path as here"
    elif [[ ! -x "$3" ]]; then
        echo "roots: no $3 there: make the environment at the same path as here"
    elif [[ ! -f "$4" ]]; then
        echo "roots: CONFIG=$4: no such file there"
    elif ((number == 0)) && ! port="$(free_port "$3" "$5")"; then
        echo "roots: MASTER_PORT=$5: is in use there; choose another, or unset it to have a free one found"
    else
        echo "roots: ok $port $(hostname -I 2>/dev/null)"
    fi
}

# free_port PYTHON [PORT]: prints PORT, or one that nobody uses; false if it is in use. Below those that connections get.
free_port() {
    "$1" -c '
import random, socket, sys
for port in map(int, sys.argv[1:] if sys.argv[1] else random.sample(range(20000, 30000), 100)):
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("", port))
            one.listen()
        except OSError:
            continue
        sys.exit(print(port))
sys.exit(1)' "$2"
}

# fail_without_answer HOST REASON: ssh has a reason; the fix depends on it.
fail_without_answer() {
    local fix="start it, or leave it out by --exclude $1"
    case "$2" in
        *"Permission denied"*) fix="give it your key by \`ssh-copy-id $1\`: ranks are started over ssh that asks for no password" ;;
        *"Host key verification failed"*) fix="look at its key and accept it once by \`ssh $1 true\`" ;;
        *"Could not resolve hostname"*) fix="correct the name in HOSTFILE, or make it known" ;;
    esac
    fail "host $1 does not answer to \`ssh -o BatchMode=yes $1 true\` ($2): $fix"
}
