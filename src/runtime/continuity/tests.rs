//! Tests of continuity: one for each branch of the rule.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

const BOOT: &str = "0b1c2d3e-0000-4000-8000-000000000001";

/// A store that holds one log, whose facts have these chain hashes.
#[derive(Clone)]
struct Held {
    log: LogId,
    chains: BTreeMap<u64, Digest>,
}

impl Held {
    fn new(log: &LogId, facts: u64) -> Self {
        let chain = |seq: u64| Digest::of(format!("{log} {seq}").as_bytes());
        Self { log: log.clone(), chains: (1..=facts).map(|seq| (seq, chain(seq))).collect() }
    }

    fn head(&self) -> Head {
        let last = self.chains.last_key_value();
        last.map_or(Head { seq: 0, chain: chain_start(&self.log) }, |(seq, chain)| Head {
            seq: *seq,
            chain: *chain,
        })
    }

    fn prove(&self, run_dir: &Path, boot_id: &str, name: &str) -> Proof {
        static STARTS: AtomicU64 = AtomicU64::new(100);
        let seed = STARTS.fetch_add(1, Ordering::Relaxed);
        let start = Start { run_dir, name, boot_id, seed };
        let last = Some((self.log.clone(), self.head()));
        let chain_at = |log: &LogId, seq: u64| {
            (*log == self.log).then(|| self.chains.get(&seq).copied()).flatten()
        };
        prove(&start, last, chain_at).expect("the run directory can be written")
    }

    fn doubt(&self, run_dir: &Path) -> Option<Doubt> {
        let proof = self.prove(run_dir, BOOT, "north");
        match proof.opening {
            Opening::Continue(log) => assert_eq!((log, &proof.doubt), (self.log.clone(), &None)),
            Opening::Fresh { log, continues } => {
                assert_ne!(log, self.log);
                assert_eq!(continues, Some(self.log.clone()));
                assert!(proof.doubt.is_some());
            }
        }
        proof.doubt
    }
}

/// A run directory in which a broker wrote this many facts and ended.
fn written(facts: u64) -> (tempfile::TempDir, Held) {
    let run_dir = tempfile::tempdir().expect("a directory");
    let start = Start { run_dir: run_dir.path(), name: "north", boot_id: BOOT, seed: 1 };
    let proof = prove(&start, None, |_, _| None).expect("the run directory can be written");
    let Opening::Fresh { log, continues: None } = proof.opening else {
        panic!("nothing was written before: {:?}", proof.opening)
    };
    assert_eq!(proof.doubt, None);
    let held = Held::new(&log, facts);
    proof.continuity.record(&held.head()).expect("written");
    (run_dir, held)
}

#[test]
fn a_log_goes_on_after_an_ordinary_end() {
    let (run_dir, held) = written(3);
    assert_eq!(held.doubt(run_dir.path()), None);
    assert_eq!(held.doubt(run_dir.path()), None, "and again");
    let (run_dir, held) = written(0);
    assert_eq!(held.doubt(run_dir.path()), None, "also before its first fact");
}

#[test]
fn a_log_goes_on_after_a_crash_between_the_commit_and_the_head() {
    let (run_dir, held) = written(3);
    assert_eq!(Held::new(&held.log, 4).doubt(run_dir.path()), None);
}

#[test]
fn a18_a_restored_old_copy_begins_a_fresh_log() {
    let (run_dir, held) = written(9);
    let old = Held::new(&held.log, 5);
    let doubt = old.doubt(run_dir.path());
    assert_eq!(doubt, Some(Doubt::Ahead { held: 5, written: 9 }));
    // The log is closed now, even if the newer copy comes back.
    assert_eq!(held.doubt(run_dir.path()), Some(Doubt::Absent));
}

#[test]
fn a18_a_clone_begins_a_fresh_log_while_the_first_lives() {
    let (run_dir, held) = written(3);
    let first = held.prove(run_dir.path(), BOOT, "north");
    assert_eq!(first.opening, Opening::Continue(held.log.clone()));
    assert_eq!(held.doubt(run_dir.path()), Some(Doubt::Locked));
    let longer = Held::new(&held.log, 4);
    first.continuity.record(&longer.head()).expect("the first goes on");
    drop(first);
    assert_eq!(longer.doubt(run_dir.path()), None, "and after its restart");
}

#[test]
fn a18_a_clone_elsewhere_begins_a_fresh_log() {
    let (_run_dir, held) = written(3);
    let elsewhere = tempfile::tempdir().expect("a directory");
    assert_eq!(held.doubt(elsewhere.path()), Some(Doubt::Absent));
}

