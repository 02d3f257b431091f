//! Every bound of the system, each with its reason.
//!
//! A limit is enforced where bytes come in; inside, it is asserted. Over a limit the answer is a
//! clear error and nothing is lost. Relations between limits are checked when this is compiled.

use std::time::Duration;

/// Counters stay below 2^53, so that every JSON reader keeps them exact.
pub const COUNTER_MAX: u64 = (1 << 53) - 1;
/// A name of a log, an executor or an actor: a host name (63), a hyphen, eight digits, and room.
pub const NAME_BYTES_MAX: usize = 80;
/// Entries of one vector clock that comes from outside: every broker of a large mesh, churned.
pub const CLOCK_ENTRIES_MAX: usize = 10_000;
/// Events of one history that is sorted: 64 bytes each in memory, and 16 for each clock entry.
pub const HISTORY_EVENTS_MAX: usize = 50_000_000;
/// Events of one history that is drawn: beyond it nobody can read the drawing.
pub const DRAWN_EVENTS_MAX: usize = 10_000;
/// Competing results of one job that are resolved together.
pub const RESULTS_RESOLVED_MAX: usize = 100_000;
/// One line of JSON on any socket or pipe: a spec or a result with its inline output, and room.
pub const LINE_BYTES_MAX: usize = 4 << 20;
/// One job spec as JSON: arguments and environment as large as Linux lets a process have, twice.
pub const SPEC_BYTES_MAX: usize = 2 << 20;
/// Arguments of one command.
pub const COMMAND_ARGS_MAX: usize = 65_536;
/// Bytes of one argument or environment variable: the kernel's MAX_ARG_STRLEN less the end mark.
pub const ARG_BYTES_MAX: usize = 131_071;
/// Elements of one array.
pub const ARRAY_ELEMENTS_MAX: u64 = 10_000_000;
/// Runs of numbers in the elements of one array.
pub const ARRAY_RUNS_MAX: usize = 10_000;
/// Items of one array that are part of its spec.
pub const ARRAY_ITEMS_MAX: usize = 10_000;
/// Lines of `--each` that go together as one array. A line waits for no other: it goes with those
/// that are there.
pub const CHUNK_LINES_MAX: usize = 1000;
/// Facts that one result carries: a submission, a rerun, a deployment, and room.
pub const CARRIED_FACTS_MAX: usize = 16;
/// The greatest fence of an attempt that comes with a result and not from a broker: what follows
/// counts on from it, and must not come near the end of all counters.
pub const CARRIED_FENCE_MAX: u64 = 1 << 40;
/// The greatest generation that comes in the same way.
pub const CARRIED_GENERATION_MAX: u32 = 1 << 20;
/// Bytes of the facts that explain one attempt. What is longer is not carried about: such a job is
/// known only to brokers.
pub const CARRIED_BYTES_MAX: usize = 256 << 10;
/// Checkpoints that an attempt is offered to begin with: the newest, and two to fall back to.
pub const CHECKPOINTS_OFFERED: usize = 3;
/// Files and directories of one checkpoint: as many as one attempt may leave behind.
pub const CHECKPOINT_FILES_MAX: usize = 10_000;
/// Bytes of one checkpoint: what the cache holds through which it comes back.
pub const CHECKPOINT_BYTES_MAX: u64 = 4 << 30;
/// Bytes of the manifest of one checkpoint: that many files with paths of some 300 bytes.
pub const CHECKPOINT_MANIFEST_BYTES_MAX: usize = 4 << 20;
/// How often a job's state is looked at, unless a flag says otherwise.
pub const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(10);
/// The least of that: a few times what a look and the wait for a quiet moment take.
pub const CHECKPOINT_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// The most of that: who wants fewer wants none.
pub const CHECKPOINT_INTERVAL_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// So long a job's state stays as it is before it is copied: the clock of a file system goes in
/// steps of up to 10 ms, and a second change within one step would not be seen.
pub const CHECKPOINT_QUIET: Duration = Duration::from_millis(20);
/// Times that a state is copied or looked at which changes meanwhile, before the next interval.
pub const CHECKPOINT_TRIES_MAX: u32 = 5;
/// After a copy that took some time it is not copied again for so many times as long.
pub const CHECKPOINT_PAUSE_FACTOR: u32 = 9;
/// How long the last state of a job that is handed back may take to be copied, and then to reach a
/// broker: less than it takes a broker to miss the executor.
pub const CHECKPOINT_SENT_WITHIN: Duration = Duration::from_secs(3);
/// Elements that one fact deploys.
pub const LEASE_ELEMENTS_MAX: u64 = 256;
/// Jobs that one job may wait for with `after`.
pub const AFTER_MAX: usize = 1_000;
/// Labels that a job may need or an executor may have.
pub const LABELS_MAX: usize = 64;
/// Bytes of a job's display name or of an idempotency key.
pub const TEXT_BYTES_MAX: usize = 1_024;
/// Times a failed job may be tried again.
pub const RETRIES_MAX: u32 = 1_000;
/// Executors that one job may take down before it is parked, unless its spec says otherwise.
pub const LOST_MAX_DEFAULT: u32 = 3;
/// Cores that one job may ask for.
pub const CORES_MAX: u32 = 65_536;
/// Slots that one executor may offer.
pub const SLOTS_MAX: u32 = 65_536;
/// Processes and threads of one job, where a cgroup can bound them: a large parallel build, and far
/// from the kernel's usual 32,768, so that a fork bomb leaves the machine usable.
pub const JOB_PROCESSES_MAX: u32 = 8_192;
/// Open files that a job begins with at the most, as the soft limit; it may raise it. Containers
/// have a limit of 2^30, and programs that close all there could be take minutes over that.
pub const JOB_OPEN_FILES_MAX: u64 = 65_536;
/// Output kept inside a result; what is longer becomes a blob.
pub const OUTPUT_INLINE_BYTES_MAX: usize = 32 << 10;
/// Standard input kept inside a spec; what is longer becomes a blob.
pub const STDIN_INLINE_BYTES_MAX: usize = 64 << 10;
/// An input file kept inside a spec, which saves a request; what is longer becomes a blob.
pub const INPUT_INLINE_BYTES_MAX: usize = 4 << 10;
/// The same for the files of many jobs, which share their blobs: what is no longer than a digest.
pub const INPUT_INLINE_EACH_BYTES_MAX: usize = 128;
/// JSON of all input files inside one spec; the further ones become blobs.
pub const INPUTS_INLINE_BYTES_MAX: usize = 256 << 10;
/// Times that a file is read which another program changes meanwhile.
pub const CHANGED_TRIES_MAX: u32 = 2;
/// Ended jobs of a client whose files wait to be fetched; beyond it no further results are read.
pub const FETCHES_WAITING_MAX: usize = 64;
/// Files that one job may be given.
pub const INPUTS_MAX: usize = 10_000;
/// Paths and patterns of what one job leaves behind.
pub const OUTPUTS_MAX: usize = 1_000;
/// Files that one attempt may leave behind.
pub const OUTPUT_FILES_MAX: usize = 10_000;
/// Bytes of the paths of those files together, so that a result fits a line.
pub const OUTPUT_PATHS_BYTES_MAX: usize = 512 << 10;
/// Names in a job's directory that are looked at when its outputs are gathered: what it leaves
/// behind may be far more than what it is asked for.
pub const OUTPUT_NAMES_MAX: usize = 1_000_000;
/// Bytes of a path in a job's directory: the kernel's PATH_MAX less the end mark.
pub const PATH_BYTES_MAX: usize = 4_095;
/// Standard output or error of one job; beyond it the rest is dropped and `truncated` is set.
pub const OUTPUT_BYTES_MAX: u64 = 1 << 30;
/// Bytes that a pipe may hold when its last writer ends: the kernel's default `pipe-max-size`.
pub const PIPE_BYTES_MAX: usize = 1 << 20;
/// One blob.
pub const BLOB_BYTES_MAX: u64 = 16 << 30;
/// Bytes of the blobs that an executor keeps for further jobs; the least used go first.
pub const BLOB_CACHE_BYTES_MAX: u64 = 4 << 30;
/// The number of those blobs, so that their directory is read quickly at the start.
pub const BLOB_CACHE_FILES_MAX: usize = 16_384;
/// Used job directories that wait for their removal; a job that ends waits when there are more, so
/// that they are not filled faster than they are removed.
pub const ROOMS_GOING_MAX: usize = 64;
/// How long an executor that ends waits for used job directories to be removed; the rest is
/// removed at its next start.
pub const ROOMS_GONE_WITHIN: Duration = Duration::from_secs(2);
/// Bytes of one piece of a file that is copied or hashed before it is asked whether to go on.
pub const COPY_PIECE_BYTES: u64 = 8 << 20;
/// Standard output or error in the one result line of `ucp-exec run`, which has no place to keep
/// a blob; what is longer is cut.
pub const RUN_OUTPUT_BYTES_MAX: u64 = 64 << 20;
/// One job spec that `ucp-exec run` reads: contents of any size stand in files.
pub const RUN_SPEC_BYTES_MAX: u64 = 64 << 20;
/// One WebAssembly module, binary or text: several times the largest program that is known.
pub const MODULE_BYTES_MAX: u64 = 256 << 20;
/// Memory of a WASI job whose spec does not say how much it needs.
pub const WASM_MEMORY_DEFAULT: u64 = 1 << 30;
/// Linear memory of one module: all that its 32-bit addresses reach; reserved, not used.
pub const WASM_MEMORY_MAX: usize = 4 << 30;
/// Elements of one table in the pool, 8 bytes each: functions of a large C++ program, and room.
pub const WASM_TABLE_ELEMENTS_POOLED: usize = 1 << 20;
/// Elements of all tables of one module outside of the pool.
pub const WASM_TABLE_ELEMENTS_MAX: usize = 16 << 20;
/// Tables of one module in the pool; compilers make one.
pub const WASM_TABLES_POOLED: u32 = 4;
/// Bytes of what an instance in the pool has beside memory and tables: mostly its functions.
pub const WASM_INSTANCE_BYTES_MAX: usize = 64 << 20;
/// Bytes of a memory that stay in place between two runs and are set back by copying, which for
/// so few costs less than to give them to the kernel and have them back.
pub const WASM_KEEP_RESIDENT_BYTES: usize = 64 << 10;
/// Stack of a module: twice that of the wasmtime command line, as C++ programs recurse.
pub const WASM_STACK_BYTES: usize = 1 << 20;
/// Stack of a module and of the calls that it makes to its host.
pub const WASM_FIBER_BYTES: usize = 2 << 20;
/// Modules that run at one time; each reserves [`WASM_MEMORY_MAX`] twice of 2^47 bytes.
pub const WASM_THREADS_MAX: u32 = 1_024;
/// Files and directories that a module has open at one time: what a process usually may.
pub const WASM_HANDLES_MAX: usize = 1_024;
/// Modules that are compiled at one time; a large one has all cores for itself.
pub const WASM_COMPILES_MAX: usize = 2;
/// A module up to this many bytes is compiled by one thread and so never waits for a large one.
pub const WASM_SMALL_BYTES: usize = 256 << 10;
/// Compiled modules in memory, the ones that were not used for longest go first.
pub const WASM_MODULES_MAX: usize = 256;
/// Bytes of compiled code in memory, unless one module alone has more.
pub const WASM_MODULES_BYTES_MAX: usize = 512 << 20;
/// Bytes of compiled code on disk, unless one module alone has more.
pub const WASM_CACHE_BYTES_MAX: u64 = 2 << 30;
/// Bytes of the text of a trap with its backtrace.
pub const WASM_ERROR_BYTES_MAX: usize = 4 << 10;
/// Result contents that the broker keeps in memory; older ones are read from the store.
pub const RESULT_CACHE_BYTES_MAX: usize = 32 << 20;
/// Jobs that a broker takes before it answers "queue full", unless a flag says otherwise.
pub const QUEUED_MAX_DEFAULT: u64 = 10_000_000;
/// How often a supervisor is told at the most how a daemon stands: for people who look.
pub const STATUS_EVERY: Duration = Duration::from_secs(1);
/// Listening sockets that a supervisor may hand over: a few addresses of each kind.
pub const INHERITED_SOCKETS_MAX: usize = 64;
/// Facts written by one drain of the core: bounds the size of a transaction.
pub const FACTS_PER_BATCH_MAX: usize = 10_000;
/// Inputs that the loop hands to the core before it drains the outputs.
pub const INPUTS_PER_BATCH_MAX: usize = 512;
/// Inputs that wait for the core; beyond it the sockets are no longer read.
pub const INPUTS_QUEUED_MAX: usize = 4_096;
/// Bytes of lines behind those inputs; beyond it the sockets are no longer read either.
pub const INPUTS_QUEUED_BYTES_MAX: usize = 64 << 20;
/// Batches on their way to the disk before the core waits for it.
pub const BATCHES_IN_FLIGHT_MAX: usize = 64;
/// Facts of one transaction of the store, unless one batch alone has more: bounds the wait of the
/// batches behind it, while the cost of one sync is shared by many.
pub const TRANSACTION_FACTS_MAX: usize = 20_000;
/// Space on its disk that the store holds back for what is under way when the disk is full: a
/// write-ahead log of half its full size.
pub const DISK_RESERVE_BYTES: u64 = 8 << 20;
/// How often it is tried whether a full disk has room again.
pub const DISK_FULL_RETRY: Duration = Duration::from_millis(250);
/// Counts of the store's books that run beside the writer; further ones hold it up.
pub const BOOKS_AT_ONCE_MAX: usize = 4;
/// Connections of a broker at one time.
pub const CONNECTIONS_MAX: usize = 16_384;
/// Descriptors that connections leave to files and watched processes, when the system gives
/// fewer than would do for all.
pub const DESCRIPTORS_KEPT: usize = 40;
/// Connections that are turned away and still listened to for a moment, so that the answer is
/// read before the connection breaks.
pub const TURNED_AWAY_MAX: usize = 8;
/// How often it is said that connections cannot be taken, while they cannot.
pub const ACCEPT_WARN_EVERY: Duration = Duration::from_secs(10);
/// Executors with a session at one broker.
pub const EXECUTORS_MAX: usize = 4_096;
/// Attempts that one executor may announce or hold.
pub const ATTEMPTS_PER_EXECUTOR_MAX: usize = 100_000;
/// Lines that a client may have submitted on one connection without having seen them end.
pub const UNFINISHED_PER_CLIENT_MAX: usize = 20_000;
/// Bytes of lines that a client holds as they may have to be sent again.
pub const UNFINISHED_BYTES_MAX: usize = 64 << 20;
/// With `--keep-order`: lines that were read and whose results are not printed, before no more are
/// read.
pub const ORDERED_AHEAD_MAX: usize = 10_000;
/// Bytes of results that wait for an earlier one before no more lines are read; what is under way
/// then may still add to them.
pub const ORDERED_BYTES_MAX: usize = 64 << 20;
/// Result lines that a client holds for a reader that is slow.
pub const OUTGOING_BYTES_MAX: usize = 1 << 20;
/// Bytes of the path of a Unix socket: what the kernel's `sun_path` holds, less the end mark.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Jobs of one client's stream that go to the core together: enough to share a commit, few enough
/// that other clients get their turn.
pub const SUBMISSIONS_PER_INPUT_MAX: usize = 128;
/// Output inside results that wait for one client to read; more is left in the store until then.
pub const REPLIES_INLINE_BYTES_MAX: usize = 16 << 20;
/// Bytes of a streamed body that are written before the connection takes them.
pub const BODY_PIECE_BYTES: usize = 64 << 10;
/// Bytes of a blob that are taken from a connection before they go to the disk together.
pub const BLOB_PIECE_BYTES: usize = 1 << 20;
/// Uploads that broke off and wait to be gone on with; the oldest gives way.
pub const PARTIAL_UPLOADS_MAX: usize = 256;
/// How long an upload that broke off is kept.
pub const PARTIAL_UPLOAD_AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// How long an upload brings nothing before another connection may go on with it. Who asks while
/// it is not yet idle waits for that long, as most often the connection before has just broken.
pub const UPLOAD_IDLE_AFTER: Duration = Duration::from_secs(1);
/// Bytes that a transfer of a blob holds on its way between file and connection, a piece.
pub const TRANSFER_PIECE_BYTES: usize = 256 << 10;
/// Pieces of a transfer that wait for the connection.
pub const TRANSFER_PIECES: usize = 4;
/// Connections in a row that bring a transfer no further before it is given up.
pub const TRANSFER_TRIES_MAX: u32 = 5;
/// The pause before a transfer goes on over another connection; each further one doubles it.
pub const TRANSFER_PAUSE: Duration = Duration::from_millis(50);
/// How often a transfer asks on another connection whether its broker is still there.
pub const TRANSFER_PROBE_EVERY: Duration = Duration::from_secs(5);
/// How long a broker may take to answer that.
pub const TRANSFER_PROBE_WITHIN: Duration = Duration::from_secs(10);
/// How long the next piece of a body may take that holds one value or one blob. A stream of jobs
/// may be silent for as long as it likes.
pub const BODY_IDLE_MAX: Duration = Duration::from_secs(15);
/// Facts that a reader of the log gets from the store at one time.
pub const FACTS_PAGE_ROWS: usize = 128;
/// Bytes of them: a page ends with the fact that makes it so long.
pub const FACTS_PAGE_BYTES: usize = 256 << 10;
/// Messages to an executor that it has not read: the specs of all its slots, and room. One that
/// does not read loses its session.
pub const SESSION_UNSENT_BYTES_MAX: usize = 256 << 20;
/// Threads of a daemon that wait for the disk beside the store's writer.
pub const DISK_THREADS_MAX: usize = 4;
/// Bytes of the head of an HTTP message.
pub const HTTP_HEAD_BYTES_MAX: usize = 64 << 10;
/// Events that wait for those who read them, together: what a reader may be behind before it
/// misses some; a few MiB.
pub const EVENTS_HELD_MAX: usize = 16_384;
/// Readers of events at one time.
pub const EVENT_READERS_MAX: usize = 256;
/// How long the core may take to answer when it is asked whether it is well, and a commit before
/// the store counts as hanging.
pub const HEALTH_WITHIN: Duration = Duration::from_secs(5);
/// How long the count of a broker's blobs is used before they are counted again.
pub const BLOBS_COUNTED_EVERY: Duration = Duration::from_secs(30);
/// Rows of one listing, unless more are asked for.
pub const LIST_ROWS_DEFAULT: usize = 1_000;
/// Rows of one listing at the most.
pub const LIST_ROWS_MAX: usize = 1_000_000;
/// Bytes of one piece of live output.
pub const OUTPUT_CHUNK_BYTES: usize = 64 << 10;
/// Live output on its way to one follower before it has said that it took some.
pub const OUTPUT_WINDOW_BYTES: u64 = 1 << 20;
/// Followers of one executor's live output at one time.
pub const FOLLOWERS_PER_EXECUTOR_MAX: usize = 1_024;
/// Runs of numbers that are shown of an array's elements in one state.
pub const RUNS_SHOWN_MAX: usize = 100;
/// Characters of a reason that an executor gives.
pub const REASON_CHARS_MAX: usize = 200;
/// Reasons kept with a parked job.
pub const REASONS_MAX: usize = 16;

