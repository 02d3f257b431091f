//! Brokers that keep in step, with real processes: over sockets, by hand, and with a file.

#[path = "sync/carried.rs"]
mod carried;
mod common;

#[path = "sync/damage.rs"]
mod damage;
#[path = "sync/rounds.rs"]
mod rounds;

use std::io::Write;
use std::process::{Output, Stdio};

use common::{Daemon, TestEnv, wait_until};
use serde_json::Value;

/// A broker in a place of its own, with an executor.
struct Site {
    env: TestEnv,
    broker: Option<Daemon>,
    executor: Option<Daemon>,
    name: &'static str,
}

impl Site {
    /// A broker with further flags.
    fn new(name: &'static str, flags: &[&str]) -> Self {
        let mut site = Self { env: TestEnv::new(), broker: None, executor: None, name };
        site.start(flags);
        site
    }

    fn start(&mut self, flags: &[&str]) {
        let fixed = ["--name", self.name, "--suspect-after", "500ms", "--lost-after", "1s"];
        self.broker = Some(self.env.broker_with(&[&fixed[..], flags].concat()));
    }

    fn with_executor(mut self) -> Self {
        self.executor = Some(self.env.executor(&format!("{}-van", self.name), 2));
        self
    }

    fn stop(&mut self) {
        if let Some(broker) = self.broker.take() {
            broker.kill();
        }
    }

    fn address(&self) -> String {
        format!("unix:{}", self.env.socket().display())
    }

    fn log(&self) -> String {
        let broker = self.broker.as_ref().expect("it runs");
        broker.ready["log"].as_str().expect("a log").to_owned()
    }

    fn submit(&self, arguments: &[&str]) -> String {
        let output = self.env.run("ucp-submit", &[&["--detach"], arguments].concat());
        assert!(output.status.success(), "{output:?}");
        text(&output.stdout).trim().to_owned()
    }

    /// The ids of the jobs that are known here in this state.
    fn jobs(&self, state: &str) -> Vec<String> {
        let output = self.env.run("ucp-submit", &["list", "--json", "--state", state]);
        let lines = text(&output.stdout);
        let id = |line: &str| {
            let line: Value = serde_json::from_str(line).expect("a line of JSON");
            line["job"].as_str().expect("an id").to_owned()
        };
        lines.lines().map(id).collect()
    }

    fn wait_for(&self, job: &str, state: &str) {
        wait_until(&format!("{} knows {job} as {state}", self.name), || {
            self.jobs(state).iter().any(|known| known == job).then_some(())
        });
    }

    /// Everything about a job that is a matter of facts.
    fn show(&self, job: &str) -> String {
        let output = self.env.run("ucp-submit", &["show", "--json", "--facts-only", job]);
        assert!(output.status.success(), "{output:?}");
        text(&output.stdout)
    }

    fn sync(&self, arguments: &[&str]) -> Output {
        self.env.run("ucp-sync", arguments)
    }

    /// One round with another; the line about it.
    fn round(&self, with: &Self) -> Value {
        let output = self.sync(&["once", "--with", &with.address()]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        serde_json::from_slice(&output.stdout).expect("one line")
    }

    /// Whether two hold the same.
    fn equals(&self, other: &Self) -> bool {
        let output = self.sync(&["diff", &self.address(), &other.address()]);
        output.status.code() == Some(0)
    }

    fn export(&self, arguments: &[&str]) -> String {
        let output = self.sync(&[&["export"], arguments].concat());
        assert!(output.status.success(), "{output:?}");
        text(&output.stdout)
    }

    /// Hands over what came on a stick: the status, the line about it, and what was said.
    fn import(&self, facts: &str) -> (Option<i32>, Value, String) {
        let mut command = self.env.command("ucp-sync");
        command.arg("import").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        let mut stdin = child.stdin.take().expect("stdin is piped");
        stdin.write_all(facts.as_bytes()).expect("it reads");
        drop(stdin);
        let output = child.wait_with_output().expect("it ends");
        let line = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        (output.status.code(), line, text(&output.stderr))
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn in_step(one: &Site, other: &Site) {
    wait_until(&format!("{} and {} hold the same", one.name, other.name), || {
        one.equals(other).then_some(())
    });
}
