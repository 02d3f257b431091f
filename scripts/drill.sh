# Shared by the drills that have executors lost and found: times, jobs that wait at a gate, and
# questions to the broker. Read in with `.` after common.sh; does nothing by itself.
# shellcheck disable=SC2034,SC2154  # what is set here is used by the drills, and the other way round

# drill_times [--long]: short times unless the defaults of the programs are asked for. Sets $long,
# $suspect_ms, $lost_ms, $grace_ms, and $times, the broker's flags.
drill_times() {
    long=
    case ${1-} in
    '') suspect_ms=250 lost_ms=500 grace_ms=100 ;;
    --long) long=yes suspect_ms=2000 lost_ms=5000 grace_ms=1000 ;;
    *) fail "$1: give --long, or nothing for short times" ;;
    esac
    times="--suspect-after ${suspect_ms}ms --lost-after ${lost_ms}ms"
    times="$times --reconnect-grace ${grace_ms}ms"
}

need_jq() { need_program jq jq "the drills read JSON with it"; }

# lasts SECONDS: a fault lasts so long. For nothing else: what follows from it is waited for.
lasts() { sleep "$1"; }

# Milliseconds since the machine started, in steps of ten.
now_ms() { echo "$(now_cs)0"; }

# The job of the drills. It says that it began, waits at a gate without taking time of the machine,
# and says which attempt it was. Arguments: $dir, a name of the job, a gate for its first run, one
# for further ones. Into $dir/started: name, attempt, pid, running time of the machine in s. Into
# $dir/twice: whose earlier process lived when it began.
# shellcheck disable=SC2016  # the job's own shell expands it
waiter='
    gate=$3
    if [ -e "$1/live/$2" ]; then
        gate=$4
        read -r before <"$1/live/$2"
        state=X
        [ ! -e "/proc/$before/stat" ] || read -r _ _ state _ 2>/dev/null <"/proc/$before/stat"
        case $state in
        X | Z) ;;
        *) echo "$2 $before $$" >>"$1/twice" ;;
        esac
    fi
    echo $$ >"$1/live/$2"
    read -r up _ </proc/uptime
    echo "$2 $UCP_JOB_ATTEMPT $$ $up" >>"$1/started"
    read -r _ <"$1/gates/$gate" || :
    echo "$UCP_JOB_ATTEMPT"
'

# make_gates NAME…: the gates, all shut, and what jobs write to.
make_gates() {
    mkdir -p "$dir/live" "$dir/gates"
    : >"$dir/started"
    : >"$dir/twice"
    for gate in "$@"; do mkfifo "$dir/gates/$gate"; done
}

# open_gate NAME: lets everybody through who waits there now. Opened for both ways, it waits for
# nobody.
open_gate() { : <>"$dir/gates/$1"; }

# through GATE PID: opens the gate, again and again in a wait_until, until the process is gone.
through() {
    open_gate "$1"
    gone "$2"
}

# pid_of NAME [LINE]: the process of that job's start, the last one unless said otherwise.
pid_of() { grep "^$1 " "$dir/started" | tail -n "${2:-1}" | head -n 1 | cut -d' ' -f3; }

# starts NAME: how often that job began.
starts() { grep -c "^$1 " "$dir/started" || :; }

# began NAME COUNT: whether it began so often.
began() { [ "$(starts "$1")" -ge "$2" ]; }

# last_start_ms: when the last one of them all began, as now_ms.
last_start_ms() {
    tail -n +"${1:-1}" "$dir/started" | cut -d' ' -f4 | sort -n | tail -n 1 | tr -d . | sed 's/$/0/'
}

# submit_waiter NAME GATE AGAIN [FLAG…]: hands in one job and sets $job to its id.
submit_waiter() {
    job_name=$1 gate=$2 again=$3
    shift 3
    job=$("$bin/ucp-submit" --detach "$@" --name "$job_name" -- \
        sh -c "$waiter" job "$dir" "$job_name" "$gate" "$again") || fail "ucp-submit ended with $?"
}

# show JOB FILTER: what jq makes of all that the broker says of a job.
show() { "$bin/ucp-submit" show "$1" --json | jq -r "$2"; }

# is JOB FILTER: whether that is true.
is() { [ "$(show "$1" "$2")" = true ]; }

# facts FILTER: what jq makes of each fact.
facts() { "$bin/ucp-broker" facts | jq -r "$1"; }

# executor_is NAME STATE
executor_is() {
    "$bin/ucp-broker" executors --json |
        jq -es --arg name "$1" --arg state "$2" \
            'any(.[]; (.executor | startswith($name + "-")) and .state == $state)' >/dev/null
}

# within WHAT TOOK BOUND, in ms.
within() {
    [ "$2" -le "$3" ] || fail "$1 took $2 ms, which is over $3 ms"
    say "   $1: $2 ms (at most $3 ms)"
}

# The books add up, and the store says the same as its facts; ends the broker.
audited() {
    "$bin/ucp-broker" audit >/dev/null || fail "the audit found a fault"
    stop "$broker"
    "$bin/ucp-broker" check --data "$dir/${1:-broker}" >/dev/null || fail "check found a fault"
}

# metric SERIES: its value at the broker's /metrics.
metric() {
    curl -sS --max-time 10 --unix-socket "${UCP_BROKER#unix:}" http://localhost/metrics |
        awk -v series="$1" '$1 == series { print $2; found = 1 } END { if (!found) print "none" }'
}
