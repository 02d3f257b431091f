//! `ucp-clock draw`: the space-time diagram of a history, as SVG, text or a log for ShiViz.
//!
//! Reads all of it first; what is drawn is in diagram.rs, how in one file for each form.

mod diagram;
mod shiviz;
mod svg;
mod text;

use clap::ValueEnum;

use crate::cli::exit::Exit;
use crate::cli::output;
use crate::cli::report::{Failure, Reporter};
use crate::proto::history::Event;
use crate::proto::limits;

use super::events;
use diagram::Diagram;

/// The form of a drawing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// A picture for browsers.
    Svg,
    /// Columns of characters.
    Text,
    /// A log for the ShiViz viewer.
    Shiviz,
}

/// Draws the history of stdin.
pub(super) fn run(form: Form, job: Option<&str>, reporter: Reporter) -> Result<Exit, Failure> {
    let mut read = vec![];
    let bad = events::each_line(reporter, |line| {
        let event = match Event::parse(&line) {
            Ok(event) => event,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let about = event.subject.as_deref().is_some_and(|id| job.is_some_and(|j| id.ends_with(j)));
        if job.is_some() && !about {
            return Ok(Ok(()));
        }
        if read.len() == limits::DRAWN_EVENTS_MAX {
            let max = limits::DRAWN_EVENTS_MAX;
            let what = format!("a drawing of over {max} events cannot be read by anybody");
            return Err(Failure::new(Exit::Data, what).hint("choose one job with --job ID"));
        }
        read.push((event, line));
        Ok(Ok(()))
    })?;
    let diagram = Diagram::new(&read).map_err(|circle| Failure::new(Exit::Data, circle))?;
    let drawn = match form {
        Form::Svg => svg::draw(&diagram),
        Form::Text => text::draw(&diagram),
        Form::Shiviz => shiviz::draw(&diagram),
    };
    output::text(&drawn)?;
    Ok(if bad { Exit::Data } else { Exit::Done })
}
