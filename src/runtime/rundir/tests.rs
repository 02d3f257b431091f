//! Tests of the run directory: its place, its locks, its sockets.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use super::*;

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

fn log(text: &str) -> LogId {
    text.parse().expect("a log")
}

#[test]
fn the_run_directory_follows_the_rule() {
    let of = |runtime: Option<&str>, user| run_dir_of(runtime.map(Into::into), user);
    assert_eq!(of(Some("/run/user/7"), 7), Path::new("/run/user/7/ucp"));
    assert_eq!(of(Some("/run/user/0"), 0), Path::new("/run/user/0/ucp"));
    assert_eq!(of(None, 0), Path::new("/run/ucp"));
    assert_eq!(of(None, 7), Path::new("/tmp/ucp-7"));
    assert_eq!(of(Some(""), 7), Path::new("/tmp/ucp-7"));
    assert_eq!(of(Some("relative"), 0), Path::new("/run/ucp"));
}

#[test]
fn the_data_directory_follows_the_rule() {
    let of = |state: Option<&str>, home: Option<&str>, user| {
        data_home_of(state.map(Into::into), home.map(Into::into), user)
    };
    let is = |text: &str| Some(PathBuf::from(text));
    assert_eq!(of(Some("/state"), Some("/home/a"), 0), is("/state"));
    assert_eq!(of(None, Some("/root"), 0), is("/var/lib"));
    assert_eq!(of(None, Some("/home/a"), 7), is("/home/a/.local/state"));
    assert_eq!(of(Some("relative"), Some("/home/a"), 7), is("/home/a/.local/state"));
    assert_eq!(of(None, Some(""), 7), None);
    assert_eq!(of(None, None, 7), None);
}

#[test]
fn a_directory_is_created_for_its_owner_alone() {
    let outer = directory();
    let path = outer.path().join("a/b");
    ensure_dir(&path, PRIVATE_MODE).expect("created");
    ensure_dir(&path, PRIVATE_MODE).expect("it is there");
    for made in [path.clone(), outer.path().join("a")] {
        let mode = made.metadata().expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, PRIVATE_MODE);
    }
    std::fs::write(path.join("file"), "").expect("a file");
    let error = ensure_dir(&path.join("file"), PRIVATE_MODE).expect_err("a file");
    assert!(matches!(error, DirError::NotDirectory(_)), "{error}");
    symlink(&path, outer.path().join("link")).expect("a link");
    check_dir(&outer.path().join("link")).expect("a link of our own");
}

#[test]
fn a_directory_that_others_may_write_is_refused() {
    let outer = directory();
    let everybody = std::fs::Permissions::from_mode(0o1777);
    std::fs::set_permissions(outer.path(), everybody).expect("our own");
    let error = check_dir(outer.path()).expect_err("everybody may write");
    assert!(matches!(error, DirError::Open { mode: 0o777, .. }), "{error}");
    assert_eq!(error.hint(), Some("take the right away with 'chmod o-w'"));
}

#[test]
fn a_directory_of_somebody_else_is_refused() {
    let foreign = if geteuid().is_root() {
        let outer = directory().keep();
        std::os::unix::fs::chown(&outer, Some(4242), None).expect("we are root");
        outer
    } else {
        PathBuf::from("/usr")
    };
    let error = check_dir(&foreign).expect_err("not ours");
    assert!(matches!(error, DirError::Owner { .. }), "{error}");
    if geteuid().is_root() {
        std::fs::remove_dir(&foreign).expect("empty");
    }
}

#[test]
fn a_data_directory_has_one_user() {
    let outer = directory();
    let lock = lock_data(outer.path()).expect("nobody has it");
    let error = lock_data(outer.path()).expect_err("it is taken");
    let own = std::process::id();
    assert!(matches!(error, DirError::InUse { pid: Some(pid), .. } if pid == own), "{error}");
    assert!(error.is_retryable());
    drop(lock);
    lock_data(outer.path()).expect("it is free again");
}

#[test]
fn further_brokers_take_sockets_of_their_own() {
    let outer = directory();
    let first = claim_socket(outer.path(), &log("north-00000001")).expect("the first");
    assert_eq!(first.path(), outer.path().join("broker.sock"));
    // The second comes while the first has not yet bound its socket.
    let second = claim_socket(outer.path(), &log("south-00000002")).expect("the second");
    assert_eq!(second.path(), outer.path().join("broker-south-00000002.sock"));
    let _bound = [first.path(), second.path()].map(|path| UnixListener::bind(path).expect("free"));
    let again = claim_socket(outer.path(), &log("south-00000002")).expect_err("its own is taken");
    assert!(matches!(again, DirError::Taken(_)), "{again}");
    drop(first);
    let third = claim_socket(outer.path(), &log("west-00000003")).expect("the first has left");
    assert_eq!(third.path(), outer.path().join("broker.sock"));
    drop((second, third));
    let entries = outer.path().read_dir().expect("it is there");
    let left: Vec<_> = entries.map(|entry| entry.expect("a name").file_name()).collect();
    assert_eq!(left, ["sockets.lock"], "neither sockets nor their locks are left");
}

#[test]
fn a_stale_socket_is_removed_and_a_live_one_is_not() {
    let outer = directory();
    let path = outer.path().join("broker.sock");
    drop(UnixListener::bind(&path).expect("free"));
    drop(UnixListener::bind(outer.path().join("broker-old-1.sock")).expect("free"));
    let claim = claim_socket(outer.path(), &log("north-00000001")).expect("the socket is stale");
    assert_eq!(claim.path(), path);
    assert!(!path.exists() && !outer.path().join("broker-old-1.sock").exists());
    drop(claim);
    let _listener = UnixListener::bind(&path).expect("free");
    let claim = claim_socket(outer.path(), &log("north-00000001")).expect("one beside it");
    assert_eq!(claim.path(), outer.path().join("broker-north-00000001.sock"));
    assert!(path.exists(), "who listens without a lock keeps its socket");
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let outer = directory();
    let path = outer.path().join("broker.sock");
    std::fs::write(&path, "somebody's").expect("a file");
    let error = claim_socket(outer.path(), &log("north-00000001")).expect_err("a file is there");
    assert!(matches!(error, DirError::NotSocket(_)), "{error}");
    assert_eq!(std::fs::read_to_string(&path).expect("it is there"), "somebody's");
    let long = outer.path().join("x".repeat(limits::SOCKET_PATH_BYTES_MAX));
    let error = claim_path(&long).expect_err("too long");
    assert!(matches!(error, DirError::Long(_)), "{error}");
}
