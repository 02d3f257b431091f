//! The OpenAPI document and the live server: each says what the other does.
//!
//! A real broker with a real executor is asked everything that the document describes, with the
//! document's own examples. Schemas are made strict for it: a member that the document does not
//! name is a fault here, although readers are to pass over it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, Write};
use std::os::unix::net::UnixStream;

use serde_json::{Map, Value, json};
use ucp::proto::limits;
use ucp::runtime::server::{OPENAPI, routes::ROUTES};

use crate::common::TestEnv;
use crate::peer::{Answer, Http, Live, read_answer, read_head};

/// Operations whose work others need, and those that undo what others need.
const FIRST: [&str; 2] = ["submitJobs", "putBlob"];
const LAST: [&str; 2] = ["rerunJob", "declareLost"];
const JSON: &str = "application/json";
const ABSENT: &str = "0197a5c0-0000-7000-8000-00000000000f";

/// One method on one path of the document.
#[derive(Clone)]
struct Operation {
    id: String,
    method: String,
    path: String,
    text: Value,
}

/// A request that the document gives an example of.
struct Case {
    path: String,
    headers: Vec<(String, String)>,
    kind: String,
    body: Vec<u8>,
    is_live: bool,
}

fn document() -> Value {
    serde_json::from_str(OPENAPI).expect("the document is JSON")
}

fn text<'a>(value: &'a Value, what: &str) -> &'a str {
    value.as_str().unwrap_or_else(|| panic!("{what} is no text: {value}"))
}

fn object(value: &Value) -> &Map<String, Value> {
    value.as_object().unwrap_or_else(|| panic!("no object: {value}"))
}

fn operations(document: &Value) -> Vec<Operation> {
    let mut found = vec![];
    for (path, methods) in object(&document["paths"]) {
        for (method, operation) in object(methods) {
            found.push(Operation {
                id: text(&operation["operationId"], "an operation's id").to_owned(),
                method: method.to_uppercase(),
                path: path.clone(),
                text: operation.clone(),
            });
        }
    }
    let place = |operation: &Operation| match operation.id.as_str() {
        id if FIRST.contains(&id) => 0,
        id if LAST.contains(&id) => 2,
        _ => 1,
    };
    found.sort_by_key(place);
    found
}

impl Operation {
    fn parameters(&self) -> &[Value] {
        self.text["parameters"].as_array().map_or(&[], Vec::as_slice)
    }

    /// A request with what is required, perhaps one parameter more, and one of its bodies.
    fn case(&self, further: Option<&Value>, body: Option<(&String, &Value)>) -> Case {
        let mut path = self.path.clone();
        let mut headers = vec![];
        let required = self.parameters().iter().filter(|held| held["required"] == true);
        for parameter in required.chain(further) {
            let name = text(&parameter["name"], "a parameter's name");
            let example = text(&parameter["example"], name);
            match text(&parameter["in"], name) {
                "path" => path = path.replace(&format!("{{{name}}}"), example),
                "query" => path = format!("{path}?{name}={example}"),
                "header" => headers.push((name.to_owned(), example.to_owned())),
                other => panic!("{name} is in {other}"),
            }
        }
        assert!(!path.contains('{'), "{path}: a part of the path is no parameter");
        let (kind, body) = match body {
            None => (String::new(), vec![]),
            Some((kind, content)) => match &content["example"] {
                Value::String(text) => (kind.clone(), text.clone().into_bytes()),
                value => (kind.clone(), value.to_string().into_bytes()),
            },
        };
        let is_live =
            self.text["x-live"] == true || further.is_some_and(|held| held["x-live"] == true);
        Case { path, headers, kind, body, is_live }
    }

    /// Requests with each body, alone and with each optional parameter that has an example.
    fn cases(&self) -> Vec<Case> {
        let bodies = self.text["requestBody"]["content"].as_object();
        let bodies: Vec<_> = bodies.map_or(vec![None], |found| found.iter().map(Some).collect());
        let optional = |held: &&Value| held["required"] != true && held["example"].is_string();
        let further: Vec<_> =
            [None].into_iter().chain(self.parameters().iter().filter(optional).map(Some)).collect();
        let each = |body: &Option<(&String, &Value)>| {
            further.iter().map(|further| self.case(*further, *body)).collect::<Vec<_>>()
        };
        bodies.iter().flat_map(each).collect()
    }
}

