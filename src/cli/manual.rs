//! What the manual says of each program beside its flags: statuses, variables, files, examples.
//!
//! Only words; flags and subcommands stand in the definitions of the command lines. The pages in
//! `man/` are made from both (tests/man.rs compares them, scripts/man renews them), and `--help`
//! ends with the examples. What several programs share stands here once.

/// A term and what is said of it.
pub type Row = (&'static str, &'static str);

/// What is said of one program.
#[derive(Debug)]
pub struct Manual {
    /// The program.
    pub program: &'static str,
    /// Paragraphs that follow the description.
    pub notes: &'static [&'static str],
    /// Exit statuses and their meaning, the least first.
    pub exit_status: &'static [Row],
    /// Variables that are looked at, beside the twins of flags.
    pub environment: &'static [&'static [Row]],
    /// Files that are read, made or listened on.
    pub files: &'static [Row],
    /// What an example does, and the command lines for it.
    pub examples: &'static [Row],
    /// Other pages: name and section.
    pub see_also: &'static [(&'static str, u8)],
}

impl Manual {
    /// The part of it that ends `--help`.
    #[must_use]
    pub fn help(&self) -> String {
        let lines = |commands: &str| commands.lines().map(|line| format!("  {line}\n")).collect();
        let example = |(what, commands): &Row| -> String {
            let commands: String = lines(commands);
            format!("  # {what}\n{commands}")
        };
        let examples: String = self.examples.iter().map(example).collect();
        format!("Examples:\n{examples}\n")
    }
}

/// What is said of a program.
///
/// # Panics
/// There is no program of this name.
#[must_use]
pub fn of(program: &str) -> &'static Manual {
    let found = MANUALS.iter().find(|manual| manual.program == program);
    found.expect("every program has its manual")
}

/// The manuals of all programs.
pub const MANUALS: &[Manual] = &[BROKER, CLOCK, EXEC, SUBMIT, SYNC];

const WHERE_BROKERS_ARE: &[Row] = &[(
    "UCP_BROKER",
    "Addresses of brokers, separated by spaces, tried in turn. --broker wins. Where neither is \
     given, the sockets of the run directory are tried.",
)];

const PLACES: &[Row] = &[
    ("XDG_RUNTIME_DIR", "The run directory is its subdirectory ucp."),
    ("XDG_STATE_HOME, HOME", "Where data are kept: see FILES."),
];

const TERMINAL: &[Row] = &[("NO_COLOR", "Where set and not empty, tables have no colours.")];

const SUPERVISOR: &[Row] = &[
    (
        "NOTIFY_SOCKET",
        "A supervisor's datagram socket, a path or @NAME in the abstract namespace. It is told \
         READY, STATUS (at most once a second) and STOPPING, as sd_notify(3) has them.",
    ),
    (
        "WATCHDOG_USEC, WATCHDOG_PID",
        "How often, in microseconds, the supervisor wants to hear from this process. WATCHDOG=1 is \
         sent twice as often, by the loop that does the work: a loop that is stuck falls silent.",
    ),
];

const ACTIVATION: &[Row] = &[(
    "LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES",
    "Listening stream sockets that a supervisor hands over, from descriptor 3 on, as in \
     sd_listen_fds(3). They are used instead of the default socket; --listen adds further ones. \
     Their files are left in place at the end. A TCP socket that other machines can reach needs \
     --insecure-plaintext, as with --listen. Names are used in messages alone.",
)];

const RUN_DIRECTORY: Row = (
    "$XDG_RUNTIME_DIR/ucp, /run/ucp, /tmp/ucp-UID",
    "The run directory: of these the first where that variable is set, the second for root, else \
     the third. It is its owner's alone.",
);

