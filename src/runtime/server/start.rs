//! A broker's life: claim, prove, load, listen, serve, stop.
//!
//! Law: nothing is served before the data directory is this process's alone, the log is proven or
//! fresh, and whatever the start wrote is durable; and whatever was answered is durable when the
//! process ends.

use std::cell::RefCell;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::proto::broker::{Broker, BrokerConfig};
use crate::proto::id::LogId;
use crate::proto::limits;
use crate::proto::rng::Rng;
use crate::runtime::activation::{self, ActivationError, Inherited};
use crate::runtime::blobs::{BLOBS_NAME, BlobError, Blobs};
use crate::runtime::continuity::{self, ContinuityError, Doubt, Proof};
use crate::runtime::drive::{Drive, StoreFailed};
use crate::runtime::endpoint::Address;
use crate::runtime::entropy;
use crate::runtime::ready::Supervisor;
use crate::runtime::rundir::{self, DirError, PRIVATE_MODE};
use crate::runtime::server::hub::Hub;
use crate::runtime::server::listen::{ListenError, Listener};
use crate::runtime::server::peers::{self, Rounds};
use crate::runtime::server::{self, Context};
use crate::runtime::signals::Stop;
use crate::runtime::store::{Durability, Store, StoreError, Writer};
use crate::wire::api::BrokerReadyLine;

/// How a broker is to serve.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What the core is told.
    pub broker: BrokerConfig,
    /// Where the data are.
    pub data: PathBuf,
    /// The run directory.
    pub run_dir: PathBuf,
    /// Where to listen besides the default socket, or besides what was handed over.
    pub listen: Vec<Address>,
    /// What a commit waits for.
    pub durability: Durability,
    /// Whether other machines may connect without TLS.
    pub insecure_plaintext: bool,
    /// The other brokers, and how to keep in step with them.
    pub rounds: Rounds,
}