/// The schemas with every object closed, so that what is not described is a fault.
struct Schemas(Value);

impl Schemas {
    fn strict(document: &Value) -> Self {
        let mut components = document["components"].clone();
        close(&mut components);
        Self(components)
    }

    fn check(&self, schema: &Value, value: &Value, what: &str) {
        let mut schema = schema.clone();
        close(&mut schema);
        schema["components"] = self.0.clone();
        let validator = jsonschema::draft202012::new(&schema).expect("the schema is one");
        let faults: Vec<_> = validator
            .iter_errors(value)
            .map(|fault| format!("{}: {fault}", fault.instance_path()))
            .collect();
        assert!(faults.is_empty(), "{what}: {value:#}\n{}", faults.join("\n"));
    }
}

fn close(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            if members.get("properties").is_some_and(Value::is_object)
                && members.get("type") == Some(&json!("object"))
            {
                members.entry("additionalProperties").or_insert(json!(false));
            }
            members.values_mut().for_each(close);
        }
        Value::Array(values) => values.iter_mut().for_each(close),
        _ => {}
    }
}

fn send(http: &Http, method: &str, case: &Case) -> UnixStream {
    let mut head = format!("{method} {} HTTP/1.1\r\nhost: x\r\n", case.path);
    if !case.is_live && case.headers.iter().all(|(name, _)| name != "Connection") {
        head += "connection: close\r\n";
    }
    for (name, value) in &case.headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !case.kind.is_empty() {
        head += &format!("content-type: {}\r\n", case.kind);
    }
    head += &format!("content-length: {}\r\n\r\n", case.body.len());
    let mut stream = http.connect();
    stream.write_all(head.as_bytes()).expect("the broker reads");
    let _ = stream.write_all(&case.body);
    stream
}

/// The documented response with this status.
fn documented<'a>(operation: &'a Operation, status: u16, what: &str) -> &'a Value {
    let responses = object(&operation.text["responses"]);
    responses
        .get(&status.to_string())
        .unwrap_or_else(|| panic!("{what}: status {status} is not in the document"))
}

/// Checks an answer against its documented response.
fn check(schemas: &Schemas, operation: &Operation, answer: &Answer, what: &str) {
    let response = documented(operation, answer.status, what);
    let Some(contents) = response["content"].as_object() else {
        return assert!(answer.body.is_empty(), "{what}: a body where none is documented");
    };
    let kind = answer.head.lines().find_map(|line| line.strip_prefix("content-type: "));
    let kind = kind.unwrap_or_else(|| panic!("{what}: no content type in {}", answer.head));
    let kind = kind.split(';').next().unwrap_or_default();
    let content = contents.get(kind).unwrap_or_else(|| panic!("{what}: {kind} is not documented"));
    let Some(schema) = content.get("schema") else { return };
    if response["x-lines"] == true || kind == "application/x-ndjson" {
        for line in answer.lines() {
            schemas.check(schema, &line, what);
        }
    } else if kind.ends_with("json") {
        schemas.check(schema, &answer.json(), what);
    }
}

/// Brings the job of the examples about once more, so that something happens.
fn rerun(http: &Http, job: &str) {
    http.ask("POST", &format!("/v1/jobs/{job}/rerun"), "", b"");
    assert_eq!(http.get(&format!("/v1/jobs/{job}?until=accepted")).status, 200);
}

/// Reads a live answer up to a line that says that something is over.
fn check_live(schemas: &Schemas, operation: &Operation, http: &Http, case: &Case, job: &str) {
    let what = format!("{} {}", operation.method, case.path);
    let mut live = Live::new(send(http, &operation.method, case));
    rerun(http, job);
    let response = documented(operation, 200, &what);
    let schema = &response["content"]["application/x-ndjson"]["schema"];
    loop {
        let line = live.line().expect("it goes on");
        schemas.check(schema, &line, &what);
        if [&line["event"], &line["kind"]].contains(&&json!("accepted")) {
            return;
        }
    }
}