/// Sockets in the run directory that a client tries: more brokers on one host are given by name.
pub const SOCKETS_TRIED_MAX: usize = 64;
/// The pause before a broker that did not answer is tried again; each further one doubles it.
pub const CONNECT_PAUSE_FIRST: Duration = Duration::from_millis(2);
/// How long one place has to answer before the next is tried.
pub const CONNECT_TRY_MAX: Duration = Duration::from_secs(1);
/// The longest pause between two tries, and the least time that one try is given.
pub const CONNECT_PAUSE_MAX: Duration = Duration::from_millis(100);
/// How long a client waits for an answer on a new connection before it asks on another whether
/// anybody is there: longer than a broker with work to do takes, so that this is rare.
pub const PROBE_AFTER: Duration = Duration::from_millis(100);
/// How long a client that waits for a job goes on looking for a broker that went away.
pub const RECONNECT_MAX: Duration = Duration::from_secs(600);
/// How long a client whose reader has gone waits until its job is cancelled.
pub const CANCEL_WAIT_MAX: Duration = Duration::from_secs(5);
/// The pause before a client looks again whether the processes of a cancelled job are gone.
pub const CANCEL_LOOK_PAUSE: Duration = Duration::from_millis(20);
/// The pause before a client offers a job again that a full queue did not take.
pub const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(250);