const BROKER: Manual = Manual {
    program: "ucp-broker",
    notes: &[
        "Without a word it serves: it prints one line of JSON, with \"ready\":true and the \
         addresses it listens on, and runs until SIGTERM, SIGINT or SIGHUP asks for the end; a \
         second signal ends it at once. Whatever it acknowledged is durable by then and survives \
         kill -9.",
        "The other words ask a broker that runs, except for check, which reads the store of one \
         that does not. Data go to standard output, everything else to standard error.",
        "An executor is alive; draining: it takes nothing new and ends; avoided: it is left alone \
         for a while as it failed or handed back everything; suspect: silent for --suspect-after; \
         away: without a connection; or doubted: silent or away with most others at once, so that \
         it is given twice the time, as the broker may be cut off itself. 'lost in' is how long it \
         has until its jobs run elsewhere. An equivocation is a result that says something else \
         than an earlier one of the same attempt.",
    ],
    exit_status: &[
        ("0", "Done, or the answer is yes."),
        ("1", "The answer is no: audit or check found a fault."),
        ("64", "Wrong usage."),
        ("65", "The store is damaged."),
        ("66", "What was asked for is not there."),
        ("69", "No broker can be reached."),
        ("70", "A fault of the program's own."),
        ("73", "A directory or file cannot be created."),
        ("74", "Reading or writing failed, or the store failed while serving."),
        ("75", "Not now: the data directory or an address is in use."),
        ("76", "The other side speaks another version."),
        ("77", "Not allowed: a directory is somebody else's, or the system refused a port."),
        (
            "78",
            "The configuration is wrong: other machines could connect unguarded, the data directory \
             is a copy of a live broker's, the store is of a newer version, or a descriptor that \
             was handed over cannot be used.",
        ),
    ],
    environment: &[WHERE_BROKERS_ARE, PLACES, TERMINAL, SUPERVISOR, ACTIVATION],
    files: &[
        RUN_DIRECTORY,
        ("RUN_DIR/broker.sock", "The socket of the first broker, mode 0600."),
        ("RUN_DIR/broker-LOG.sock", "The socket of each further one."),
        ("RUN_DIR/LOG.head", "Proof of where the log ends, see ucp-facts(5)."),
        (
            "$XDG_STATE_HOME/ucp/broker, ~/.local/state/ucp/broker, /var/lib/ucp/broker",
            "The data directory, the last of these for root: facts in broker.db, large contents in \
             blobs. See ucp-facts(5).",
        ),
    ],
    examples: &[
        (
            "Serve on the default socket and on a port of this machine",
            "ucp-broker --listen http://127.0.0.1:4717",
        ),
        ("What happened to a job", "ucp-broker facts --job 0199c1f2-7a3e-7c51-8d25-3f6c2c9d1e70"),
        (
            "Whether the books are right, of a broker that runs and of one that does not",
            "ucp-broker audit\nucp-broker check --data /var/lib/ucp/broker",
        ),
        (
            "A picture of everything, for a browser",
            "ucp-broker facts | ucp-clock draw > history.svg",
        ),
    ],
    see_also: &[("ucp-clock", 1), ("ucp-exec", 1), ("ucp-submit", 1), ("ucp-facts", 5), ("ucp", 7)],
};

const EXEC: Manual = Manual {
    program: "ucp-exec",
    notes: &[
        "Without a word it serves: it looks for a broker until one takes it, prints one line of \
         JSON with \"ready\":true, and runs what it is given. While no broker answers it keeps \
         trying, and what it runs goes on. SIGTERM, SIGINT or SIGHUP drains it: it takes nothing \
         new, lets jobs end until --drain-timeout, hands the rest back, and ends; a second signal \
         ends it at once. However it ends, no process of a job is left.",
        "Jobs run as the user that the executor runs as and can read what that user can read. With \
         --isolation full they write in a directory of their own alone.",
    ],
    exit_status: &[
        ("0", "Drained; with run: the job succeeded."),
        ("1 to 255", "With run: the job's own status, 128+n where signal n ended it."),
        ("64", "Wrong usage."),
        ("65", "The identity, or with run the spec, is not what it should be."),
        ("66", "With run: the spec or a file that it names is not there."),
        ("70", "A fault of the program's own; the process that starts jobs has died."),
        ("73", "A directory or file cannot be created."),
        ("74", "Reading or writing failed; results are neither on disk nor acknowledged."),
        ("75", "Another process uses the data directory."),
        ("76", "The identity was written by a newer version."),
        ("77", "A directory is somebody else's."),
        ("78", "The configuration is wrong; with run: this machine has not what the job needs."),
        ("124", "With run: the job's time was over."),
        ("125", "With run: the job never ran, or did not leave what it should."),
        ("126, 127", "With run: the program cannot be executed, or is not there."),
        ("128+n", "Ended at once by signal n."),
    ],
    environment: &[
        WHERE_BROKERS_ARE,
        PLACES,
        SUPERVISOR,
        &[("PATH, HOME, LANG, TMPDIR, USER", "Passed on to jobs, which inherit nothing else.")],
    ],
    files: &[
        RUN_DIRECTORY,
        (
            "$XDG_STATE_HOME/ucp/exec, ~/.local/state/ucp/exec, /var/lib/ucp/exec",
            "The data directory, the last of these for root: identity.json, the directories of jobs \
             in rooms, their latest state in checkpoints, results that no broker has acknowledged \
             in spool and output, what can be fetched again in cache.",
        ),
        (
            "/sys/fs/cgroup",
            "Where the memory and pids controllers are delegated to it, each job has a cgroup \
             beneath the executor's own.",
        ),
    ],
    examples: &[
        ("Offer four slots and a label", "ucp-exec --slots 4 --label gpu=a100"),
        ("Join a broker elsewhere", "ucp-exec --broker http://127.0.0.1:4717"),
        (
            "One job with no broker at all",
            "echo '{\"command\":[\"expr\",\"6\",\"*\",\"7\"]}' | ucp-exec run",
        ),
    ],
    see_also: &[("ucp-broker", 1), ("ucp-submit", 1), ("ucp-facts", 5), ("ucp", 7)],
};

