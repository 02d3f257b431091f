//! Rounds: by the brokers themselves, and by `ucp-sync`.

use super::*;

/// So long that only what is pushed arrives.
const NEVER: &str = "1h";

#[test]
fn what_is_submitted_at_one_broker_is_known_and_ends_at_all() {
    let north = Site::new("north", &["--sync-interval", NEVER]).with_executor();
    let flags = ["--peer", &north.address(), "--sync-interval", NEVER];
    let south = Site::new("south", &flags).with_executor();
    // South named north, and introduced itself: both push.
    let first = south.submit(&["--", "echo", "from south"]);
    north.wait_for(&first, "succeeded");
    let second = north.submit(&["--", "echo", "from north"]);
    south.wait_for(&second, "succeeded");
    in_step(&north, &south);
    for job in [&first, &second] {
        assert_eq!(north.show(job), south.show(job));
    }
    let output = south.env.run("ucp-submit", &["output", &second]);
    assert_eq!(text(&output.stdout), "from north\n");
    // Whoever waits at one broker is told of an end at the other.
    let third = north.submit(&["--", "sh", "-c", "exit 3"]);
    south.wait_for(&third, "failed");
    let output = south.env.run("ucp-submit", &["wait", "--json", &third]);
    let line: Value = serde_json::from_slice(&output.stdout).expect("a result line");
    assert_eq!((&line["exit"], &line["final"]), (&3.into(), &false.into()));
    let peers = north.env.run("ucp-broker", &["peers", "--json"]);
    let peer: Value = serde_json::from_slice(&peers.stdout).expect("one peer");
    assert_eq!((&peer["how"], &peer["alive"]), (&"introduced".into(), &true.into()));
    assert_eq!(peer["log"], south.log());
    for site in [&north, &south] {
        let audit = site.env.run("ucp-broker", &["audit"]);
        assert!(audit.status.success(), "{audit:?}");
    }
}

#[test]
fn a14_two_brokers_that_never_meet_hold_the_same_through_a_third() {
    let quick = ["--sync-interval", "200ms", "--no-eager-sync"];
    let middle = Site::new("middle", &quick);
    let address = middle.address();
    let flags = [&["--peer", &address], &quick[..]].concat();
    let (left, right) = (Site::new("left", &flags), Site::new("right", &flags));
    let jobs = [left.submit(&["--", "true"]), right.submit(&["--", "true"])];
    for site in [&left, &middle, &right] {
        jobs.iter().for_each(|job| site.wait_for(job, "waiting"));
    }
    in_step(&left, &right);
}

#[test]
fn a12_both_halves_work_on_and_one_round_brings_them_together() {
    let (north, south) = (Site::new("north", &[]), Site::new("south", &[]));
    let (north, south) = (north.with_executor(), south.with_executor());
    // A31: the same key in both halves is one job.
    let keyed: Vec<String> = [&north, &south]
        .iter()
        .map(|site| site.submit(&["--key", "levels", "--", "sh", "-c", "echo $UCP_JOB_FENCE"]))
        .collect();
    assert_eq!(keyed[0], keyed[1]);
    let alone = [north.submit(&["--", "true"]), south.submit(&["--", "true"])];
    for (site, job) in [(&north, &alone[0]), (&south, &alone[1])] {
        site.wait_for(job, "succeeded");
        site.wait_for(&keyed[0], "succeeded");
    }
    let output = north.sync(&["diff", &north.address(), &south.address()]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout).lines().count(), 2, "a line for each log");
    let line = north.round(&south);
    assert_eq!((&line["from"], &line["with"]), (&north.log().into(), &south.log().into()));
    assert_eq!(line["equal"], true, "{line}");
    assert!(line["sent"].as_u64() > Some(5) && line["received"].as_u64() > Some(5), "{line}");
    assert!(line["bytes_out"].as_u64() > Some(100), "{line}");
    // A4: both name the same winner of what both have done.
    for job in [&keyed[0], &alone[0], &alone[1]] {
        assert_eq!(north.show(job), south.show(job));
    }
    let shown: Value = serde_json::from_str(&north.show(&keyed[0])).expect("a line");
    let results = shown["results"].as_array().expect("a list");
    let accepted = results.iter().filter(|result| result["verdict"] == "accepted").count();
    assert_eq!((results.len(), accepted), (2, 1), "{shown}");
    let again = north.round(&south);
    assert_eq!((&again["sent"], &again["received"]), (&0.into(), &0.into()));
    assert_eq!((&again["bytes_out"], &again["equal"]), (&0.into(), &true.into()));
}