/// How long the head of a request may take, counted from the end of the one before: it also ends
/// connections that are not used.
pub const HTTP_HEAD_WITHIN: Duration = Duration::from_secs(60);
/// How long an executor may take to say `hello`.
pub const HELLO_WITHIN: Duration = Duration::from_secs(5);
/// How long the end of a process may come after the end of its connection.
pub const PROCESS_GONE_WITHIN: Duration = Duration::from_millis(50);
/// How long the last words of a connection may take when it is closed.
pub const CLOSE_WITHIN: Duration = Duration::from_millis(250);
/// The pause after a connection could not be taken.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often an executor says that it is there.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// Silence after which nothing new is deployed on an executor.
pub const SUSPECT_AFTER: Duration = Duration::from_secs(2);
/// Silence after which an executor's attempts are lost.
pub const LOST_AFTER: Duration = Duration::from_secs(5);
/// How long a closed session may take to come back.
pub const RECONNECT_GRACE: Duration = Duration::from_secs(1);
/// How long an executor holds an unacknowledged result in memory before it writes it to disk.
pub const SPOOL_AFTER: Duration = Duration::from_millis(20);
/// The pause before an executor tries again to reach a broker; each further one doubles it.
pub const REJOIN_PAUSE_FIRST: Duration = Duration::from_millis(50);
/// The longest pause before an executor tries again, so that a broker that came back soon has it.
pub const REJOIN_PAUSE_MAX: Duration = Duration::from_millis(250);
/// So long an executor is kept busy by the attempts that it is given ahead of its free slots.
pub const AHEAD_SPAN: Duration = Duration::from_millis(100);
/// Slots' worth of attempts that an executor is given ahead of its free slots.
pub const AHEAD_MAX: u64 = 512;
/// Without any result for so long, attempts that did not begin are called back.
pub const RECALL_AFTER: Duration = Duration::from_millis(250);
/// Results that an executor holds back to send them together, while it has more to run.
pub const RESULTS_TOGETHER_MAX: usize = 256;
/// So long it holds them back.
pub const RESULTS_TOGETHER_WITHIN: Duration = Duration::from_millis(20);
/// Ends of an array's elements that are told to a client before it took any.
pub const ELEMENTS_TOLD_MAX: usize = 4_096;
/// The least time that a broker's own loop stood still and that is nobody's silence.
pub const OWN_PAUSE_MIN: Duration = Duration::from_millis(20);
/// Executors that a broker must have lost sight of at once before it suspects its own link.
pub const UNSEEN_MIN: usize = 2;
/// What a broker adds to a lease that it counts, beside the drift: clocks tick in steps.
pub const LEASE_GRANULE: Duration = Duration::from_millis(1);
/// A failure that came sooner says something of its executor, if others do better.
pub const FAILS_FAST_WITHIN: Duration = Duration::from_secs(1);
/// So many of those in a row, while others succeed, and an executor is left alone.
pub const FAILS_FAST_MIN: u32 = 10;
/// How long at first; each further time doubles it.
pub const AVOID_FAILING_FIRST: Duration = Duration::from_secs(1);
/// How long at the most: somebody may have mended it.
pub const AVOID_FAILING_MAX: Duration = Duration::from_secs(60);
/// How long an executor is left alone that handed an attempt back while it goes on.
pub const AVOID_AFTER_HAND_BACK: Duration = Duration::from_millis(500);
/// Descriptors that an executor needs beside those of its jobs.
pub const DESCRIPTORS_OF_EXECUTOR: u64 = 40;
/// Descriptors that one running job takes in its executor at the most: the ends of its pipes, its
/// long outputs, its standard input, a blob on its way, its state while it is copied.
pub const DESCRIPTORS_PER_JOB: u64 = 8;
/// The pause before an executor asks a broker again that refused it.
pub const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// Tries to reach a broker, somewhat over a second, before an executor says that none answers.
pub const REJOIN_TRIES_QUIET: u32 = 8;
/// Logs of one lineage that an executor is told: one for each boot of the broker's machine.
pub const LINEAGE_TOLD_MAX: usize = 10_000;
/// Heartbeats whose answers an executor waits for; older ones renew no lease.
pub const HEARTBEATS_UNANSWERED_MAX: usize = 64;
/// How much longer a broker counts a lease than the executor that has it, in percent: far more than
/// clocks of machines differ in their rate.
pub const LEASE_DRIFT_PERCENT: u32 = 1;
/// Attempts that an executor remembers as stopped, so that an order that comes twice begins none of
/// them again.
pub const STOPPED_REMEMBERED_MAX: usize = 1_024;
/// Results that an executor keeps though one broker has them; the oldest gives way.
pub const RESULTS_KEPT_MAX: usize = 1_000;
/// How long an executor that ends waits for its jobs, unless a flag says otherwise.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an executor whose jobs have ended waits for its last results to be acknowledged; they
/// are on disk by then.
pub const DRAIN_ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(2);
/// The pause before an output is sent to a broker again that did not take it.
pub const UPLOAD_PAUSE: Duration = Duration::from_millis(250);
/// How long a job that was told to end may take before it is killed.
pub const KILL_GRACE: Duration = Duration::from_secs(2);
/// How long a broker waits for the proof that a dead executor's jobs have no process left: longer
/// than its guard takes to kill them, short beside the loss of the work.
pub const TREE_GONE_WITHIN: Duration = Duration::from_millis(300);
/// How long an executor that starts waits for one of the same identity on its host to be gone.
pub const NAME_FREE_WITHIN: Duration = Duration::from_secs(1);
/// How long an executor that starts kills what an earlier life left, before it says what it could
/// not: a killed process may have to write its memory out first.
pub const LEFTOVERS_KILLED_WITHIN: Duration = Duration::from_secs(5);
/// How long an executor whose spawner died waits for the guard to kill what ran: as above.
pub const GUARD_WITHIN: Duration = Duration::from_secs(5);
/// The wait before the first retry of a failed job; each further one doubles it.
pub const RETRY_BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// The longest wait before a retry.
pub const RETRY_BACKOFF_MAX: Duration = Duration::from_secs(30);
/// How often a module that runs is interrupted to see whether it is to end.
pub const WASM_EPOCH: Duration = Duration::from_millis(10);
/// The longest time-out a job may have: ten years.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(10 * 365 * 86_400);