/// A broker and an executor that is called as in the examples.
fn start(env: &TestEnv) -> [crate::common::Daemon; 2] {
    let broker = env.broker();
    std::fs::create_dir(env.path("van")).expect("a directory");
    let identity = json!({"v": 1, "executor": "van-00000001"}).to_string();
    std::fs::write(env.path("van/identity.json"), identity).expect("written");
    let executor = env.executor("van", 2);
    assert_eq!(executor.ready["executor"], "van-00000001");
    [broker, executor]
}

fn example_job(operations: &[Operation]) -> String {
    let show = operations.iter().find(|found| found.id == "showJob").expect("it is documented");
    text(&show.parameters()[0]["example"], "a job").to_owned()
}

#[test]
fn every_operation_answers_as_the_document_says() {
    let env = TestEnv::new();
    let _daemons = start(&env);
    let (http, document) = (Http(env.socket()), document());
    let schemas = Schemas::strict(&document);
    let operations = operations(&document);
    let job = example_job(&operations);
    let mut late = vec![];
    for operation in &operations {
        for (at, case) in operation.cases().into_iter().enumerate() {
            // Who waits for the ends of the example jobs needs them to have ended.
            if operation.id == "submitJobs" && case.path.contains('?') {
                late.push((operation, case));
                continue;
            }
            walk(&schemas, operation, &http, &case, &job);
            if operation.id == "submitJobs" && at == 0 {
                assert_eq!(http.get(&format!("/v1/jobs/{job}?until=accepted")).status, 200);
            }
        }
    }
    assert_eq!(late.len(), 2, "one job, and lines of jobs");
    for (operation, case) in late {
        walk(&schemas, operation, &http, &case, &job);
    }
    assert_eq!(http.get("/v1/audit").json()["ok"], true);
}

fn walk(schemas: &Schemas, operation: &Operation, http: &Http, case: &Case, job: &str) {
    if case.is_live {
        return check_live(schemas, operation, http, case, job);
    }
    let what = format!("{} {} {}", operation.method, case.path, case.kind);
    let stream = send(http, &operation.method, case);
    if operation.text["responses"].get("101").is_some() {
        let head = read_head(&mut BufReader::new(stream));
        return assert!(head.starts_with("http/1.1 101 "), "{what}: {head}");
    }
    let answer = read_answer(stream);
    let shown = String::from_utf8_lossy(&answer.body);
    assert!((200..300).contains(&answer.status), "{what}: {} {shown}", answer.status);
    check(schemas, operation, &answer, &what);
    if answer.status == 201 && operation.id == "submitJobs" {
        assert!(answer.head.contains("\r\nlocation: ") || case.path.contains('?'), "{what}");
    }
}

#[test]
fn arrays_and_their_elements_answer_as_the_document_says() {
    let env = TestEnv::new();
    let _daemons = start(&env);
    let (http, document) = (Http(env.socket()), document());
    let schemas = Schemas::strict(&document);
    let operations = operations(&document);
    let by_id = |id: &str| operations.iter().find(|found| found.id == id).expect("documented");
    let id = "0197a5c0-0000-7000-8000-0000000000a1";
    let spec = json!({"command": ["echo", "{}"], "array": "1-2,7", "placeholder": "{}",
        "items": ["a", "b", "c"], "deadline": "1h", "after_deadline": "stop"});
    schemas.check(&document["components"]["schemas"]["JobSpec"], &spec, "the spec");
    let body = json!({"id": id, "spec": spec}).to_string();
    let ask = |operation: &str, path: &str, body: &str| {
        let (operation, kind) = (by_id(operation), if body.is_empty() { "" } else { JSON });
        let answer = http.ask(&operation.method, path, kind, body.as_bytes());
        let shown = String::from_utf8_lossy(&answer.body);
        assert!(answer.status < 300, "{path}: {} {shown}", answer.status);
        check(&schemas, operation, &answer, path);
        answer
    };
    assert_eq!(ask("submitJobs", "/v1/jobs", &body).json()["elements"], 3);
    let all = ask("showJob", &format!("/v1/jobs/{id}?until=accepted"), "").lines();
    let mut told: Vec<_> = all.iter().map(|line| line["job"].clone()).collect();
    told.sort_by_key(ToString::to_string);
    assert_eq!(told, [1, 2, 7].map(|element| json!(format!("{id}/{element}"))));
    for path in [format!("/v1/jobs/{id}"), format!("/v1/jobs/{id}/7")] {
        ask("showJob", &path, "");
        ask("whyJob", &format!("{path}/why"), "");
        ask("rerunJob", &format!("{path}/rerun"), "");
        ask("showJob", &format!("{path}?until=accepted"), "");
    }
    let output = ask("jobOutput", &format!("/v1/jobs/{id}/7/output?stdout_from=0"), "").lines();
    assert_eq!(output[0]["attempt"][2], 7, "{output:?}");
    for path in ["/v1/jobs", "/v1/executors", "/v1/facts", "/v1/audit"] {
        let found = operations.iter().find(|op| op.path == path && op.method == "GET");
        ask(&found.expect("documented").id, path, "");
    }
    let refused = http.get(&format!("/v1/jobs/{id}/output"));
    assert_eq!((refused.status, &refused.json()["code"]), (409, &json!("is-array")));
    check(&schemas, by_id("jobOutput"), &refused, "output of an array");
}