const SUBMIT: Manual = Manual {
    program: "ucp-submit",
    notes: &[
        "A job's output is passed on as it comes and the job's exit status is ucp-submit's. \
         SIGINT cancels the job and waits for that; a second one detaches. SIGTERM and SIGHUP \
         detach: the job goes on, and 'ucp-submit wait ID' comes back to it.",
        "A submission that was acknowledged is durable. The client draws the job's id itself, so \
         that it can repeat whatever was not acknowledged, and nothing runs twice for that.",
    ],
    exit_status: &[
        ("0", "Done: the job, or all of many jobs, succeeded."),
        ("1", "Some of many jobs did not succeed, or the answer is no."),
        ("1 to 255", "With one job: its own status, 128+n where signal n ended it."),
        ("64", "Wrong usage."),
        ("65", "Input is not what it should be."),
        ("66", "Input is absent, or there is no such job."),
        ("69", "No broker can be reached."),
        ("70", "A fault of the program's own."),
        ("73", "A file cannot be created."),
        ("74", "Reading or writing failed."),
        (
            "75",
            "Not now, try again: the broker's queue or disk is full, or the job's home is another one.",
        ),
        ("76", "The broker speaks another version."),
        ("77", "Not allowed."),
        ("78", "The configuration is wrong, such as an address that is none."),
        ("124", "The job's time was over."),
        ("125", "The job is parked, expired or skipped, or could not be run."),
        (
            "126",
            "The outcome is not known: no broker answers any more, the job was detached, or \
                 the time of wait ran out; or the job's program cannot be executed.",
        ),
        ("127", "The job's program is not there."),
        ("130", "The job was cancelled."),
    ],
    environment: &[
        WHERE_BROKERS_ARE,
        PLACES,
        TERMINAL,
        &[
            (
                "UCP_JOB_ID, UCP_JOB_ATTEMPT, UCP_JOB_FENCE",
                "Not read but given to each job: its id, the \
          attempt, and a text that is greater, compared as a string, for a later attempt of the \
          same job.",
            ),
            (
                "UCP_JOB_CHECKPOINT_DIR",
                "Given to each job: a directory for its state. What it leaves there is kept while it \
          runs and is there again when a further attempt begins, on whatever machine.",
            ),
            (
                "UCP_JOB_ITEM, UCP_JOB_INDEX",
                "Given to each job of --each: its line, and the number of that line. To each element \
          of --array its number is given, as UCP_JOB_INDEX.",
            ),
        ],
    ],
    files: &[
        RUN_DIRECTORY,
        ("RUN_DIR/broker.sock, RUN_DIR/broker-LOG.sock", "Where brokers are looked for first."),
    ],
    examples: &[
        ("Run a command somewhere, with its output and status", "ucp-submit -- uname -a"),
        (
            "One job for each line, a line of JSON as each ends",
            "ls *.wav | ucp-submit --each -- transcribe {}",
        ),
        (
            "One job of a thousand elements, left to itself, and one of them cancelled",
            "job=$(ucp-submit --detach --array 1-1000 -- train --fold {}); ucp-submit cancel $job/7",
        ),
        (
            "Hand a job in, and come back for it",
            "job=$(ucp-submit --detach -- ./survey)\nucp-submit why $job\nucp-submit wait $job",
        ),
        (
            "Files go in and come out",
            "ucp-submit --in map.tif --out 'tiles/**' --out-dir . -- tile map.tif",
        ),
        (
            "At most once a day, however often it is asked for",
            "ucp-submit --key \"report $(date +%F)\" -- ./report",
        ),
    ],
    see_also: &[("ucp-broker", 1), ("ucp-clock", 1), ("ucp-exec", 1), ("ucp-facts", 5), ("ucp", 7)],
};