/// Why a broker does not serve, or no longer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// A directory, lock or socket cannot be had. Nothing was served.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// The store cannot be opened or read. Nothing was served.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The blobs cannot be opened. Nothing was served.
    #[error(transparent)]
    Blobs(#[from] BlobError),
    /// No log can be written. Nothing was served.
    #[error(transparent)]
    Continuity(#[from] ContinuityError),
    /// Another live broker of this run directory writes the log that this data directory ends
    /// with: one of the two is a copy. Nothing was served or written.
    #[error("a live broker writes the log of {0}: one of the two data directories is a copy")]
    Cloned(PathBuf),
    /// What a supervisor handed over cannot be listened on. Nothing was served.
    #[error(transparent)]
    Inherited(#[from] ActivationError),
    /// An address cannot be listened on. Nothing was served.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The store failed while the broker served. What was acknowledged is durable.
    #[error(transparent)]
    Failed(#[from] StoreFailed),
    /// The system refused something the broker cannot do without. Nothing was served.
    #[error("{what}")]
    System {
        /// What was wanted.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The ready line could not be handed over. Nothing was served.
    #[error("cannot say that the broker is ready")]
    Announce(#[source] io::Error),
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |source| ServeError::System { what, source }
}

/// Serves until a signal asks for the end. `announce` hands over the ready line.
///
/// # Errors
/// [`ServeError`]; whatever was acknowledged is durable.
pub fn run(
    settings: &Settings,
    announce: impl FnOnce(&BrokerReadyLine) -> io::Result<()>,
) -> Result<(), ServeError> {
    // Before any thread is started: the environment changes.
    let inherited = activation::take()?;
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(limits::DISK_THREADS_MAX)
        .build_local(LocalOptions::default())
        .map_err(system("cannot start the event loop"))?;
    let done = runtime.block_on(serve(settings, inherited, announce));
    // A reader of a slow disk must not hold up the end.
    runtime.shutdown_background();
    done
}

async fn serve(
    settings: &Settings,
    inherited: Vec<Inherited>,
    announce: impl FnOnce(&BrokerReadyLine) -> io::Result<()>,
) -> Result<(), ServeError> {
    let mut stop = Stop::listen().map_err(system("cannot listen for signals"))?;
    raise_descriptors();
    rundir::ensure_dir(&settings.data, PRIVATE_MODE)?;
    rundir::ensure_dir(&settings.run_dir, PRIVATE_MODE)?;
    let data_lock = rundir::lock_data(&settings.data)?;
    let blobs = Arc::new(Blobs::open(&settings.data.join(BLOBS_NAME))?);
    let (broker, writer) = open(settings)?;
    let log = broker.log().cloned().expect("the core is open");
    let hub = Rc::new(Hub::default());
    let context = Rc::new(Context::new(Rc::clone(&hub), blobs, settings.data.clone()));
    let mut drive = Drive::new(broker, Rc::clone(&hub), writer);
    drive.settle().await?;

    let listeners = listeners(settings, inherited, &log).await?;
    let listen: Vec<String> = listeners.iter().map(|one| one.address().to_string()).collect();
    let pid = std::process::id();
    let line = BrokerReadyLine { kind: "ready".into(), ready: true, log, pid, listen };
    let addresses: Vec<Address> = listeners.iter().map(Listener::address).collect();
    for listener in listeners {
        tokio::task::spawn_local(server::accept(Rc::clone(&context), listener));
    }
    peers::begin(&context, &line.log, &addresses, &settings.rounds);
    announce(&line).map_err(ServeError::Announce)?;
    let supervisor = Rc::new(RefCell::new(Supervisor::of_environment()));
    supervisor.borrow_mut().ready(format!("{} on {}", line.log, line.listen.join(" ")));

    let (asked, hurried) = (Rc::new(Notify::new()), Rc::new(Notify::new()));
    let signals = (Rc::clone(&asked), Rc::clone(&hurried));
    let (told, draining) = (Rc::clone(&supervisor), Rc::clone(&hub));
    tokio::task::spawn_local(async move {
        let signal = stop.next().await;
        tracing::info!("signal {signal}: the broker stops");
        told.borrow_mut().stopping();
        draining.drain();
        signals.0.notify_one();
        stop.next().await;
        signals.1.notify_one();
    });
    let orderly = async {
        let done = drive.run(asked.notified(), &supervisor).await;
        hub.stop();
        // What is durable was answered; the answers get a moment to leave. Who follows something
        // is cut off and looks for a broker again.
        let _ = timeout(limits::CLOSE_WITHIN, context.all_gone()).await;
        done
    };
    let done = tokio::select! {
        done = orderly => done,
        // What is not durable yet was not acknowledged either.
        () = hurried.notified() => Ok(()),
    };
    drop(drive);
    drop(data_lock);
    Ok(done?)
}

/// Where connections come in: what was handed over, or else the default socket; and what was asked
/// for besides.
async fn listeners(
    settings: &Settings,
    inherited: Vec<Inherited>,
    log: &LogId,
) -> Result<Vec<Listener>, ServeError> {
    let insecure = settings.insecure_plaintext;
    let mut listeners = vec![];
    if inherited.is_empty() {
        let claim = rundir::claim_socket(&settings.run_dir, log)?;
        listeners.push(Listener::on_claim(claim)?);
    }
    for socket in inherited {
        listeners.push(Listener::inherited(socket, insecure)?);
    }
    for address in &settings.listen {
        listeners.push(Listener::on(address, insecure).await?);
    }
    Ok(listeners)
}

/// Opens the store and brings the core to where it was.
fn open(settings: &Settings) -> Result<(Broker, Writer), ServeError> {
    let store = Store::open(&settings.data, settings.durability)?;
    let mut broker = Broker::new(settings.broker.clone(), Rng::from_seed(entropy::seed()));
    store.load(|sealed| broker.restore(sealed))?;
    let boot_id = entropy::boot_id().map_err(system("cannot read the kernel's boot id"))?;
    let start = continuity::Start {
        run_dir: &settings.run_dir,
        name: &settings.broker.name,
        boot_id: &boot_id,
        seed: entropy::seed(),
    };
    let chain_at = |log: &_, seq| match store.chain_at(log, seq) {
        Ok(chain) => chain,
        Err(error) => {
            // An unknown chain proves nothing, so a fresh log is begun: always safe.
            tracing::warn!("{error}");
            None
        }
    };
    let Proof { opening, continuity, doubt } =
        continuity::prove(&start, store.last_own_log()?, chain_at)?;
    if let Some(doubt) = doubt {
        // Whoever holds the lock writes that log at this moment: a log that says it carries it
        // on would close it under a live broker.
        if matches!(doubt, Doubt::Locked) {
            return Err(ServeError::Cloned(settings.data.clone()));
        }
        let what = "the broker's last log is closed and a fresh one begins";
        match doubt {
            Doubt::Absent | Doubt::OtherBoot | Doubt::Renamed => tracing::info!("{what}: {doubt}"),
            _ => tracing::warn!("{what}: {doubt}"),
        }
    }
    broker.open(entropy::now(), opening);
    Ok((broker, store.into_writer(continuity)?))
}

/// Takes as many descriptors as the system gives without asking: each connection needs one.
fn raise_descriptors() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::debug!("the number of descriptors stays as it is: {error}");
    }
}