#[test]
fn every_refusal_is_one_that_the_document_names() {
    let env = TestEnv::new();
    let _daemons = start(&env);
    let (http, document) = (Http(env.socket()), document());
    let schemas = Schemas::strict(&document);
    let operations = operations(&document);
    let by_id: BTreeMap<&str, &Operation> =
        operations.iter().map(|operation| (operation.id.as_str(), operation)).collect();
    let waiting = http.submit(&json!({"command": ["true"], "needs": {"labels": ["none"]}}));
    let ended = http.submit(&json!({"command": ["true"]}));
    assert_eq!(http.get(&format!("/v1/jobs/{ended}?until=accepted")).status, 200);
    let refused = |id: &str, path: &str, kind: &str, body: &[u8], status: u16, code: &str| {
        let operation = by_id[id];
        let what = format!("{} {path}", operation.method);
        let answer = http.ask(&operation.method, path, kind, body);
        assert_eq!((answer.status, answer.json()["code"].as_str()), (status, Some(code)), "{what}");
        check(&schemas, operation, &answer, &what);
        let codes = documented(operation, status, &what)["x-codes"].as_array();
        assert!(codes.is_some_and(|codes| codes.contains(&json!(code))), "{what}: {code}");
    };
    let large = vec![b' '; limits::LINE_BYTES_MAX + 1];
    refused("submitJobs", "/v1/jobs", "text/plain", b"{}", 415, "wrong-type");
    refused("submitJobs", "/v1/jobs", JSON, b"\xff", 400, "bad-encoding");
    refused("submitJobs", "/v1/jobs", JSON, b"{", 422, "bad-spec");
    refused("submitJobs", "/v1/jobs", JSON, &large, 413, "too-large");
    let again = json!({"id": ended, "spec": {"command": ["false"]}}).to_string();
    refused("submitJobs", "/v1/jobs", JSON, again.as_bytes(), 409, "id-taken");
    let after = json!({"spec": {"command": ["true"], "after": [ABSENT]}}).to_string();
    refused("submitJobs", "/v1/jobs", JSON, after.as_bytes(), 409, "after-unknown");
    refused("listJobs", "/v1/jobs?limit=99999999", "", b"", 422, "too-many");
    let path = |job: &str, end: &str| format!("/v1/jobs/{job}/{end}");
    refused("jobOutput", &path(&waiting, "output"), "", b"", 409, "not-ended");
    refused("cancelJob", &path(&ended, "cancel"), "", b"", 409, "has-ended");
    refused("cancelJob", &path(&ended, "cancel"), JSON, br#"{"why":1}"#, 422, "bad-body");
    refused("rerunJob", &path(&waiting, "rerun"), "", b"", 409, "not-ended");
    refused("declareLost", "/v1/executors/other-00000001/lost", "", b"", 404, "no-executor");
    refused("openSession", "/v1/executors/session", "", b"", 426, "no-upgrade");
    refused("getBlob", "/v1/blobs/0", "", b"", 400, "bad-digest");
    let zeros = format!("/v1/blobs/{}", "0".repeat(64));
    refused("getBlob", &zeros, "", b"", 404, "no-blob");
    refused("putBlob", &zeros, "", b"x", 422, "wrong-digest");
    assert_eq!(http.ask("HEAD", &zeros, "", b"").status, 404);
    for operation in &operations {
        let strange = operation.case(None, None).path + "?nonsense=1";
        let codes = &operation.text["responses"]["400"]["x-codes"];
        if codes.as_array().is_some_and(|codes| codes.contains(&json!("bad-parameter"))) {
            refused(&operation.id, &strange, "", b"", 400, "bad-parameter");
        }
        if operation.path.contains("{id}") {
            let absent = operation.path.replace("{id}", ABSENT);
            refused(&operation.id, &absent, "", b"", 404, "not-found");
        }
    }
}

#[test]
fn the_document_has_the_routes_of_the_server_and_no_others() {
    let document = document();
    let documented: BTreeSet<_> =
        operations(&document).into_iter().map(|found| (found.method, found.path)).collect();
    let table = |route: &ucp::runtime::server::routes::Route| {
        (route.method.to_owned(), route.path.to_owned())
    };
    let routes: BTreeSet<_> = ROUTES.iter().map(table).collect();
    assert_eq!(documented, routes, "docs/openapi.json and src/runtime/server/routes.rs");
    let env = TestEnv::new();
    let _broker = env.broker();
    let http = Http(env.socket());
    let served = http.get("/v1/openapi.json");
    assert_eq!(served.json(), document);
    assert!(served.head.contains("content-type: application/json\r\n"));
    for (status, code, method, path) in
        [(404, "no-route", "GET", "/v1/none"), (405, "wrong-method", "PUT", "/v1/jobs")]
    {
        let answer = http.ask(method, path, "", b"");
        assert_eq!((answer.status, &answer.json()["code"]), (status, &json!(code)));
        let problem = &document["components"]["schemas"]["Problem"];
        Schemas::strict(&document).check(problem, &answer.json(), path);
    }
}

#[test]
fn the_document_is_whole_and_says_the_limits() {
    let document = document();
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    let schemas = object(&document["components"]["schemas"]);
    let mut used = BTreeSet::new();
    let references = OPENAPI.split("\"$ref\": \"#/components/schemas/").skip(1);
    for name in references.filter_map(|rest| rest.split('"').next()) {
        assert!(schemas.contains_key(name), "{name} is nowhere");
        used.insert(name.to_owned());
    }
    assert_eq!(used, schemas.keys().cloned().collect(), "schemas that nothing uses");
    let ids: BTreeSet<_> = operations(&document).into_iter().map(|found| found.id).collect();
    assert_eq!(ids.len(), ROUTES.len(), "an operation's id stands twice");
    for limit in [
        limits::LINE_BYTES_MAX,
        limits::SPEC_BYTES_MAX,
        limits::UNFINISHED_PER_CLIENT_MAX,
        limits::STDIN_INLINE_BYTES_MAX,
        limits::LIST_ROWS_MAX,
        limits::EVENTS_HELD_MAX,
        limits::EVENT_READERS_MAX,
        limits::CONNECTIONS_MAX,
        limits::HTTP_HEAD_BYTES_MAX,
        limits::TEXT_BYTES_MAX,
        usize::try_from(limits::BLOB_BYTES_MAX).expect("64 bits"),
    ] {
        let words = OPENAPI.split(|c: char| !c.is_ascii_digit());
        assert!(words.into_iter().any(|word| word == limit.to_string()), "{limit} is not told");
    }
    let words = |schema: &str, member: &str| {
        let listed = &schemas[schema]["properties"][member]["enum"];
        serde_json::from_value::<Vec<String>>(listed.clone()).expect("words")
    };
    assert_eq!(words("Event", "event"), ucp::wire::api::EVENT_WORDS);
    let states = ucp::proto::view::JobState::ALL.map(ucp::proto::view::JobState::word);
    assert_eq!(schemas["State"]["enum"], json!(states));
}
