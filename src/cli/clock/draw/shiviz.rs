//! A diagram as a log for the ShiViz viewer: an event's words, then its host and its clock.
//!
//! ShiViz wants each host's events numbered 1, 2, 3, …; so clocks are counted anew from the marks
//! and arrows of the diagram, which also gives executors clocks of their own.
//! Source: the file format described on the ShiViz page: parser expression, delimiter, log.

use std::fmt::Write as _;

use crate::proto::clock::Clock;
use crate::proto::id::ActorId;

use super::diagram::Diagram;

/// Writes the log.
pub(super) fn draw(diagram: &Diagram) -> String {
    let mut drawn = String::from("(?<event>.*)\\n(?<host>\\S*) (?<clock>{.*})\n\n");
    let hosts: Vec<ActorId> = (0..diagram.lanes.len())
        .map(|lane| diagram.lanes[lane].name.parse().expect("a life line is named by an actor"))
        .collect();
    let mut last = vec![Clock::new(); hosts.len()];
    let mut clocks: Vec<Clock> = vec![];
    for mark in &diagram.marks {
        let mut clock = last[mark.lane].clone();
        for cause in &mark.causes {
            clock.merge(&clocks[*cause]);
        }
        clock.tick(&hosts[mark.lane]);
        let json = serde_json::to_string(&clock).expect("a clock has only string keys");
        // Nothing fails when writing to a string.
        let _ = write!(drawn, "{}\n{} {json}\n", mark.label, hosts[mark.lane]);
        last[mark.lane] = clock.clone();
        clocks.push(clock);
    }
    drawn
}
