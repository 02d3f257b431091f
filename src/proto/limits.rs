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
/// One line of JSON on any socket or pipe: a spec or a result with its inline output, and room.
pub const LINE_BYTES_MAX: usize = 4 << 20;
/// One job spec as JSON: arguments and environment as large as Linux lets a process have, twice.
pub const SPEC_BYTES_MAX: usize = 2 << 20;
/// Arguments of one command.
pub const COMMAND_ARGS_MAX: usize = 65_536;
/// Bytes of one argument or environment variable: the kernel's MAX_ARG_STRLEN less the end mark.
pub const ARG_BYTES_MAX: usize = 131_071;
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
/// Output kept inside a result; what is longer becomes a blob.
pub const OUTPUT_INLINE_BYTES_MAX: usize = 32 << 10;
/// Standard input kept inside a spec; what is longer becomes a blob.
pub const STDIN_INLINE_BYTES_MAX: usize = 64 << 10;
/// Standard output or error of one job; beyond it the rest is dropped and `truncated` is set.
pub const OUTPUT_BYTES_MAX: u64 = 1 << 30;
/// Bytes that a pipe may hold when its last writer ends: the kernel's default `pipe-max-size`.
pub const PIPE_BYTES_MAX: usize = 1 << 20;
/// One blob.
pub const BLOB_BYTES_MAX: u64 = 16 << 30;
/// Result contents that the broker keeps in memory; older ones are read from the store.
pub const RESULT_CACHE_BYTES_MAX: usize = 32 << 20;
/// Jobs that a broker takes before it answers "queue full", unless a flag says otherwise.
pub const QUEUED_MAX_DEFAULT: u64 = 10_000_000;
/// Facts written by one drain of the core: bounds the size of a transaction.
pub const FACTS_PER_BATCH_MAX: usize = 10_000;
/// Inputs that the loop hands to the core before it drains the outputs.
pub const INPUTS_PER_BATCH_MAX: usize = 512;
/// Inputs that wait for the core; beyond it the sockets are no longer read.
pub const INPUTS_QUEUED_MAX: usize = 4_096;
/// Batches on their way to the disk before the core waits for it.
pub const BATCHES_IN_FLIGHT_MAX: usize = 64;
/// Facts of one transaction of the store, unless one batch alone has more: bounds the wait of the
/// batches behind it, while the cost of one sync is shared by many.
pub const TRANSACTION_FACTS_MAX: usize = 20_000;
/// Counts of the store's books that run beside the writer; further ones hold it up.
pub const BOOKS_AT_ONCE_MAX: usize = 4;
/// Connections of a broker at one time.
pub const CONNECTIONS_MAX: usize = 16_384;
/// Executors with a session at one broker.
pub const EXECUTORS_MAX: usize = 4_096;
/// Attempts that one executor may announce or hold.
pub const ATTEMPTS_PER_EXECUTOR_MAX: usize = 100_000;
/// Lines that a client may have submitted on one connection without having seen them end.
pub const UNFINISHED_PER_CLIENT_MAX: usize = 20_000;
/// Bytes of lines that a client holds as they may have to be sent again.
pub const UNFINISHED_BYTES_MAX: usize = 64 << 20;
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
/// Facts that a reader of the log gets from the store at one time.
pub const FACTS_PAGE_ROWS: usize = 128;
/// Messages to an executor that it has not read: the specs of all its slots, and room. One that
/// does not read loses its session.
pub const SESSION_UNSENT_BYTES_MAX: usize = 256 << 20;
/// Threads of a daemon that wait for the disk beside the store's writer.
pub const DISK_THREADS_MAX: usize = 4;
/// Bytes of the head of an HTTP message.
pub const HTTP_HEAD_BYTES_MAX: usize = 64 << 10;
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
/// Tries to reach a broker, somewhat over a second, before an executor says that none answers.
pub const REJOIN_TRIES_QUIET: u32 = 8;
/// How long an executor that ends waits for its jobs, unless a flag says otherwise.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an executor whose jobs have ended waits for its last results to be acknowledged; they
/// are on disk by then.
pub const DRAIN_ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(2);
/// The pause before an output is sent to a broker again that did not take it.
pub const UPLOAD_PAUSE: Duration = Duration::from_millis(250);
/// How long a job that was told to end may take before it is killed.
pub const KILL_GRACE: Duration = Duration::from_secs(2);
/// The wait before the first retry of a failed job; each further one doubles it.
pub const RETRY_BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// The longest wait before a retry.
pub const RETRY_BACKOFF_MAX: Duration = Duration::from_secs(30);
/// The longest time-out a job may have: ten years.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(10 * 365 * 86_400);

const _: () = assert!(SPEC_BYTES_MAX < LINE_BYTES_MAX, "a spec fits a line");
const _: () = assert!(
    OUTPUT_INLINE_BYTES_MAX * 2 * 6 < LINE_BYTES_MAX,
    "a result with both outputs inline fits a line even if every byte is escaped"
);
const _: () = assert!(OUTPUT_CHUNK_BYTES * 6 < LINE_BYTES_MAX, "a piece of output fits a line");
const _: () = assert!(STDIN_INLINE_BYTES_MAX * 6 < SPEC_BYTES_MAX, "inline stdin fits a spec");
const _: () = assert!(HEARTBEAT.as_millis() * 2 <= SUSPECT_AFTER.as_millis());
const _: () = assert!(SUSPECT_AFTER.as_millis() < LOST_AFTER.as_millis());
