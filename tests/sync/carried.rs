//! Facts that are carried by hand: whatever happens on the way, nothing false is taken.

use super::*;

fn worked(name: &'static str) -> (Site, Vec<String>) {
    let site = Site::new(name, &[]).with_executor();
    let jobs: Vec<String> = (0..6).map(|_| site.submit(&["--", "echo", name])).collect();
    jobs.iter().for_each(|job| site.wait_for(job, "succeeded"));
    (site, jobs)
}

#[test]
fn two_brokers_that_never_connect_agree_by_a_file_carried_both_ways() {
    let ((north, mut jobs), (south, more)) = (worked("north"), worked("south"));
    let vector = text(&south.sync(&["vector"]).stdout);
    let facts = north.export(&["--since", vector.trim()]);
    let (status, line, _) = south.import(&facts);
    assert_eq!((status, &line["known"], &line["waiting"]), (Some(0), &0.into(), &0.into()));
    std::fs::write(south.env.path("last.json"), text(&north.sync(&["vector"]).stdout))
        .expect("room");
    let facts = south.export(&["--since", "@last.json"]);
    assert!(!facts.contains(&format!("\"dot\":[\"{}\"", north.log())), "only what north lacks");
    let (status, line, _) = north.import(&facts);
    assert_eq!((status, &line["waiting"]), (Some(0), &0.into()));
    assert!(north.equals(&south));
    jobs.extend(more);
    for job in &jobs {
        assert_eq!(north.show(job), south.show(job));
    }
    // Twice is once.
    let (status, line, _) = south.import(&north.export(&[]));
    assert_eq!((status, &line["new"]), (Some(0), &0.into()));
}

#[test]
fn a_file_that_is_cut_off_anywhere_is_taken_as_far_as_it_is_proven() {
    let (north, _) = worked("north");
    let facts = north.export(&[]);
    let whole: u64 = facts.lines().filter(|line| line.starts_with("{\"v\"")).count() as u64;
    let south = Site::new("south", &[]);
    let lines: Vec<&str> = facts.lines().collect();
    let marks = lines.iter().position(|line| line.contains("\"marks\"")).expect("marks");
    let cut = |count: usize| lines[..count].join("\n");
    // Before the marks nothing is proven.
    let (status, line, _) = south.import(&cut(marks));
    assert_eq!((status, &line["new"]), (Some(0), &0.into()));
    assert_eq!(line["waiting"].as_u64(), Some(marks as u64 - 1), "{line}");
    // In the middle of a line.
    let broken = format!("{}\n{{\"v\":1,\"dot\":[\"no", cut(3));
    let (status, line, said) = south.import(&broken);
    assert_eq!((status, &line["new"], &line["bad_lines"]), (Some(65), &0.into(), &1.into()));
    assert!(said.contains("line 4"), "{said}");
    let (status, line, _) = south.import(&cut(marks + 1));
    assert_eq!((status, line["new"].as_u64()), (Some(0), Some(whole)));
    assert!(south.round(&north)["equal"] == true);
}

#[test]
fn lines_in_any_order_are_the_same_facts() {
    let (north, _) = worked("north");
    let south = Site::new("south", &[]);
    let facts = north.export(&[]);
    let mut lines: Vec<&str> = facts.lines().collect();
    lines.reverse();
    let (status, line, said) = south.import(&lines.join("\n"));
    assert_eq!((status, &line["waiting"]), (Some(0), &0.into()), "{said}");
    assert!(line["new"].as_u64() > Some(20), "{line}");
    south.round(&north);
    assert!(south.equals(&north));
}

#[test]
fn a35_garbage_changes_nothing_and_is_named() {
    let north = Site::new("north", &[]);
    let before = text(&north.sync(&["vector"]).stdout);
    let deep = "[".repeat(100_000);
    let alien = "{\"v\":1,\"dot\":[\"alien-00000001\",1],\"clock\":{\"alien-00000001\":2},\
                 \"kind\":\"joined\",\"at\":\"\",\"body\":{\"name\":\"x\",\"fold_version\":1}}";
    let newer = "{\"type\":\"export\",\"v\":99,\"log\":\"a-1\",\"since\":{}}";
    let cases = [
        ("not json\n", "not a fact"),
        (deep.as_str(), "not a fact"),
        (alien, "counts its own log at 2"),
        (newer, "version 99"),
        ("{\"type\":\"marks\",\"marks\":7}\n", "not a frame"),
        ("{\"v\":1}\n\u{0}\n", "line 2"),
    ];
    for (input, expected) in cases {
        let (status, line, said) = north.import(input);
        assert_eq!((status, &line["new"]), (Some(65), &0.into()), "{said}");
        assert!(said.contains(expected), "{expected}: {said}");
    }
    assert_eq!(text(&north.sync(&["vector"]).stdout), before);
    let audit = north.env.run("ucp-broker", &["audit"]);
    assert!(audit.status.success());
}
