//! `man/ucp-api.5`: its examples are run as they stand, and it names every route, limit and number.
//!
//! What an example shows is compared in shape: the same lines with the same members and types, and
//! the same words where they mean something. Three dots stand for further members or lines.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};
use ucp::proto::limits;
use ucp::runtime::server::{OPENAPI, routes::ROUTES};

use crate::common::TestEnv;
use crate::peer::Http;

const PAGE: &str = include_str!("../../man/ucp-api.5");
/// The port in the page; the test takes a free one.
const PORT: &str = "4717";
/// Members whose text is compared word for word.
const WORDS: [&str; 8] =
    ["type", "state", "event", "code", "detail", "verdict", "stream", "executor"];

/// A command of the page, and what it says there that comes out.
struct Example {
    command: String,
    shown: Vec<String>,
}

/// Text as `man` shows it: the escapes of roff that the page uses.
fn unescape(line: &str) -> String {
    let pairs =
        [("\\-", "-"), ("\\(aq", "'"), ("\\(ga", "`"), ("\\(ha", "^"), ("\\(ti", "~"), ("\\&", "")];
    let plain = pairs.iter().fold(line.to_owned(), |text, (from, to)| text.replace(from, to));
    assert!(!plain.replace("\\e", "").contains('\\'), "an unknown escape: {line}");
    plain.replace("\\e", "\\")
}

fn examples() -> Vec<Example> {
    let mut found: Vec<Example> = vec![];
    for block in PAGE.split("\n.EX\n").skip(1) {
        let block = block.split("\n.EE\n").next().expect("an example ends");
        for line in block.lines().map(unescape) {
            match line.strip_prefix("$ ") {
                Some(command) => found.push(Example { command: command.into(), shown: vec![] }),
                None => found.last_mut().expect("a command comes first").shown.push(line),
            }
        }
    }
    found
}

/// A shown line as a value, if it is one; three dots become a member of that name.
fn value(shown: &str) -> Option<Value> {
    let filled = shown.replace(",...}", r#","...":0}"#).replace("{...}", r#"{"...":0}"#);
    serde_json::from_str(&filled).ok().filter(Value::is_object)
}

/// What differs in shape between a shown value and a real one.
fn difference(at: &str, shown: &Value, real: &Value) -> Option<String> {
    match (shown, real) {
        (Value::Object(shown), Value::Object(held)) => {
            let further = held.keys().find(|name| !shown.contains_key(*name));
            if let (Some(name), false) = (further, shown.contains_key("...")) {
                return Some(format!("{at}: {name} is not shown"));
            }
            let named = shown.iter().filter(|(name, _)| *name != "...");
            named.into_iter().find_map(|(name, shown)| match held.get(name) {
                None => Some(format!("{at}: there is no {name}")),
                Some(real) if WORDS.contains(&name.as_str()) && shown != real => {
                    Some(format!("{at}.{name}: {real}"))
                }
                Some(real) => difference(&format!("{at}.{name}"), shown, real),
            })
        }
        (Value::Array(shown), Value::Array(held)) => {
            let lengths = (shown.len() != held.len()).then(|| format!("{at}: {}", held.len()));
            let pairs = shown.iter().zip(held);
            lengths.or_else(|| pairs.into_iter().find_map(|(a, b)| difference(at, a, b)))
        }
        _ => (std::mem::discriminant(shown) != std::mem::discriminant(real))
            .then(|| format!("{at}: {real}")),
    }
}

/// What differs between a shown line and a real one; of plain lines digits may.
fn line_difference(shown: &str, real: &str) -> Option<String> {
    let Some(shown) = value(shown) else {
        let mask = |text: &str| text.replace(|c: char| c.is_ascii_digit(), "0");
        return (mask(shown) != mask(real)).then(|| real.to_owned());
    };
    match serde_json::from_str(real) {
        Ok(real) => difference("", &shown, &real),
        Err(error) => Some(format!("{error}: {real}")),
    }
}

fn shell(env: &TestEnv, command: &str, port: &str) -> Command {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &command.replace(PORT, port)])
        .env("S", env.socket())
        .env_remove("http_proxy")
        .current_dir(env.path(""));
    shell
}

fn run(env: &TestEnv, example: &Example, port: &str) {
    let output = shell(env, &example.command, port).output().expect("a shell");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let what = format!("$ {}\n{said}{}", example.command, String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && output.stderr.is_empty(), "{what}");
    let real: Vec<_> = said.lines().collect();
    assert_eq!(real.len(), example.shown.len(), "{what}");
    for (shown, real) in example.shown.iter().zip(real) {
        let differs = line_difference(shown, real);
        assert!(differs.is_none(), "{what}\nshown: {shown}\ndiffers: {differs:?}");
    }
}

fn lines_of(stdout: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        let lines = BufReader::new(stdout).lines().map_while(Result::ok);
        lines.map(|line| sender.send(line)).take_while(Result::is_ok).for_each(drop);
    });
    lines
}