const SYNC: Manual = Manual {
    program: "ucp-sync",
    notes: &[
        "Brokers that were started with --peer keep in step by themselves; this does the same for \
         any two of them, from cron, from a loop, or with a file between them that is carried by \
         hand. Facts are passed on as they were written, with the hashes that prove them: what was \
         changed on the way is not taken.",
        "A round compares one hash and, where it differs, how far each broker holds each log; then \
         each side gets what it lacks, compressed. It may be cut off anywhere and goes on from \
         there the next time. 'equal' says whether both held the same when it ended.",
        "An export is JSON Lines: facts, and frames whose first member is type. 'waiting' counts \
         facts that were not taken, as something before them is missing; they come with the next \
         import that has it.",
    ],
    exit_status: &[
        ("0", "Done; with diff: both hold the same."),
        ("1", "With diff: they differ. Else: a log is damaged or forked, and stderr names it."),
        ("64", "Wrong usage."),
        ("65", "Some lines of an import, or --since, are not what they should be."),
        ("66", "The file of --since is not there."),
        ("69", "A broker cannot be reached."),
        ("70", "A fault of the program's own."),
        ("74", "Reading or writing failed, or a connection broke."),
        ("76", "A broker answered what is not understood."),
    ],
    environment: &[WHERE_BROKERS_ARE, PLACES],
    files: &[RUN_DIRECTORY],
    examples: &[
        ("One round with another broker", "ucp-sync once --with http://127.0.0.1:4717"),
        (
            "Without any network: there and back with a stick",
            "ucp-sync export --since @last.json > /media/stick/facts.jsonl\n\
             ucp-sync import < /media/stick/facts.jsonl\n\
             ucp-sync vector > last.json",
        ),
        (
            "Whether two brokers hold the same",
            "ucp-sync diff unix:/run/ucp/broker.sock http://127.0.0.1:4717 && echo equal",
        ),
    ],
    see_also: &[("ucp-broker", 1), ("ucp-facts", 5), ("ucp-api", 5), ("ucp", 7)],
};

const CLOCK: Manual = Manual {
    program: "ucp-clock",
    notes: &[
        "It asks no broker and keeps no file. compare, tick and merge take clocks as arguments; \
         the others read one JSON object a line from standard input. A line that is none is named \
         on standard error and left out, and the status is then 65.",
    ],
    exit_status: &[
        ("0", "Done, or the answer is yes."),
        ("1", "compare --is does not hold, or check found a fault."),
        ("64", "Wrong usage."),
        ("65", "Input is not what it should be."),
        ("66", "A file that is named is not there."),
        ("74", "Reading or writing failed."),
    ],
    environment: &[TERMINAL],
    files: &[],
    examples: &[
        (
            "How one clock lies to another: this prints concurrent",
            "ucp-clock compare '{\"north\":3,\"van2\":1}' '{\"north\":2,\"south\":1}'",
        ),
        ("Whether a history is whole", "ucp-broker facts | ucp-clock check"),
        (
            "The picture of one job",
            "ucp-broker facts | ucp-clock draw --job 3f6c2c9d1e70 > job.svg",
        ),
        ("Two clocks into one", "ucp-clock merge '{\"north\":3}' @last-seen.json"),
    ],
    see_also: &[("ucp-broker", 1), ("ucp-facts", 5), ("ucp", 7)],
};
