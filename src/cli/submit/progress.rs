//! How far many jobs are, for people, on stderr: a bar on a terminal, else lines if asked for.
//!
//! Decides nothing and waits for nothing: whoever does the work says what was submitted and what
//! ended, and calls [`Progress::draw`] whenever [`Progress::due`] comes. Draws nothing with `-q`,
//! nothing where stderr is no terminal unless `--progress` is given, and a bar not before
//! [`SHOWN_AFTER`], so that short runs show none.
//! On a terminal the bar is the last line: it goes away while anything else is written
//! (`report.rs` for stderr, [`Progress::hide`] for stdout) and at the end. No mode of the terminal
//! is changed, so there is nothing to restore after a signal.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use crate::cli::args::Common;
use crate::cli::report::{self, Reporter};

/// How long a run takes before a bar is drawn.
const SHOWN_AFTER: Duration = Duration::from_millis(500);
/// The time between two states of a bar.
const BAR_EVERY: Duration = Duration::from_millis(100);
/// The time between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(1);
/// The rate is that of about this time.
const RATE_OVER: Duration = Duration::from_secs(10);
/// States that are kept to know the rate, at most.
const MARKS_MAX: usize = 128;

/// What was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Counts {
    /// Jobs that will be, where that is known.
    total: Option<u64>,
    submitted: u64,
    ended: u64,
    failed: u64,
}

/// Where it is shown.
enum Shown {
    Nowhere,
    /// A bar; absent while something else is written.
    Bar(Option<ProgressBar>),
    Lines,
}

/// The progress of many jobs.
pub struct Progress {
    shown: Shown,
    coloured: bool,
    reporter: Reporter,
    counts: Counts,
    began: Instant,
    due: Instant,
    /// Moments with what had ended then, the oldest first.
    marks: VecDeque<(Instant, u64)>,
    /// What a line said last; nothing is said twice.
    said: Counts,
}

impl Progress {
    /// Begins; `total` is the number of jobs where it is known, `asked` whether `--progress` is
    /// given.
    #[must_use]
    pub fn start(total: Option<u64>, asked: bool, common: &Common, reporter: Reporter) -> Self {
        let able = std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let shown = match (common.quiet, report::is_terminal() && able, asked) {
            (true, ..) | (false, false, false) => Shown::Nowhere,
            (false, true, _) => Shown::Bar(None),
            (false, false, true) => Shown::Lines,
        };
        let began = Instant::now();
        let wait = if matches!(shown, Shown::Bar(_)) { SHOWN_AFTER } else { LINE_EVERY };
        let coloured = report::colour(common);
        let counts = Counts { total, ..Counts::default() };
        let marks = VecDeque::from([(began, 0)]);
        let said = Counts::default();
        Self { shown, coloured, reporter, counts, began, due: began + wait, marks, said }
    }

    /// Whether anything is ever shown.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !matches!(self.shown, Shown::Nowhere)
    }

    /// So many more jobs were made.
    pub fn submitted(&mut self, count: u64) {
        self.counts.submitted += count;
    }

    /// A job ended, or was refused.
    pub fn ended(&mut self, well: bool) {
        self.counts.ended += 1;
        self.counts.failed += u64::from(!well);
    }

    /// No more jobs will be made than were.
    pub fn complete(&mut self) {
        self.counts.total = Some(self.counts.submitted);
    }

    /// So many have not ended, and no more will be made.
    pub fn stop(&mut self, left: u64) {
        self.counts.submitted = self.counts.ended + left;
        self.complete();
    }

    /// Waits until it is time to draw.
    pub async fn due(&self) {
        tokio::time::sleep_until(self.due).await;
    }

    /// Shows how far the jobs are.
    pub fn draw(&mut self) {
        let now = Instant::now();
        while let Some((oldest, _)) = self.marks.front()
            && (self.marks.len() >= MARKS_MAX || now - *oldest > RATE_OVER)
            && self.marks.len() > 1
        {
            self.marks.pop_front();
        }
        let rate = self.rate(now);
        self.marks.push_back((now, self.counts.ended));
        let words = words(&self.counts, rate, self.coloured);
        match &mut self.shown {
            Shown::Nowhere => {}
            Shown::Lines => {
                self.due = now + LINE_EVERY;
                if self.counts != self.said {
                    self.said = self.counts;
                    self.reporter.note(words);
                }
            }
            Shown::Bar(bar) => {
                self.due = now + BAR_EVERY;
                let bar = bar.get_or_insert_with(new_bar);
                if self.counts.total != bar.length() {
                    bar.set_style(style(self.counts.total.is_some()));
                }
                match self.counts.total {
                    Some(total) => bar.set_length(total),
                    None => bar.unset_length(),
                }
                bar.set_position(self.counts.ended);
                bar.set_message(words);
                bar.tick();
            }
        }
    }

    fn rate(&self, now: Instant) -> f64 {
        let (since, ended) = self.marks.front().copied().unwrap_or((self.began, 0));
        let seconds = (now - since).as_secs_f64();
        #[allow(clippy::cast_precision_loss, reason = "a rate for people")]
        let count = (self.counts.ended - ended) as f64;
        if seconds > 0.0 { count / seconds } else { 0.0 }
    }

    /// Takes the bar off the terminal, so that something else can be written; the next
    /// [`Progress::draw`] brings it back.
    pub fn hide(&mut self) {
        if let Shown::Bar(bar) = &mut self.shown
            && let Some(bar) = bar.take()
        {
            report::set_last_line(None);
            bar.finish_and_clear();
        }
    }

    /// Ends: a bar goes away, lines say once more how far it came.
    pub fn finish(&mut self) {
        self.hide();
        if matches!(self.shown, Shown::Lines) {
            self.draw();
        }
        self.shown = Shown::Nowhere;
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.hide();
    }
}