const _: () = assert!(SPEC_BYTES_MAX < LINE_BYTES_MAX, "a spec fits a line");
const _: () = assert!(
    OUTPUT_INLINE_BYTES_MAX * 2 * 6 < LINE_BYTES_MAX,
    "a result with both outputs inline fits a line even if every byte is escaped"
);
const _: () = assert!(CHECKPOINT_BYTES_MAX <= BLOB_CACHE_BYTES_MAX, "a checkpoint fits the cache");
const _: () = assert!(CHECKPOINT_SENT_WITHIN.as_millis() < LOST_AFTER.as_millis());
const _: () = assert!(OUTPUT_CHUNK_BYTES * 6 < LINE_BYTES_MAX, "a piece of output fits a line");
const _: () = assert!(STDIN_INLINE_BYTES_MAX * 6 < SPEC_BYTES_MAX, "inline stdin fits a spec");
const _: () = assert!(HEARTBEAT.as_millis() * 2 <= SUSPECT_AFTER.as_millis());
const _: () = assert!(SUSPECT_AFTER.as_millis() < LOST_AFTER.as_millis());
const _: () = assert!(
    LINE_BYTES_MAX * 2 < INPUTS_QUEUED_BYTES_MAX,
    "a line of each of many connections may wait"
);
const _: () = assert!(WASM_STACK_BYTES < WASM_FIBER_BYTES, "a module leaves stack to its host");
const _: () = assert!(WASM_THREADS_MAX as usize * 2 * WASM_MEMORY_MAX < 1 << 46);