/// Runs what does not end by itself, while jobs are run, until what is shown has come.
fn run_live(env: &TestEnv, example: &Example, http: &Http) {
    let mut child = shell(env, &example.command, PORT)
        .stdout(Stdio::piped())
        .process_group_of_its_own()
        .spawn()
        .expect("a shell");
    let lines = lines_of(child.stdout.take().expect("stdout is piped"));
    let shown = &example.shown[..example.shown.len() - 1];
    let mut real: Vec<String> = vec![];
    crate::common::wait_until("what is shown has come", || {
        let job = http.submit(&json!({"command": ["true"]}));
        assert_eq!(http.get(&format!("/v1/jobs/{job}?until=accepted")).status, 200);
        while let Ok(line) = lines.recv_timeout(Duration::from_millis(20)) {
            real.push(line);
        }
        // It may have begun in the middle of a job.
        let fits = |held: &[String]| {
            held.iter().zip(shown).all(|(real, shown)| line_difference(shown, real).is_none())
        };
        real.windows(shown.len()).any(fits).then_some(())
    });
    let group = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL).expect("it runs");
    child.wait().expect("a child of ours");
}

trait OwnGroup {
    /// So that what a shell started is ended with it.
    fn process_group_of_its_own(&mut self) -> &mut Self;
}

impl OwnGroup for Command {
    fn process_group_of_its_own(&mut self) -> &mut Self {
        std::os::unix::process::CommandExt::process_group(self, 0)
    }
}

#[test]
fn the_examples_show_what_comes_out() {
    let env = TestEnv::new();
    let broker = env.broker_with(&["--listen", "http://127.0.0.1:0"]);
    let tcp = broker.ready["listen"][1].as_str().expect("the second address");
    let port = tcp.rsplit(':').next().expect("a port");
    std::fs::create_dir(env.path("van")).expect("a directory");
    let identity = json!({"v": 1, "executor": "van-00000001"}).to_string();
    std::fs::write(env.path("van/identity.json"), identity).expect("written");
    let _executor = env.executor("van", 2);
    let http = Http(env.socket());
    let examples = examples();
    assert!(examples.len() > 20, "{} examples", examples.len());
    for example in &examples {
        match example.shown.last().map(String::as_str) {
            Some("...") => run_live(&env, example, &http),
            _ => run(&env, example, port),
        }
    }
}

#[test]
fn the_comparison_finds_what_differs() {
    let same = |shown, real| line_difference(shown, real).is_none();
    assert!(same(r#"{"type":"a","n":1}"#, r#"{"type":"a","n":7}"#));
    assert!(same(r#"{"type":"a",...}"#, r#"{"type":"a","n":7}"#));
    assert!(same(r#"{"a":{...},"b":[1]}"#, r#"{"a":{"c":1},"b":[2]}"#));
    assert!(same("ucp_x 1", "ucp_x 2") && !same("ucp_x 1", "ucp_y 1"));
    for (shown, real) in [
        (r#"{"type":"a"}"#, r#"{"type":"b"}"#),
        (r#"{"type":"a"}"#, r#"{"type":"a","n":7}"#),
        (r#"{"type":"a","n":1,...}"#, r#"{"type":"a"}"#),
        (r#"{"n":1}"#, r#"{"n":"1"}"#),
        (r#"{"n":[1]}"#, r#"{"n":[1,2]}"#),
        (r#"{"n":1}"#, "garbage"),
    ] {
        assert!(!same(shown, real), "{shown} {real}");
    }
}

#[test]
fn the_page_names_every_route_code_and_limit() {
    let page: String = PAGE.lines().map(|line| unescape_loosely(line) + "\n").collect();
    for route in ROUTES {
        let fixed = route.path.split('{').next().expect("a first part");
        assert!(page.contains(fixed), "{} {}", route.method, route.path);
        let last = route.path.rsplit('/').next().expect("a last part");
        assert!(last.starts_with('{') || page.contains(last), "{}", route.path);
    }
    let document: Value = serde_json::from_str(OPENAPI).expect("JSON");
    let operations = document["paths"].as_object().expect("paths").values();
    let responses = operations.flat_map(|methods| methods.as_object().expect("methods").values());
    for response in responses.flat_map(|held| held["responses"].as_object().expect("some").values())
    {
        for code in response["x-codes"].as_array().into_iter().flatten() {
            let code = code.as_str().expect("a word");
            assert!(page.contains(code), "{code} is not told");
        }
    }
    for limit in [
        limits::HTTP_HEAD_BYTES_MAX,
        limits::LINE_BYTES_MAX,
        limits::SPEC_BYTES_MAX,
        limits::STDIN_INLINE_BYTES_MAX,
        limits::UNFINISHED_PER_CLIENT_MAX,
        limits::LIST_ROWS_DEFAULT,
        limits::LIST_ROWS_MAX,
        limits::CONNECTIONS_MAX,
        limits::EVENT_READERS_MAX,
        limits::EVENTS_HELD_MAX,
        usize::try_from(limits::BLOB_BYTES_MAX).expect("64 bits"),
    ] {
        assert!(page.contains(&limit.to_string()), "{limit} is not told");
    }
}

/// Outside of examples the page has font changes as well.
fn unescape_loosely(line: &str) -> String {
    line.replace("\\-", "-").replace("\\fR", "").replace("\\~", " ").replace("\" \"", "")
}