#[test]
fn a22_a_broker_with_an_empty_directory_learns_everything_and_a_killed_one_comes_back() {
    let mut north = Site::new("north", &[]).with_executor();
    let jobs: Vec<String> = (0..5).map(|_| north.submit(&["--", "echo", "kept"])).collect();
    jobs.iter().for_each(|job| north.wait_for(job, "succeeded"));
    let south = Site::new("south", &["--peer", &north.address()]);
    jobs.iter().for_each(|job| south.wait_for(job, "succeeded"));
    in_step(&north, &south);
    // The disk of the first is gone with it.
    north.stop();
    north.executor = None;
    let output = south.env.run("ucp-submit", &["output", &jobs[4]]);
    assert_eq!(text(&output.stdout), "kept\n");
    std::fs::remove_dir_all(north.env.path("state/ucp/broker")).expect("it was there");
    std::fs::remove_dir_all(north.env.path("run/ucp")).expect("it was there");
    north.start(&[]);
    wait_until("south finds it again", || north.equals(&south).then_some(()));
    assert_eq!(north.jobs("succeeded").len(), 5);
}

#[test]
fn nothing_is_called_final_while_another_broker_is_known() {
    let north = Site::new("north", &[]).with_executor();
    let south = Site::new("south", &["--peer", &north.address()]);
    in_step(&north, &south);
    let output = north.env.run("ucp-submit", &["--until", "final", "--", "true"]);
    let said = text(&output.stderr);
    assert!(!output.status.success() && said.contains(&south.log()), "{output:?}");
    assert!(said.contains("--until accepted"), "{said}");
    let status = north.env.run("ucp-broker", &["status", "--json"]);
    let line: Value = serde_json::from_slice(&status.stdout).expect("a line");
    assert_eq!(line["stable"]["waits_for"][0], south.log());
}

#[test]
fn a_peer_that_is_not_there_is_told_once_and_found_when_it_comes() {
    let elsewhere = TestEnv::new();
    let address = format!("unix:{}", elsewhere.socket().display());
    let north = Site::new("north", &["-v", "--peer", &address, "--sync-interval", "300ms"]);
    let broker = north.broker.as_ref().expect("it runs");
    wait_until("it says so", || broker.stderr().contains(&address).then_some(()));
    let south = Site { env: elsewhere, broker: None, executor: None, name: "south" };
    let mut south = south;
    south.start(&[]);
    in_step(&north, &south);
    wait_until("it says so", || broker.stderr().contains("answers").then_some(()));
    let said = broker.stderr();
    assert_eq!(said.matches("No such file").count(), 1, "{said}");
}

#[test]
fn a_broker_that_is_its_own_peer_says_so() {
    let env = TestEnv::new();
    let address = format!("unix:{}", env.socket().display());
    let broker = env.broker_with(&["--peer", &address]);
    wait_until("it says so", || broker.stderr().contains("this broker itself").then_some(()));
}

#[test]
fn what_cannot_be_is_said_with_the_right_status() {
    let north = Site::new("north", &[]);
    let nowhere = "unix:/no/such.sock";
    for (arguments, status) in [
        (vec!["once"], 64),
        (vec!["once", "--with", nowhere, "--connect-timeout", "50ms"], 69),
        (vec!["diff", nowhere, nowhere], 69),
        (vec!["export", "--since", "{"], 65),
        (vec!["export", "--since", "@/no/such/file"], 66),
        (vec!["loop", "--every", "0s", "--with", nowhere], 64),
    ] {
        let output = north.sync(&arguments);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {output:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty());
    }
    // Of several the others are asked all the same.
    let south = Site::new("south", &[]);
    let waits = ["--connect-timeout", "100ms"];
    let ends = ["once", "--with", nowhere, "--with", &south.address()];
    let output = north.sync(&[&ends[..], &waits].concat());
    assert_eq!(output.status.code(), Some(69));
    assert!(text(&output.stdout).contains("\"equal\":true"), "{output:?}");
}

#[test]
fn a_loop_goes_on_until_a_signal_asks_for_the_end() {
    let (north, south) = (Site::new("north", &[]), Site::new("south", &[]));
    let mut command = north.env.command("ucp-sync");
    command.args(["loop", "--every", "50ms", "--with", &south.address()]);
    let mut looping = Daemon::start(command, &north.env.path("loop.err"));
    assert_eq!(looping.line()["equal"], true);
    let job = south.submit(&["--", "true"]);
    north.wait_for(&job, "waiting");
    looping.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(looping.wait().code(), Some(0));
}
