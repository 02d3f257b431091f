//! Tests of the check: what is whole has no fault, and each kind of change is found and named.

use super::super::tests::{Life, directory, jobs, meddle, one};
use super::super::{Durability, STORE_NAME, Store};
use super::*;
use crate::proto::event::Batch;

/// A store with `joined` at 1, then two facts for each of two jobs, at 2 to 5.
fn filled() -> tempfile::TempDir {
    let data = directory();
    let mut life = Life::begin(data.path());
    let batch = one(life.joined());
    life.commit(batch).expect("committed");
    for job in jobs(2) {
        let batch = life.job(job);
        life.commit(batch).expect("committed");
    }
    data
}

fn check(data: &std::path::Path) -> (Checked, Vec<Fault>) {
    let store = Store::open_existing(data).expect("it can be opened");
    let mut faults = vec![];
    let checked = store.check(&mut |fault| faults.push(fault)).expect("it can be read");
    assert_eq!(checked.faults, faults.len() as u64);
    (checked, faults)
}

#[test]
fn a_whole_store_has_no_fault() {
    let (checked, faults) = check(filled().path());
    assert_eq!((checked.facts, checked.jobs, faults), (5, 2, vec![]));
    let data = directory();
    drop(Store::open(data.path(), Durability::Os).expect("created"));
    assert_eq!(check(data.path()), (Checked::default(), vec![]), "an empty one neither");
}

#[test]
fn a20_each_change_is_found_once_and_named() {
    let changed_text = "replace(line, 'a test', 'a tesT')";
    for (kinds, statement) in [
        (&["chain"][..], &*format!("UPDATE facts SET line = {changed_text} WHERE id = 3")),
        (&["chain", "fact"], "UPDATE facts SET line = substr(line, 2) WHERE id = 1"),
        (&["chain", "chain"], "UPDATE facts SET chain = zeroblob(32) WHERE id = 3"),
        (&["fact"], "UPDATE facts SET chain = x'00' WHERE id = 5"),
        (&["fact"], "UPDATE facts SET log = 9 WHERE id = 5"),
        (&["gap"], "DELETE FROM facts WHERE id = 1"),
        (&["job"], "UPDATE jobs SET state = 'waiting' WHERE birth_seq = 2"),
        (&["job"], "UPDATE jobs SET state = 'nonsense' WHERE birth_seq = 2"),
        (&["job"], "UPDATE jobs SET generation = 2 WHERE birth_seq = 2"),
        (&["job"], "UPDATE jobs SET birth_seq = 3 WHERE birth_seq = 2"),
        (&["job"], "UPDATE jobs SET digest = zeroblob(32) WHERE birth_seq = 2"),
        (&["job"], "DELETE FROM jobs WHERE birth_seq = 2"),
        (&["job", "job"], "UPDATE jobs SET job = zeroblob(16) WHERE birth_seq = 2"),
        (&["job", "job"], "UPDATE jobs SET job = 'x' WHERE birth_seq = 2"),
        (&["log"], "DELETE FROM meta WHERE key = 'own_log'"),
        (&["log"], "UPDATE meta SET value = 'x' WHERE key = 'own_log'"),
    ] {
        let data = filled();
        meddle(data.path(), statement);
        let (_, faults) = check(data.path());
        let mut found: Vec<_> = faults.iter().map(|fault| fault.kind).collect();
        // A fact that is gone or changed changes its job, too.
        if !kinds.contains(&"job") {
            found.retain(|kind| *kind != "job");
        }
        assert_eq!(found, kinds, "{statement}: {faults:#?}");
    }
}

#[test]
fn i5_a_fact_whose_clock_or_place_is_wrong_is_found() {
    let data = directory();
    let mut life = Life::begin(data.path());
    let job = jobs(1)[0];
    let Batch { facts, rows } = life.job(job);
    let mut ahead = (*facts[1].fact).clone();
    ahead.clock.raise(&"other-00000000".parse::<LogId>().expect("a log").actor(), 7);
    let head = crate::proto::log::Head { seq: 1, chain: facts[0].chain };
    life.head = head;
    let ahead = life.seal_as(ahead);
    life.commit(Batch { facts: vec![facts[0].clone(), ahead], rows }).expect("committed");
    let (_, faults) = check(data.path());
    let found: Vec<_> = faults.iter().map(|fault| fault.kind).collect();
    assert_eq!(found, ["first", "cause"], "{faults:#?}");
    assert_eq!(faults[1].dot.as_ref().map(|dot| dot.seq), Some(2));
}

#[test]
fn a20_a_changed_byte_in_the_file_is_found_wherever_it_is() {
    let data = filled();
    let path = data.path().join(STORE_NAME);
    let whole = std::fs::read(&path).expect("readable");
    let mut found = 0;
    let mut tried = 0;
    for at in (0..whole.len()).step_by(199) {
        if whole[at] == 0 {
            continue; // unused space of a page means nothing
        }
        let mut changed = whole.clone();
        changed[at] ^= 0x55;
        std::fs::write(&path, &changed).expect("written");
        tried += 1;
        found += usize::from(match Store::open_existing(data.path()) {
            Err(_) => true,
            Ok(store) => {
                let mut faults = 0;
                let checked = store.check(&mut |_| faults += 1);
                checked.is_err() || faults > 0
            }
        });
    }
    // A few bytes of the file's own head carry no meaning, such as the version that wrote it.
    assert!(tried > 10 && found + 2 >= tried, "{found} of {tried} changes were found");
}
