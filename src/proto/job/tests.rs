//! Specs: what is read, what is refused, and in which words.

use super::*;

#[test]
fn a_spec_round_trips_and_leaves_defaults_out() {
    let spec = JobSpec::command(vec!["date".into()]);
    assert_eq!(spec.to_json(), r#"{"command":["date"]}"#);
    assert_eq!(JobSpec::from_json(&spec.to_json()), Ok(spec));
}

#[test]
fn an_unknown_field_is_named_with_the_nearest_known_one() {
    let said = |text: &str| JobSpec::from_json(text).expect_err(text).to_string();
    let text = said(r#"{"comand":["date"]}"#);
    assert_eq!(text, "unknown field `comand`, did you mean `command`?");
    let text = said(r#"{"command":["date"],"needs":{"core":2}}"#);
    assert_eq!(text, "unknown field `core`, did you mean `cores`?");
    assert_eq!(said(r#"{"command":["a"],"zzzzzz":1}"#), "unknown field `zzzzzz`");
    let text = said(r#"[["echo","seq"]]"#);
    assert!(text.contains("a job as a JSON object"), "{text}");
}

#[test]
fn of_the_executors_variables_only_item_and_index_may_be_given() {
    let mut spec = JobSpec::command(vec!["date".into()]);
    spec.env.insert(ITEM_ENV.into(), "a line".into());
    spec.env.insert(INDEX_ENV.into(), "1".into());
    assert_eq!(spec.validate(), Ok(()));
    spec.env.insert("UCP_JOB_ITEMS".into(), "x".into());
    assert!(spec.validate().is_err());
}

#[test]
fn a_module_and_files_round_trip_in_the_canonical_form() {
    let digest = Digest::of(b"a");
    let text = format!(
        r#"{{"wasm":{{"text":"(module)","name":"a.wat"}},"args":["x"],"inputs":{{"in/a":{{"blob":"{digest}"}},"run":{{"text":"b","executable":true}}}},"outputs":["out/*.csv"],"dirs":["out"]}}"#
    );
    let spec = JobSpec::from_json(&text).expect("a spec");
    assert_eq!(spec.to_json(), text);
    assert_eq!(spec.kind(), Kind::Wasm);
    assert_eq!(spec.command_line(), "a.wat x");
    assert_eq!(spec.blobs().collect::<Vec<_>>(), [digest]);
    let local = r#"{"command":["a"],"inputs":{"b":{"file":"c"}}}"#;
    let local: JobSpec = serde_json::from_str(local).expect("JSON");
    assert_eq!(local.validate_local(), Ok(()));
}

#[test]
fn values_out_of_bounds_name_their_field() {
    for (text, field) in [
        (r#"{"command":[]}"#, "command"),
        (r#"{"command":["a\u0000b"]}"#, "command"),
        (r#"{"command":["a"],"env":{"A=B":"c"}}"#, "env"),
        (r#"{"command":["a"],"env":{"UCP_JOB_ID":"c"}}"#, "env"),
        (r#"{"command":["a"],"needs":{"cores":0}}"#, "needs"),
        (r#"{"command":["a"],"timeout":"0s"}"#, "timeout"),
        (r#"{"command":["a"],"deadline":"0s"}"#, "deadline"),
        (r#"{"command":["a"],"after_deadline":"stop"}"#, "after_deadline"),
        (r#"{"command":["a"],"deadline":"1s","after_deadline":"halt"}"#, "after_deadline"),
        (r#"{"command":["a"],"key":""}"#, "key"),
        (r#"{"command":["a"],"stdin":{"base64":"!"}}"#, "stdin"),
        (r#"{"command":["a"],"max_lost":0}"#, "max_lost"),
        (r#"{"name":"a"}"#, "command"),
        (r#"{"command":["a"],"args":["b"]}"#, "args"),
        (r#"{"command":["a"],"wasm":{"text":"(module)"}}"#, "wasm"),
        (r#"{"wasm":{"file":"a.wasm"}}"#, "wasm"),
        (r#"{"wasm":{"text":""},"args":[{"base64":"/w=="}]}"#, "wasm"),
        (r#"{"command":["a"],"inputs":{"../b":{"text":""}}}"#, "inputs"),
        (r#"{"command":["a"],"inputs":{"b":{"text":""},"b/c":{"text":""}}}"#, "inputs"),
        (r#"{"command":["a"],"inputs":{"b":{"file":"c"}}}"#, "inputs"),
        (r#"{"command":["a"],"outputs":["/etc"]}"#, "outputs"),
        (r#"{"command":["a"],"dirs":["b/"]}"#, "dirs"),
    ] {
        let said = JobSpec::from_json(text).expect_err(text).to_string();
        assert!(said.starts_with(&format!("field `{field}`")), "{text}: {said}");
    }
}