#[test]
fn a18_a_reboot_begins_a_fresh_log() {
    let (run_dir, held) = written(3);
    let proof = held.prove(run_dir.path(), "another boot", "north");
    assert_eq!(proof.doubt, Some(Doubt::OtherBoot));
    assert!(!head_path(run_dir.path(), &held.log).exists());
}

#[test]
fn a18_a_forked_log_is_not_continued() {
    let (run_dir, held) = written(3);
    let mut forked = Held::new(&held.log, 5);
    forked.chains.insert(3, Digest::of(b"another fact"));
    assert_eq!(forked.doubt(run_dir.path()), Some(Doubt::Forked(3)));
}

#[test]
fn a18_a_head_cut_or_changed_at_any_byte_never_goes_on_wrongly() {
    let (run_dir, held) = written(3);
    let path = head_path(run_dir.path(), &held.log);
    let whole = std::fs::read(&path).expect("it is there");
    assert_eq!(whole.len(), HEAD_BYTES);
    let written = whole.iter().rposition(|byte| *byte == b'}').expect("an object");
    for at in 0..=written {
        std::fs::write(&path, &whole[..at]).expect("cut");
        let doubt = held.doubt(run_dir.path());
        assert!(matches!(doubt, Some(Doubt::Unreadable(_))), "cut at {at}: {doubt:?}");
        let mut changed = whole.clone();
        changed[at] ^= 1;
        std::fs::write(&path, &changed).expect("changed");
        let doubt = held.doubt(run_dir.path());
        assert!(doubt.is_some(), "changed at {at}");
    }
    assert!(!path.exists(), "a file that proves nothing is removed");
    std::fs::create_dir(&path).expect("a directory in its place");
    assert!(matches!(held.doubt(run_dir.path()), Some(Doubt::Unreadable(_))));
}

#[test]
fn a_broker_with_another_name_begins_a_log_of_that_name() {
    let (run_dir, held) = written(3);
    let proof = held.prove(run_dir.path(), BOOT, "south");
    assert_eq!(proof.doubt, Some(Doubt::Renamed));
    assert!(proof.continuity.log().as_str().starts_with("south-"));
}

#[test]
fn a_shorter_head_leaves_no_tail_of_a_longer_one() {
    let (run_dir, held) = written(1);
    let proof = held.prove(run_dir.path(), BOOT, "north");
    let long = Head { seq: (1 << 53) - 1, chain: Digest::of(b"") };
    proof.continuity.record(&long).expect("written");
    proof.continuity.record(&held.head()).expect("written");
    drop(proof);
    assert_eq!(held.doubt(run_dir.path()), None);
}

#[test]
fn a_drawn_name_that_is_taken_is_drawn_again() {
    let (run_dir, held) = written(1);
    let start = Start { run_dir: run_dir.path(), name: "north", boot_id: BOOT, seed: 1 };
    let proof = prove(&start, None, |_, _| None).expect("another name");
    assert_ne!(*proof.continuity.log(), held.log);
    let known = |log: &LogId, _| (*log == held.log).then(|| Digest::of(b""));
    let elsewhere = tempfile::tempdir().expect("a directory");
    let start = Start { run_dir: elsewhere.path(), ..start };
    let proof = prove(&start, None, known).expect("another name");
    assert_ne!(*proof.continuity.log(), held.log);
}

#[test]
fn heads_of_other_boots_are_swept_and_those_of_this_boot_stay() {
    let run_dir = tempfile::tempdir().expect("a directory");
    let begin = |boot_id, seed| {
        let start = Start { run_dir: run_dir.path(), name: "north", boot_id, seed };
        prove(&start, None, |_, _| None).expect("begun").continuity
    };
    let stale = begin("before", 1);
    let kept = begin(BOOT, 2).path;
    assert!(stale.path.exists() && kept.exists(), "one that is locked stays");
    let path = stale.path.clone();
    drop(stale);
    let own = begin(BOOT, 3);
    assert!(!path.exists() && kept.exists() && own.path.exists());
}

#[test]
fn what_is_in_the_way_is_named() {
    let run_dir = Path::new("/nonexistent/run");
    let start = Start { run_dir, name: "north", boot_id: BOOT, seed: 1 };
    let error = prove(&start, None, |_, _| None).expect_err("there is no such directory");
    assert!(error.to_string().starts_with("cannot create /nonexistent/run/north-"), "{error}");
    let start = Start { name: "no name", ..start };
    let error = prove(&start, None, |_, _| None).expect_err("a blank is no letter");
    assert!(matches!(error, ContinuityError::Name(_)), "{error}");
}
