//! Histories from stdin: sort and check.
//!
//! Neither holds lines in memory: `check` looks at each once; `sort` puts them into a file without
//! a name (`$TMPDIR`) and keeps for each its place and the numbers of its clock.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use nix::libc;
use serde::Serialize;

use crate::cli::exit::Exit;
use crate::cli::output;
use crate::cli::report::{Failure, Reporter};
use crate::proto::history::{Checker, Event, Fault, Graph, short_hash};
use crate::wire::lines::Lines;

/// Bytes read from stdin or written to stdout at a time.
const PIECE_BYTES: usize = 64 << 10;

/// Hands each line of stdin to `each`, which says why it is none of those expected; bad ones are
/// named on stderr and passed over. Returns whether there was a bad one.
///
/// # Errors
/// Stdin cannot be read, or `each` failed.
pub(super) fn each_line(
    reporter: Reporter,
    mut each: impl FnMut(String) -> Result<Result<(), String>, Failure>,
) -> Result<bool, Failure> {
    let mut lines = Lines::new();
    let mut bytes = vec![0; PIECE_BYTES];
    let mut stdin = io::stdin().lock();
    let mut bad = false;
    let mut at_end = false;
    while !at_end {
        match stdin.read(&mut bytes) {
            Ok(0) => at_end = true,
            Ok(count) => lines.push(&bytes[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Failure::io("cannot read stdin", &error)),
        }
        loop {
            let line = if at_end { lines.next().or_else(|| lines.rest()) } else { lines.next() };
            let Some(line) = line else { break };
            let problem = match line {
                Ok(text) => each(text)?.err().map(|why| format!("line {}: {why}", lines.number())),
                Err(error) => Some(error.to_string()),
            };
            if let Some(problem) = problem {
                bad = true;
                reporter.fault(problem);
            }
        }
    }
    Ok(bad)
}

const fn end(bad: bool, good: Exit) -> Exit {
    if bad { Exit::Data } else { good }
}

/// The lines on disk, in order of arrival.
struct Spool {
    file: BufWriter<File>,
    places: Vec<(u64, u32)>,
    length: u64,
}

impl Spool {
    fn new() -> io::Result<Self> {
        let directory = std::env::temp_dir();
        let mut options = File::options();
        options.read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE);
        let file = options.open(directory)?;
        let file = BufWriter::with_capacity(PIECE_BYTES, file);
        Ok(Self { file, places: vec![], length: 0 })
    }

    fn push(&mut self, line: &str) -> io::Result<()> {
        let length = u32::try_from(line.len()).map_err(io::Error::other)?;
        self.file.write_all(line.as_bytes())?;
        self.places.push((self.length, length));
        self.length += u64::from(length);
        Ok(())
    }

    fn read(&self, index: usize, into: &mut Vec<u8>) -> io::Result<()> {
        let (at, length) = self.places[index];
        into.resize(length as usize, 0);
        self.file.get_ref().read_exact_at(into, at)
    }
}

/// Prints the events of stdin in a causal order.
pub(super) fn sort(reporter: Reporter) -> Result<Exit, Failure> {
    let failed = |error: &io::Error| Failure::io("cannot keep the lines in $TMPDIR", error);
    let mut spool = Spool::new().map_err(|error| failed(&error))?;
    let mut graph = Graph::new();
    let bad = each_line(reporter, |line| {
        let event = match Event::parse(&line) {
            Ok(event) => event,
            Err(error) => return Ok(Err(error.to_string())),
        };
        graph.add(&event, short_hash(&line)).map_err(|full| Failure::new(Exit::Data, full))?;
        spool.push(&line).map_err(|error| failed(&error))?;
        Ok(Ok(()))
    })?;
    let order = graph.order().map_err(|circle| Failure::new(Exit::Data, circle))?;
    drop(graph);
    spool.file.flush().map_err(|error| failed(&error))?;
    let mut line = vec![];
    let mut out = Vec::with_capacity(PIECE_BYTES * 2);
    for index in order {
        spool.read(index, &mut line).map_err(|error| failed(&error))?;
        out.extend_from_slice(&line);
        out.push(b'\n');
        if out.len() >= PIECE_BYTES {
            output::all(&out)?;
            out.clear();
        }
    }
    output::all(&out)?;
    Ok(end(bad, Exit::Done))
}

#[derive(Serialize)]
struct FaultLine<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    fault: &'static str,
    event: &'a str,
    detail: &'a str,
}

#[derive(Serialize)]
struct CheckLine {
    #[serde(rename = "type")]
    kind: &'static str,
    ok: bool,
    events: u64,
    faults: u64,
}

/// Checks the history of stdin: one line a fault, and one at the end.
pub(super) fn check(partial: bool, reporter: Reporter) -> Result<Exit, Failure> {
    let tell = |faults: Vec<Fault>| -> Result<(), Failure> {
        for fault in &faults {
            let Fault { kind, event, detail } = fault;
            output::line(&FaultLine { kind: "fault", fault: kind, event, detail })?;
        }
        Ok(())
    };
    let mut checker = Checker::new();
    let bad = each_line(reporter, |line| match Event::parse(&line) {
        Ok(event) => tell(checker.take(&event, short_hash(&line))).map(Ok),
        Err(error) => Ok(Err(error.to_string())),
    })?;
    tell(checker.finish(partial))?;
    let (events, faults) = (checker.events(), checker.faults());
    output::line(&CheckLine { kind: "check", ok: faults == 0 && !bad, events, faults })?;
    Ok(end(bad, if faults == 0 { Exit::Done } else { Exit::No }))
}
