//! `GET /metrics`: the text is what Prometheus reads, and the numbers are true.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use crate::common::{TestEnv, wait_until};
use crate::peer::{Http, Played, hello, wrote};

/// Samples by name and labels as written, and the type of each family.
struct Scrape {
    samples: BTreeMap<String, f64>,
    types: BTreeMap<String, String>,
}

fn is_name(text: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.bytes().all(legal) && text.as_bytes().first().is_some_and(u8::is_ascii_alphabetic)
}

/// Reads labels strictly: names, quoted values, escapes, commas between.
fn check_labels(text: &str) {
    let mut rest = text;
    loop {
        let (name, after) = rest.split_once("=\"").expect("a label and its value");
        assert!(is_name(name), "{text}");
        let mut escaped = false;
        let end = after.find(|c| {
            let is_end = c == '"' && !escaped;
            assert!(!escaped || "\\\"n".contains(c), "{text}");
            escaped = c == '\\' && !escaped;
            is_end
        });
        rest = &after[end.expect("the value ends") + 1..];
        if rest.is_empty() {
            return;
        }
        rest = rest.strip_prefix(',').expect("a comma between labels");
    }
}

/// Reads version 0.0.4 of the format, stricter than Prometheus does: each family has HELP and TYPE
/// in front, stands together, and has no sample twice.
fn parse(text: &str) -> Scrape {
    assert!(text.ends_with('\n') && !text.contains("\n\n"));
    let (mut samples, mut types, mut helps) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
    let mut family = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a name and words");
            assert!(is_name(name) && name.starts_with("ucp_") && help.ends_with('.'), "{line}");
            assert!(helps.insert(name.to_owned()), "{name} stands twice");
            name.clone_into(&mut family);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a name and a type");
            assert!(name == family && ["counter", "gauge", "histogram"].contains(&kind), "{line}");
            types.insert(name.to_owned(), kind.to_owned());
        } else {
            let (series, value) = line.rsplit_once(' ').expect("a series and a value");
            let name = series.split('{').next().expect("a name");
            let kind = types.get(&family).expect("TYPE comes before samples");
            let own = match kind.as_str() {
                "histogram" => ["_bucket", "_sum", "_count"].map(|end| format!("{family}{end}")),
                _ => [family.clone(), String::new(), String::new()],
            };
            assert!(own.iter().any(|own| own == name), "{line} is not of {family}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            if let Some(labels) = series.strip_prefix(name).filter(|labels| !labels.is_empty()) {
                let inner = labels.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
                check_labels(inner.expect("labels in braces"));
            }
            let value: f64 = value.parse().expect("a number");
            assert!(value.is_finite() && value >= 0.0, "{line}");
            assert!(samples.insert(series.to_owned(), value).is_none(), "{series} stands twice");
        }
    }
    let scrape = Scrape { samples, types };
    scrape.check_histograms(text);
    scrape
}

impl Scrape {
    fn of(http: &Http) -> Self {
        let answer = http.get("/metrics");
        assert_eq!(answer.status, 200);
        let kind = "content-type: text/plain; version=0.0.4; charset=utf-8\r\n";
        assert!(answer.head.contains(kind), "{}", answer.head);
        parse(answer.text())
    }

    /// Buckets go up to `+Inf`, each with at least what the one before has, as many as `_count`.
    fn check_histograms(&self, text: &str) {
        for (name, _) in self.types.iter().filter(|(_, kind)| *kind == "histogram") {
            let front = format!("{name}_bucket{{le=\"");
            let buckets = text.lines().filter_map(|line| line.strip_prefix(&front));
            let (mut bound, mut below, mut count) = (f64::MIN, 0.0, 0);
            for bucket in buckets {
                let (end, value) = bucket.split_once("\"} ").expect("a bound and a count");
                let end: f64 = end.replace("+Inf", "inf").parse().expect("a number");
                let value: f64 = value.parse().expect("a number");
                assert!(end > bound && value >= below, "{name}: {bucket}");
                (bound, below, count) = (end, value, count + 1);
            }
            assert!(bound.is_infinite() && count > 5, "{name}");
            assert_eq!(self.get(&format!("{name}_count")), below, "{name}");
            let sum = self.get(&format!("{name}_sum"));
            assert!(below > 0.0 || sum == 0.0, "{name}");
        }
    }

