//! Bytes that changed, on a disk or on the way: named, and never passed on or taken.

use super::*;

#[test]
fn a20_a_byte_that_changed_on_the_way_is_named_and_not_taken() {
    let north = Site::new("north", &[]).with_executor();
    let job = north.submit(&["--", "echo", "intact"]);
    north.wait_for(&job, "succeeded");
    let facts = north.export(&[]);
    let changed = facts.replace("intact", "changed");
    assert_ne!(facts, changed);
    let south = Site::new("south", &[]);
    let (status, line, said) = south.import(&changed);
    assert_ne!(status, Some(0), "{line}");
    assert!(said.contains(&north.log()) || said.contains("line "), "{said}");
    assert_eq!(south.jobs("succeeded").len(), 0);
    // The right ones are taken afterwards, from whoever has them.
    let line = south.round(&north);
    assert_eq!(line["equal"], true, "{line}");
    south.wait_for(&job, "succeeded");
}

/// Changes a line of the store of a broker that does not run.
fn flip(site: &Site) {
    let path = site.env.path("state/ucp/broker/broker.db");
    let store = rusqlite::Connection::open(path).expect("a store");
    let changed = store.execute(
        "UPDATE facts SET line = replace(line, 'intact', 'change') WHERE line LIKE '%intact%'",
        [],
    );
    assert!(changed.expect("it can be written") > 0);
}

#[test]
fn a20_a_byte_that_changed_in_a_store_is_named_and_not_spread() {
    let north = Site::new("north", &[]).with_executor();
    let job = north.submit(&["--", "echo", "intact"]);
    north.wait_for(&job, "succeeded");
    // While it runs: what it reads for others is looked at each time.
    flip(&north);
    let south = Site::new("south", &[]);
    let output = south.sync(&["once", "--from", &south.address(), "--with", &north.address()]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains(&north.log()), "{output:?}");
    assert_eq!(south.jobs("succeeded").len() + south.jobs("waiting").len(), 0);
    assert!(!south.export(&[]).contains("change"));
    let diff = south.sync(&["diff", &south.address(), &north.address()]);
    assert_eq!(diff.status.code(), Some(1));
    assert!(text(&diff.stdout).contains(&north.log()));
}

#[test]
fn a18_a_copied_data_directory_uses_no_dot_twice_and_is_named() {
    let mut north = Site::new("north", &[]);
    let first = north.log();
    north.submit(&["--", "true"]);
    north.stop();
    // The copy runs elsewhere, where nothing proves that the log goes on.
    let copy = TestEnv::new();
    std::fs::create_dir_all(copy.path("state/ucp")).expect("room");
    let copied = std::process::Command::new("cp")
        .arg("-r")
        .args([north.env.path("state/ucp/broker"), copy.path("state/ucp/broker")])
        .status();
    assert!(copied.expect("cp runs").success());
    let mut copy = Site { env: copy, broker: None, executor: None, name: "north" };
    copy.start(&[]);
    north.start(&[]);
    assert_eq!(north.log(), first, "the original goes on");
    assert_ne!(copy.log(), first, "the copy begins a log of its own");
    north.submit(&["--", "true"]);
    let line = copy.round(&north);
    assert_eq!(line["equal"], true, "{line}");
    let said = north.broker.as_ref().expect("it runs").stderr();
    assert!(said.contains("is a copy"), "{said}");
    assert_eq!(north.jobs("waiting").len(), 2);
}