/// Facts that are handed to the core at one time as they come from another broker, unless fewer
/// make [`SYNC_BATCH_BYTES`]: one transaction of the store, and no long turn of the loop.
pub const SYNC_BATCH_FACTS: usize = 512;
/// Bytes of facts that are handed to the core at one time.
pub const SYNC_BATCH_BYTES: usize = 1 << 20;
/// Facts of one stream that may wait for what is missing before them; more are left out, and come
/// with the next round.
pub const SYNC_WAITING_MAX: usize = 8_192;
/// Bytes of those facts.
pub const SYNC_WAITING_BYTES_MAX: usize = 32 << 20;
/// Marks of one stream that are kept for facts that wait.
pub const SYNC_MARKS_MAX: usize = 65_536;
/// Logs that are held: their marks are one line, of some 110 bytes each.
pub const LOGS_MAX: usize = 20_000;
/// Faults of one stream that are told.
pub const SYNC_FAULTS_TOLD_MAX: usize = 1_000;
/// Bad lines of one stream that are told in words.
pub const SYNC_BAD_TOLD_MAX: usize = 10;
/// The interval between rounds is made longer or shorter by up to so many percent, so that
/// brokers which were started together do not ask together.
pub const SYNC_JITTER_PERCENT: u64 = 10;
/// Fresh facts wait so long for others before they are pushed to peers: together with the way
/// there less than 100 ms.
pub const SYNC_PUSH_AFTER: Duration = Duration::from_millis(30);
/// How long a peer that did not answer is left alone at first; each further time twice as long.
pub const SYNC_RETRY_FIRST: Duration = Duration::from_millis(200);
/// How long at the most, or the interval where that is shorter: it may be back.
pub const SYNC_RETRY_MAX: Duration = Duration::from_secs(10);
/// How long a peer may let us wait for an answer, or for the next piece of one.
pub const SYNC_IDLE_MAX: Duration = Duration::from_secs(30);
/// Pieces of a stream between two brokers that are under way through us.
pub const SYNC_PIECES_QUEUED: usize = 4;
/// Peers that are kept in step with, and addresses that one of them may have.
pub const PEERS_MAX: usize = 256;
/// Brokers that introduced themselves and are being looked for at one time.
pub const PEER_CALLS_MAX: usize = 16;
/// Addresses that are tried of one that introduces itself.
pub const PEER_ADDRESSES_MAX: usize = 8;

const _: () = assert!(SYNC_BATCH_FACTS <= FACTS_PER_BATCH_MAX);
const _: () = assert!(SYNC_WAITING_MAX >= SYNC_BATCH_FACTS);
const _: () = assert!(LOGS_MAX * (NAME_BYTES_MAX + 100) <= LINE_BYTES_MAX);