    fn get(&self, series: &str) -> f64 {
        *self.samples.get(series).unwrap_or_else(|| panic!("{series}: {:#?}", self.samples))
    }

    fn get_or_zero(&self, series: &str) -> f64 {
        self.samples.get(series).copied().unwrap_or(0.0)
    }
}

#[test]
fn numbers_move_with_the_jobs() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let http = Http(env.socket());
    let before = Scrape::of(&http);
    assert_eq!(before.get("ucp_jobs{state=\"succeeded\"}"), 0.0);
    assert_eq!(before.get("ucp_executors{state=\"alive\"}"), 0.0);
    let version = format!("ucp_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    assert_eq!(before.get(&version), 1.0);

    let _executor = work(&env, &http);
    let after = Scrape::of(&http);
    for (series, value) in EXPECTED {
        assert_eq!(after.get(series), *value, "{series}");
    }
    let facts = 1.0 + 5.0 + 4.0 + 3.0 + 3.0;
    assert_eq!(after.get("ucp_facts_held"), facts);
    assert_eq!(after.get("ucp_store_commit_facts_sum"), facts);
    assert!(after.get("ucp_store_commit_seconds_count") <= facts);
    assert!(after.get("ucp_store_commit_seconds_sum") > 0.0);
    assert!(after.get("ucp_store_bytes") > 4096.0);
    assert!(after.get("ucp_uptime_seconds") > before.get("ucp_uptime_seconds"));
    assert!(after.get("ucp_http_connections") >= 2.0, "the session and this request");
    let page = include_str!("../../man/ucp-api.5");
    for family in after.types.keys() {
        assert!(page.contains(family), "man/ucp-api.5 does not name {family}");
    }
    // Nothing that only grows goes back, and nothing that was there is gone.
    for (series, value) in &before.samples {
        let kind = series.contains("_total") || series.contains("_bucket");
        assert!(!kind || after.get_or_zero(series) >= *value, "{series}");
    }
}

/// Runs three jobs, leaves one running and one waiting, and asks for what is refused.
fn work(env: &TestEnv, http: &Http) -> Played {
    let mut executor = Played::join(&env.socket(), hello("van", 2));
    for _ in 0..3 {
        http.submit(&json!({"command": ["true"]}));
        let order = executor.start();
        executor.report(&order, wrote(b"", b""));
    }
    http.submit(&json!({"command": ["true"]}));
    executor.start();
    let spec = json!({"command": ["true"], "needs": {"cores": 64}});
    let lines = format!("{}\nno job\n", json!({ "spec": spec }));
    http.ask("POST", "/v1/jobs", "application/x-ndjson", lines.as_bytes());
    assert_eq!(http.get("/v1/jobs/ffff").status, 404);
    assert_eq!(http.get("/nowhere").status, 404);
    let digest = ucp::proto::id::Digest::of(b"1234");
    assert_eq!(http.ask("PUT", &format!("/v1/blobs/{digest}"), "", b"1234").status, 201);
    executor
}

