//! `ucp-broker serve`: flags into settings, failures into words and exit statuses.

use std::io;
use std::path::{Path, PathBuf};

use crate::cli::broker::flags::{Durability, Serve};
use crate::cli::exit::Exit;
use crate::cli::output::{self, OutputError};
use crate::cli::report::{Failure, chain};
use crate::proto::broker::BrokerConfig;
use crate::runtime::rundir::{self, DataKind};
use crate::runtime::server::listen::ListenError;
use crate::runtime::server::peers::Rounds;
use crate::runtime::server::start::{self, ServeError, Settings};
use crate::runtime::store;

/// Serves until a signal asks for the end.
pub fn serve(flags: &Serve) -> Result<Exit, Failure> {
    let settings = settings(flags)?;
    let announced = start::run(&settings, |line| {
        output::line(line).map_err(|error| match error {
            OutputError::Closed => io::ErrorKind::BrokenPipe.into(),
            OutputError::Write(_, error) => error,
        })
    });
    announced.map(|()| Exit::Done).map_err(failure)
}

fn settings(flags: &Serve) -> Result<Settings, Failure> {
    let (suspect, lost) = (flags.suspect_after, flags.lost_after);
    if suspect.duration() >= lost.duration() {
        let why = format!("--suspect-after {suspect} must be less than --lost-after {lost}");
        return Err(Failure::usage(why));
    }
    let retention_ms = flags.retention.duration().as_millis();
    let broker = BrokerConfig {
        name: flags.name.clone().unwrap_or_else(|| host_name("broker")),
        retention_ms: u64::try_from(retention_ms).unwrap_or(u64::MAX),
        suspect_after: suspect.duration(),
        lost_after: lost.duration(),
        reconnect_grace: flags.reconnect_grace.duration(),
        queued_max: flags.max_queued,
        has_others: !flags.peer.is_empty(),
        ..BrokerConfig::default()
    };
    let data = data_dir(flags.data.as_deref())?;
    Ok(Settings {
        broker,
        data,
        run_dir: flags.run_dir.clone().unwrap_or_else(rundir::run_dir),
        listen: flags.listen.clone(),
        durability: match flags.durability {
            Durability::Fsync => store::Durability::Fsync,
            Durability::Os => store::Durability::Os,
        },
        insecure_plaintext: flags.insecure_plaintext,
        rounds: Rounds {
            peers: flags.peer.clone(),
            interval: flags.sync_interval.duration(),
            eager: !flags.no_eager_sync,
            rate: flags.sync_max_rate.map(|size| size.0),
        },
    })
}

/// The broker's data directory: the one that is said, or the one that the rules name.
pub fn data_dir(said: Option<&Path>) -> Result<PathBuf, Failure> {
    match said {
        Some(data) => Ok(data.to_owned()),
        None => rundir::data_dir(DataKind::Broker).map_err(Failure::from),
    }
}

/// The host's name up to the first dot, as far as it can stand in a name; `other` if nothing can.
pub fn host_name(other: &str) -> String {
    let name = nix::unistd::gethostname().unwrap_or_default();
    let name = name.to_string_lossy();
    let first = name.split('.').next().unwrap_or_default();
    let legal = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let name: String = first.chars().filter(legal).take(63).collect();
    if name.is_empty() { other.to_owned() } else { name }
}

fn failure(error: ServeError) -> Failure {
    let words = chain(&error);
    match &error {
        ServeError::Dir(error) | ServeError::Listen(ListenError::Claim(error)) => error.into(),
        ServeError::Store(error) => error.into(),
        ServeError::Listen(ListenError::Open { .. }) => Failure::new(Exit::Config, words)
            .hint("listen on 127.0.0.1, or say --insecure-plaintext if the network is trusted"),
        ServeError::Listen(ListenError::Bind { source, .. }) => {
            Failure::new(of_bind(source), words)
        }
        ServeError::Inherited(_) => Failure::new(Exit::Config, words)
            .hint("hand over stream sockets that listen, or unset LISTEN_FDS"),
        ServeError::Cloned(_) => Failure::new(Exit::Config, words)
            .hint("start it with an empty --data, or stop the other broker first"),
        ServeError::Announce(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            Failure::quiet()
        }
        ServeError::Failed(_) => Failure::new(Exit::Io, words)
            .hint("what was acknowledged is safe; start it again when the disk is well"),
        _ => Failure::new(Exit::Io, words),
    }
}

fn of_bind(error: &io::Error) -> Exit {
    match error.kind() {
        io::ErrorKind::PermissionDenied => Exit::Denied,
        io::ErrorKind::AddrInUse => Exit::Later,
        io::ErrorKind::AddrNotAvailable | io::ErrorKind::InvalidInput => Exit::Config,
        _ => Exit::Io,
    }
}
