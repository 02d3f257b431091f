//! Figures and their targets, as tables in Markdown.
//!
//! Measures nothing. A table takes the same figures in each round; their names are their identity.

use std::fmt::{self, Display, Formatter};

/// What is asked of a figure.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    None,
    AtLeast(f64),
    AtMost(f64),
    /// At least such a part of the floor.
    PartOfFloor(f64),
    /// At most so much above the floor.
    AboveFloor(f64),
}

/// One value of one round.
#[derive(Debug, Clone)]
pub struct Figure {
    what: String,
    unit: &'static str,
    value: f64,
    floor: Option<f64>,
    target: Target,
    command: String,
}

impl Figure {
    pub fn new(what: impl Into<String>, unit: &'static str, value: f64) -> Self {
        let what = what.into();
        Self { what, unit, value, floor: None, target: Target::None, command: String::new() }
    }

    /// What was run for it.
    pub fn command(mut self, command: impl Into<String>) -> Self {
        self.command = command.into();
        self
    }

    /// What the machine does with none of our code, in the same round.
    pub fn floor(mut self, floor: f64) -> Self {
        self.floor = Some(floor);
        self
    }

    pub fn target(mut self, target: Target) -> Self {
        self.target = target;
        self
    }
}

impl Display for Figure {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}", self.what, short(self.value), self.unit)?;
        self.floor.map_or(Ok(()), |floor| {
            write!(f, ", floor {}, ratio {:.2}", short(floor), self.value / floor)
        })
    }
}

/// All rounds of some figures.
#[derive(Debug, Default)]
pub struct Table {
    lines: Vec<Vec<Figure>>,
}

impl Table {
    pub fn add(&mut self, figure: Figure) {
        match self.lines.iter_mut().find(|rounds| rounds[0].what == figure.what) {
            Some(rounds) => rounds.push(figure),
            None => self.lines.push(vec![figure]),
        }
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "| measure | median (least–most) | floor | ratio | target | | command |")?;
        write!(f, "| --- | ---: | ---: | ---: | --- | --- | --- |")?;
        self.lines.iter().try_for_each(|rounds| write!(f, "\n{}", line(rounds)))
    }
}

fn line(rounds: &[Figure]) -> String {
    let Figure { what, unit, target, command, .. } = &rounds[0];
    let values = Spread::of(rounds.iter().map(|figure| figure.value));
    let floors = Spread::of(rounds.iter().filter_map(|figure| figure.floor));
    let pairs = rounds.iter().filter_map(|figure| Some((figure.value, figure.floor?)));
    let ratio = Spread::of(pairs.clone().map(|(value, floor)| value / floor));
    let above = Spread::of(pairs.map(|(value, floor)| value - floor));
    let (asked, met) = match *target {
        Target::None => (String::new(), None),
        Target::AtLeast(least) => {
            (format!("≥ {} {unit}", short(least)), Some(values.median >= least))
        }
        Target::AtMost(most) => (format!("≤ {} {unit}", short(most)), Some(values.median <= most)),
        Target::PartOfFloor(part) => (format!("ratio ≥ {part:.2}"), Some(ratio.median >= part)),
        Target::AboveFloor(most) => {
            (format!("≤ floor + {} {unit}", short(most)), Some(above.median <= most))
        }
    };
    let verdict = met.map_or("", |met| if met { "met" } else { "**missed**" });
    let command = command.replace('|', "\\|");
    let command = if command.is_empty() { command } else { format!("`{command}`") };
    let (floor, ratio) = if floors.median.is_nan() {
        (String::new(), String::new())
    } else {
        (short(floors.median), format!("{:.2}", ratio.median))
    };
    let values = format!("{values} {unit}");
    let cells = [what, values.trim_end(), &floor, &ratio, &asked, verdict, &command];
    format!("| {} |", cells.join(" | "))
}

/// The middle of some values, and how far they lie apart.
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let at = |at: usize| values.get(at).copied().unwrap_or(f64::NAN);
        let last = values.len().saturating_sub(1);
        Self { median: at(values.len() / 2), least: at(0), most: at(last) }
    }
}

impl Display for Spread {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { median, least, most } = self;
        if least.total_cmp(most).is_eq() {
            return write!(f, "{}", short(*median));
        }
        write!(f, "{} ({}–{})", short(*median), short(*least), short(*most))
    }
}

/// Three digits or all before the point.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 99.95 => {
            let digits = format!("{value:.0}");
            let (sign, digits) = digits.split_at(usize::from(value < 0.0));
            let mut out = String::new();
            for (at, digit) in digits.chars().enumerate() {
                if at > 0 && (digits.len() - at) % 3 == 0 {
                    out.push(',');
                }
                out.push(digit);
            }
            format!("{sign}{out}")
        }
        size if size >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
