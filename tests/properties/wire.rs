//! Whatever bytes come from outside: no panic, a clear error, and nothing lost (A35).

use proptest::prelude::*;
use ucp::proto::clock::Clock;
use ucp::proto::fact::Fact;
use ucp::proto::job::JobSpec;
use ucp::proto::message::{BrokerMessage, ExecutorMessage};
use ucp::proto::units::{Size, Span};
use ucp::wire::api::SubmitLine;
use ucp::wire::lines::Lines;

const SPEC: &str = concat!(
    r#"{"command":["sh","-c","true"],"env":{"A":"b"},"stdin":{"text":"x"},"#,
    r#""needs":{"cores":2,"memory":"1G","labels":["gpu"]},"precedence":"flash","#,
    r#""retries":3,"timeout":"30s","key":"k","name":"n"}"#
);
const FACT: &str = concat!(
    r#"{"v":1,"dot":["n-1",2],"clock":{"n-1":2},"#,
    r#""job":"00000000-0000-0000-0000-000000000001","birth":["n-1",1],"gen":1,"#,
    r#""kind":"deployed","at":"","body":{"executor":"e","life":1,"fence":1}}"#
);

/// A text with some of its bytes changed, dropped or doubled.
fn damaged(text: &'static str) -> impl Strategy<Value = Vec<u8>> {
    let changes = proptest::collection::vec((any::<usize>(), any::<u8>(), 0..3_u8), 1..6);
    changes.prop_map(move |changes| {
        let mut bytes = text.as_bytes().to_vec();
        for (at, byte, how) in changes {
            let at = at % bytes.len().max(1);
            match how {
                0 if !bytes.is_empty() => bytes[at] = byte,
                1 if bytes.len() > 1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, byte),
            }
        }
        bytes
    })
}

/// Hands a text to everything that reads texts from outside.
fn read_by_all(text: &str) {
    let _ = JobSpec::from_json(text);
    let _ = Fact::parse(text);
    let _ = serde_json::from_str::<Clock>(text);
    let _ = serde_json::from_str::<SubmitLine>(text);
    let _ = serde_json::from_str::<ExecutorMessage>(text);
    let _ = serde_json::from_str::<BrokerMessage>(text);
    let _ = text.parse::<Span>();
    let _ = text.parse::<Size>();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, ..ProptestConfig::default() })]

    #[test]
    fn a35_any_text_is_read_without_panic(text in any::<String>()) {
        read_by_all(&text);
    }

    #[test]
    fn a35_damaged_specs_and_facts_are_read_without_panic(
        spec in damaged(SPEC), fact in damaged(FACT),
    ) {
        read_by_all(&String::from_utf8_lossy(&spec));
        read_by_all(&String::from_utf8_lossy(&fact));
    }

    #[test]
    fn a35_any_bytes_are_cut_into_the_same_lines_however_they_arrive(
        bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..200),
        cuts in proptest::collection::vec(1..20_usize, 1..20),
    ) {
        let whole = {
            let mut lines = Lines::new();
            lines.push(&bytes);
            let mut found: Vec<_> = std::iter::from_fn(|| lines.next()).collect();
            found.extend(lines.rest());
            found
        };
        let (mut lines, mut found, mut rest) = (Lines::new(), vec![], &bytes[..]);
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, tail) = rest.split_at((*cut).min(rest.len()));
            lines.push(piece);
            found.extend(std::iter::from_fn(|| lines.next()));
            rest = tail;
        }
        found.extend(lines.rest());
        prop_assert_eq!(found, whole);
    }

    #[test]
    fn a_valid_spec_keeps_its_digest_through_json(
        args in proptest::collection::vec("[^\0]{0,20}", 0..5),
        retries in 0..1_000_u32,
        cores in 1..64_u32,
    ) {
        let mut command = vec!["run".to_owned()];
        command.extend(args);
        let mut spec = JobSpec::command(command);
        spec.retries = retries;
        spec.needs.cores = cores;
        let read = JobSpec::from_json(&spec.to_json()).expect("a valid spec");
        prop_assert_eq!(read.digest(), spec.digest());
        prop_assert_eq!(read, spec);
    }
}

#[test]
fn the_samples_are_valid() {
    assert_eq!(JobSpec::from_json(SPEC).expect("a spec").to_json(), SPEC);
    assert_eq!(Fact::parse(FACT).expect("a fact").to_line(), FACT);
}

#[test]
fn a35_deep_nesting_and_duplicate_keys_are_clear_errors() {
    let deep = format!("{{\"command\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
    assert!(JobSpec::from_json(&deep).is_err());
    let twice = JobSpec::from_json(r#"{"command":["a"],"command":["b"]}"#).expect_err("twice");
    assert!(twice.to_string().contains("duplicate field `command`"), "{twice}");
    let twice = serde_json::from_str::<Clock>(r#"{"a":1,"a":2}"#).expect_err("twice");
    assert!(twice.to_string().contains("stands twice"), "{twice}");
    let large = serde_json::from_str::<Clock>(r#"{"a":9007199254740992}"#).expect_err("large");
    assert!(large.to_string().contains("2^53"), "{large}");
}