fn new_bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(style(false));
    report::set_last_line(Some(bar.clone()));
    bar
}

fn style(bounded: bool) -> ProgressStyle {
    let template = if bounded { "[{bar:20}] {msg}" } else { "{spinner} {msg}" };
    let style = ProgressStyle::with_template(template).expect("a template of ours is right");
    style.progress_chars("=> ").tick_chars("-\\|/ ")
}

/// How far it is, in words.
fn words(counts: &Counts, rate: f64, coloured: bool) -> String {
    let Counts { total, submitted, ended, failed } = *counts;
    let mut text = match total {
        Some(total) => format!("{ended} of {total} done"),
        None => format!("{ended} done of {submitted} so far"),
    };
    let mut add = |part: std::fmt::Arguments<'_>| {
        let _ = write!(text, ", {part}");
    };
    match submitted - ended.min(submitted) {
        0 => {}
        under_way => add(format_args!("{under_way} under way")),
    }
    match (failed, coloured) {
        (0, _) => {}
        (failed, true) => add(format_args!("\u{1b}[31m{failed} failed\u{1b}[0m")),
        (failed, false) => add(format_args!("{failed} failed")),
    }
    if rate > 0.0 {
        let digits = usize::from(rate < 10.0);
        add(format_args!("{rate:.digits$}/s"));
        if let Some(left) = total.map(|total| total - ended.min(total)).filter(|left| *left > 0) {
            #[allow(clippy::cast_precision_loss, reason = "an estimate for people")]
            add(format_args!("{} left", clock(left as f64 / rate)));
        }
    }
    text
}

/// A time as `12s`, `3m04s` or `2h05m`.
fn clock(seconds: f64) -> String {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is bounded")]
    let seconds = seconds.clamp(0.0, 1e12).ceil() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s:02}s"),
        (h, m, _) => format!("{h}h{m:02}m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(total: Option<u64>, submitted: u64, ended: u64, failed: u64) -> Counts {
        Counts { total, submitted, ended, failed }
    }

    #[test]
    fn words_tell_what_is_known() {
        for (counts, rate, expected) in [
            (counts(None, 0, 0, 0), 0.0, "0 done of 0 so far"),
            (counts(None, 9, 4, 1), 2.5, "4 done of 9 so far, 5 under way, 1 failed, 2.5/s"),
            (
                counts(Some(900), 900, 100, 0),
                12.3,
                "100 of 900 done, 800 under way, 12/s, 1m06s left",
            ),
            (counts(Some(5), 5, 5, 0), 99.9, "5 of 5 done, 100/s"),
            (counts(Some(10), 4, 4, 4), 1.0, "4 of 10 done, 4 failed, 1.0/s, 6s left"),
        ] {
            assert_eq!(words(&counts, rate, false), expected);
        }
        let red = words(&counts(None, 1, 1, 1), 0.0, true);
        assert!(red.contains("\u{1b}[31m1 failed\u{1b}[0m"), "{red:?}");
        assert_eq!([0.2, 59.0, 184.0, 7_500.0].map(clock), ["1s", "59s", "3m04s", "2h05m"]);
    }
}
