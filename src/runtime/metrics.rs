//! Counters and histograms, and their text for Prometheus.
//!
//! Decides nothing. Counting costs one addition and takes no lock, so it may stand on any path.
//! Shape: the text exposition format, version 0.0.4: `# HELP`, `# TYPE`, one sample a line. Names
//! begin with `ucp_` and end with their base unit; labels hold words of ours, never free text.
//! Source: prometheus.io, "Exposition formats".

use std::fmt::{Display, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The media type of the text.
pub const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper ends of buckets for times, in microseconds: from one sync of a fast disk to hours.
pub const TIMES_US: &[u64] = &[
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    3_600_000_000,
];
/// Upper ends of buckets for how much is done at one time.
pub const SIZES: &[u64] = &[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 4_096, 16_384];

/// How often a value lay between which bounds.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [u64],
    /// How many of its units make one base unit.
    scale: f64,
    /// One more than bounds: the last one has no upper end.
    counts: Vec<AtomicU64>,
    sum: AtomicU64,
}

impl Histogram {
    /// One for times; they are shown in seconds.
    #[must_use]
    pub fn of_times() -> Self {
        Self::new(TIMES_US, 1e6)
    }

    /// One for counts.
    #[must_use]
    pub fn of_sizes() -> Self {
        Self::new(SIZES, 1.0)
    }

    fn new(bounds: &'static [u64], scale: f64) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, scale, counts, sum: AtomicU64::new(0) }
    }

    /// Counts a value.
    pub fn observe(&self, value: u64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    /// Counts a time.
    pub fn observe_time(&self, time: Duration) {
        self.observe(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }
}

/// The text as it is made.
#[derive(Debug, Default)]
pub struct Page(String);

impl Page {
    /// Begins a family of samples. `kind` is `counter`, `gauge` or `histogram`.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let before = if at == 0 { '{' } else { ',' };
            let text = text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
            let _ = write!(self.0, "{before}{label}=\"{text}\"");
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{end} {value}");
    }

    /// One number that goes up and down.
    pub fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }

    /// One number that only grows.
    pub fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "counter", help);
        self.sample(name, &[], value);
    }

    /// Numbers apart by a label.
    pub fn labelled<'a, V: Display>(
        &mut self,
        (name, kind, help): (&str, &str, &str),
        label: &str,
        values: impl IntoIterator<Item = (&'a str, V)>,
    ) {
        self.family(name, kind, help);
        for (word, value) in values {
            self.sample(name, &[(label, word)], value);
        }
    }

    /// Numbers apart by several labels.
    pub fn many<'a, const N: usize, V: Display>(
        &mut self,
        (name, kind, help): (&str, &str, &str),
        values: impl IntoIterator<Item = ([(&'a str, &'a str); N], V)>,
    ) {
        self.family(name, kind, help);
        for (labels, value) in values {
            self.sample(name, &labels, value);
        }
    }

    /// A histogram, with the running sums that the format asks for.
    pub fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.family(name, "histogram", help);
        let shown = |value: u64| {
            #[allow(clippy::cast_precision_loss, reason = "a drawing needs no last digit")]
            let value = value as f64;
            (value / histogram.scale).to_string()
        };
        let (bucket, mut below) = (format!("{name}_bucket"), 0);
        for (at, count) in histogram.counts.iter().enumerate() {
            below += count.load(Ordering::Relaxed);
            let end = histogram.bounds.get(at).map_or("+Inf".to_owned(), |bound| shown(*bound));
            self.sample(&bucket, &[("le", &end)], below);
        }
        let sum = histogram.sum.load(Ordering::Relaxed);
        self.sample(&format!("{name}_sum"), &[], shown(sum));
        self.sample(&format!("{name}_count"), &[], below);
    }

    /// The text so far.
    #[must_use]
    pub fn into_text(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_up_to_and_with_its_bounds() {
        let histogram = Histogram::of_sizes();
        for value in [0, 1, 2, 3, 20_000] {
            histogram.observe(value);
        }
        let mut page = Page::default();
        page.histogram("ucp_x", "X.", &histogram);
        let text = page.into_text();
        for line in [
            "# HELP ucp_x X.",
            "# TYPE ucp_x histogram",
            "ucp_x_bucket{le=\"1\"} 2",
            "ucp_x_bucket{le=\"2\"} 3",
            "ucp_x_bucket{le=\"4\"} 4",
            "ucp_x_bucket{le=\"16384\"} 4",
            "ucp_x_bucket{le=\"+Inf\"} 5",
            "ucp_x_sum 20006",
            "ucp_x_count 5",
        ] {
            assert!(text.lines().any(|held| held == line), "{line} is not in\n{text}");
        }
        let times = Histogram::of_times();
        times.observe_time(Duration::from_millis(5));
        let mut page = Page::default();
        page.histogram("ucp_x_seconds", "X.", &times);
        let text = page.into_text();
        assert!(text.contains("{le=\"0.0025\"} 0\n") && text.contains("{le=\"0.005\"} 1\n"));
        assert!(text.contains("ucp_x_seconds_sum 0.005\n"), "{text}");
    }

    #[test]
    fn labels_are_escaped() {
        let mut page = Page::default();
        page.labelled(("ucp_x", "gauge", "X."), "a", [("b\\\"c\nd", 1)]);
        assert!(page.into_text().ends_with("ucp_x{a=\"b\\\\\\\"c\\nd\"} 1\n"));
    }
}