/// What the scrape after that has.
const EXPECTED: &[(&str, f64)] = &[
    ("ucp_jobs{state=\"succeeded\"}", 3.0),
    ("ucp_jobs{state=\"running\"}", 1.0),
    ("ucp_jobs{state=\"waiting\"}", 1.0),
    ("ucp_queue_jobs", 1.0),
    ("ucp_executors{state=\"alive\"}", 1.0),
    ("ucp_executors{state=\"avoided\"}", 0.0),
    ("ucp_executors{state=\"doubted\"}", 0.0),
    ("ucp_executors_lost_total{reason=\"ended\"}", 0.0),
    ("ucp_executors_lost_total{reason=\"silent\"}", 0.0),
    ("ucp_executors_lost_total{reason=\"away\"}", 0.0),
    ("ucp_executors_lost_total{reason=\"declared\"}", 0.0),
    ("ucp_executors_refused_total{reason=\"in-use\"}", 0.0),
    ("ucp_executors_avoided_total", 0.0),
    ("ucp_attempts_lost_total", 0.0),
    ("ucp_attempts_regained_total", 0.0),
    ("ucp_link_doubts_total", 0.0),
    ("ucp_equivocations_total", 0.0),
    ("ucp_sessions", 1.0),
    ("ucp_slots", 2.0),
    ("ucp_attempts", 1.0),
    ("ucp_facts_total{kind=\"submitted\"}", 5.0),
    ("ucp_facts_total{kind=\"deployed\"}", 4.0),
    ("ucp_facts_total{kind=\"accepted\"}", 3.0),
    ("ucp_submit_ack_seconds_count", 5.0),
    ("ucp_job_queue_seconds_count", 4.0),
    ("ucp_job_run_seconds_count", 3.0),
    ("ucp_job_result_seconds_count", 3.0),
    ("ucp_store_disk{state=\"well\"}", 1.0),
    ("ucp_problems_total{code=\"bad-spec\"}", 1.0),
    ("ucp_problems_total{code=\"not-found\"}", 1.0),
    ("ucp_problems_total{code=\"no-route\"}", 1.0),
    ("ucp_http_requests_total{method=\"POST\",route=\"/v1/jobs\",status=\"201\"}", 4.0),
    ("ucp_http_requests_total{method=\"GET\",route=\"/v1/jobs/{id}\",status=\"404\"}", 1.0),
    ("ucp_http_requests_total{method=\"other\",route=\"other\",status=\"404\"}", 1.0),
    ("ucp_http_requests_total{method=\"GET\",route=\"/metrics\",status=\"200\"}", 1.0),
    ("ucp_event_readers", 0.0),
];

#[test]
fn losses_are_counted_by_their_reason_and_attempts_that_come_back() {
    let env = TestEnv::new();
    let _broker = env.broker_with(&["--reconnect-grace", "1ms"]);
    let http = Http(env.socket());
    let job = http.submit(&json!({"command": ["true"]}));
    let mut executor = Played::join(&env.socket(), hello("van", 1));
    let order = executor.start();
    let silence = Scrape::of(&http).get("ucp_executor_silence_seconds");
    assert!(silence < 60.0, "{silence}");
    drop(executor);
    let lost = "ucp_executors_lost_total{reason=\"away\"}";
    wait_until("it is lost", || (Scrape::of(&http).get(lost) > 0.0).then_some(()));
    let scrape = Scrape::of(&http);
    assert_eq!((scrape.get(lost), scrape.get("ucp_attempts_lost_total")), (1.0, 1.0));
    assert_eq!(scrape.get("ucp_executor_silence_seconds"), 0.0, "nobody is there");

    let mut back = hello("van", 1);
    back.attempts.push(order.attempt.clone());
    back.jobs.push(job.parse().expect("an id"));
    let _executor = Played::join(&env.socket(), back);
    let regained = "ucp_attempts_regained_total";
    wait_until("it goes on", || (Scrape::of(&http).get(regained) > 0.0).then_some(()));
    let path = "/v1/executors/van-00000001/lost";
    assert_eq!(http.ask("POST", path, "", b"").status, 200);
    let declared = "ucp_executors_lost_total{reason=\"declared\"}";
    assert_eq!(Scrape::of(&http).get(declared), 1.0);
}

#[test]
fn a_rerun_counts_its_own_wait_and_events_have_readers() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let http = Http(env.socket());
    let job = http.submit(&json!({"command": ["true"]}));
    http.ask("POST", &format!("/v1/jobs/{job}/cancel"), "", b"");
    let _live = crate::peer::Live::new(http.begin("GET", "/v1/events", "", b""));
    http.ask("POST", &format!("/v1/jobs/{job}/rerun"), "", b"");
    let mut executor = Played::join(&env.socket(), hello("van", 1));
    let order = executor.start();
    executor.report(&order, wrote(b"", b""));
    let scrape = Scrape::of(&http);
    assert_eq!(scrape.get("ucp_job_result_seconds_count"), 1.0);
    assert_eq!(scrape.get("ucp_event_readers"), 1.0);
    assert_eq!(scrape.get("ucp_facts_total{kind=\"rerun\"}"), 1.0);
}
