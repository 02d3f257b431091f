# Shared by the scripts that run real processes. Read in with `.`; does nothing by itself.
#
# Processes belong to a temporary folder, $dir, and end with the script, however it ends. Nothing
# here waits for a time: `wait_until` waits for a condition, with a deadline.

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
bin=${CARGO_TARGET_DIR:-$root/target}/release
dir=
pids=

say() { printf '%s\n' "$*"; }

fail() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    for log in ${dir:+"$dir"/*.err}; do
        [ -s "$log" ] && { printf -- '--- %s\n' "${log##*/}"; tail -n 20 "$log"; } >&2
    done
    exit 1
}

# Hundredths of a second since the machine started.
now_cs() {
    read -r up _ </proc/uptime
    printf '%s%s\n' "${up%.*}" "${up#*.}"
}

# wait_until SECONDS WHAT COMMAND…: until the command succeeds; fails after so many seconds.
wait_until() {
    seconds=$1 what=$2
    shift 2
    limit=$(($(now_cs) + seconds * 100))
    until "$@"; do
        [ "$(now_cs)" -lt "$limit" ] || fail "waited $seconds s for $what, in vain"
        sleep 0.02
    done
}

# gone PID: whether the process has ended (one that waits to be reaped has).
gone() {
    ! kill -0 "$1" 2>/dev/null || grep -q '^State:[[:space:]]*[ZX]' "/proc/$1/status" 2>/dev/null
}

# lines FILE: how many lines it has; none where it is absent.
lines() {
    if [ -e "$1" ]; then wc -l <"$1" | tr -d ' '; else echo 0; fi
}

# has_lines FILE COUNT: whether the file has at least so many lines.
has_lines() { [ "$(lines "$1")" -ge "$2" ]; }

# Installs what a build needs where that may be done, and says what is missing where it may not.
need_tools() {
    command -v cargo >/dev/null 2>&1 ||
        fail "cargo is not installed: get Rust 1.95 or later from https://rustup.rs"
    need_program cc "gcc libc6-dev" "a C compiler builds the bundled SQLite"
}

# need_program NAME PACKAGES WHY
need_program() {
    ! command -v "$1" >/dev/null 2>&1 || return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        say "Installing $2: $3 …"
        apt-get update -q >/dev/null || fail "cannot learn what can be installed"
        # shellcheck disable=SC2086  # one word each: no package has a blank in its name
        apt-get install -qy $2 >/dev/null || fail "cannot install $2"
    else
        fail "$1 is not installed: $3 (package ${2%% *})"
    fi
}

# Installs what single checks need where that may be done; without it they are skipped.
want_tools() {
    missing=
    command -v groff >/dev/null 2>&1 || missing="$missing groff-base"
    command -v systemd-analyze >/dev/null 2>&1 || missing="$missing systemd"
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        say "Installing$missing, for the checks of manual pages and units …"
        # shellcheck disable=SC2086  # one word each
        apt-get update -q >/dev/null && apt-get install -qy --no-install-recommends $missing \
            >/dev/null && return 0
    fi
    say "SKIPPED: not installed, so that their checks are left out:$missing"
}

# Builds the programs if they are not fresh. The profile is the one of the tests.
build() {
    need_tools
    (cd "$root" && cargo build --quiet --locked --release --bins) ||
        fail "the build failed, see above"
}

# A folder for everything, gone at the end together with every process that was started.
scratch() {
    dir=$(mktemp -d "${TMPDIR:-/tmp}/ucp.XXXXXX")
    trap 'clean_up' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    # Addresses and settings of the person who runs this must not reach into it.
    unset UCP_SUBMIT_SPOOL UCP_EXEC_SLOTS UCP_EXEC_NAME UCP_EXEC_DATA UCP_BROKER_DATA || :
    UCP_BROKER=unix:$dir/run/broker.sock
    export UCP_BROKER
}

clean_up() {
    status=$?
    trap '' INT TERM HUP
    trap - EXIT
    for pid in $pids; do
        gone "$pid" || kill -s TERM "$pid" 2>/dev/null || :
        gone "$pid" || kill -s CONT "$pid" 2>/dev/null || :
    done
    limit=$(($(now_cs) + 500))
    for pid in $pids; do
        until gone "$pid" || [ "$(now_cs)" -ge "$limit" ]; do sleep 0.02; done
        gone "$pid" || kill -s KILL "$pid" 2>/dev/null || :
        wait "$pid" 2>/dev/null || :
    done
    rm -rf "$dir"
    exit "$status"
}

# is_ready PID FILE: whether the process has printed its ready line.
is_ready() {
    grep -qs '"ready":true' "$2" && return 0
    gone "$1" && fail "${2##*/} ended before it was ready"
    return 1
}

# start_broker ready|unready [FLAG…]: sets $broker, and waits for its ready line unless `unready`.
start_broker() {
    start_broker_at broker run "$@"
}

# start_broker_at DATA RUN ready|unready [FLAG…]: the same with other directories in $dir.
start_broker_at() {
    place=$1 runs=$2 awaited=$3
    shift 3
    : >"$dir/$place.out"
    "$bin/ucp-broker" serve --name demo --data "$dir/$place" --run-dir "$dir/$runs" "$@" \
        >"$dir/$place.out" 2>>"$dir/$place.err" 3>&- </dev/null &
    broker=$!
    pids="$pids $broker"
    [ "$awaited" = unready ] || wait_until 20 "the broker" is_ready "$broker" "$dir/$place.out"
}

# start_executor NAME SLOTS [FLAG…]: sets $executor to its pid, once it is registered. Its jobs may
# write their side files into $dir.
start_executor() {
    name=$1 slots_of=$2
    shift 2
    : >"$dir/$name.out"
    "$bin/ucp-exec" serve --name "$name" --slots "$slots_of" --data "$dir/$name" \
        --allow-write "$dir" "$@" >"$dir/$name.out" 2>>"$dir/$name.err" 3>&- </dev/null &
    executor=$!
    pids="$pids $executor"
    wait_until 20 "executor $name" is_ready "$executor" "$dir/$name.out"
}

# crash PID…: kill -9 of all at once, and wait until they are gone.
crash() {
    kill -s KILL "$@"
    for dead in "$@"; do
        wait "$dead" 2>/dev/null || :
        forget "$dead"
    done
}

# stop PID: ask it to end, and wait until it has.
stop() {
    kill -s TERM "$1"
    wait_until 40 "process $1 to end" gone "$1"
    wait "$1" 2>/dev/null || :
    forget "$1"
}

forget() {
    kept=
    for pid in $pids; do
        [ "$pid" = "$1" ] || kept="$kept $pid"
    done
    pids=$kept
}

# succeed PID SECONDS WHAT: waits for its end, which must be with 0.
succeed() {
    wait_until "$2" "$3" gone "$1"
    wait "$1" || fail "$3: ended with $?"
    forget "$1"
}

# members NAME…: the values of these members in each JSON line of stdin, separated by blanks. For
# numbers and plain texts; a line end at the end of a text is left out.
members() {
    awk -v names="$*" '
        BEGIN { count = split(names, name, " ") }
        {
            row = ""
            for (i = 1; i <= count; i++) {
                value = ""
                if (match($0, "\"" name[i] "\":(\"[^\"]*\"|[^,}]*)")) {
                    value = substr($0, RSTART + length(name[i]) + 3, RLENGTH - length(name[i]) - 3)
                    gsub(/^"|(\\n)?"$/, "", value)
                }
                row = row (i > 1 ? " " : "") value
            }
            print row
        }'
}
