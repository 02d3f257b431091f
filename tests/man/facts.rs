//! The page of facts: each kind that the code knows is explained, and its examples are facts.

use std::collections::BTreeSet;

use ucp::proto::fact::Fact;

const PAGE: &str = include_str!("../../man/ucp-facts.5");
const SOURCE: &str = include_str!("../../src/proto/fact.rs");

/// The kinds that the code writes: the words of the one match over them.
fn kinds() -> Vec<&'static str> {
    let body = SOURCE.split_once("fn kind(&self)").expect("kinds have words").1;
    let body = body.split_once("\n    }\n").expect("it ends").0;
    let word =
        |line: &'static str| line.split_once("=> \"")?.1.split_once('"').map(|(word, _)| word);
    body.lines().filter_map(word).collect()
}

/// The examples: what stands as it is under each kind, in one line again.
fn examples() -> Vec<String> {
    let kinds = PAGE.split_once(".SH KINDS").expect("there are kinds").1;
    let kinds = kinds.split_once("\n.SH ").expect("something follows").0;
    let blocks = kinds.split("\n.EX\n").skip(1);
    let block = |block: &str| {
        let lines = block.split_once("\n.EE").expect("an example ends").0.replace('\n', "");
        lines.replace("\\-", "-").replace("\\(aq", "'").replace("\\e", "\\")
    };
    blocks.map(block).collect()
}

#[test]
fn every_kind_has_its_place_and_its_example() {
    let kinds = kinds();
    assert!(kinds.len() >= 12, "{kinds:?}");
    let mut shown = BTreeSet::new();
    for example in examples() {
        let fact = Fact::parse(&example).unwrap_or_else(|error| panic!("{error}: {example}"));
        assert_eq!(fact.to_line(), example, "it is what a broker would write");
        shown.insert(fact.body.kind());
    }
    for kind in &kinds {
        assert!(PAGE.contains(&format!("\n.SS {kind}\n")), "{kind} is not explained");
        assert!(shown.contains(kind), "{kind} has no example");
    }
}

#[test]
fn every_member_of_the_examples_is_explained() {
    for example in examples() {
        let fact: serde_json::Value = serde_json::from_str(&example).expect("JSON");
        let kind = fact["kind"].as_str().expect("a kind");
        let place = PAGE.split_once(&format!("\n.SS {kind}\n")).expect("its place").1;
        let place = place.split_once("\n.EX\n").expect("its example").0;
        for member in fact["body"].as_object().expect("a body").keys() {
            let term = format!("\n.TP\n\\fB{}\\fR\n", member.replace('-', "\\-"));
            assert!(place.contains(&term), "{kind}: {member} is not explained");
        }
        for member in fact.as_object().expect("a fact").keys() {
            assert!(PAGE.contains(&format!("\n.TP\n.B {member}\n")), "{member} is not explained");
        }
    }
}
