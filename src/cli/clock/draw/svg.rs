//! A diagram as SVG: time goes down, life lines stand side by side, arrows are messages.
//!
//! Readable up to some ten life lines without zooming: each has a column for its words. Hovering
//! over a mark shows it in full. Colours are told apart by lightness as well, and each kind of news
//! has a shape of its own.
//! Source: SVG 1.1; W3C XML 1.0 for what must be escaped.

use std::fmt::Write as _;

use super::diagram::{Diagram, Mark, Role, Tone};

const COLUMN: usize = 270;
const ROW: usize = 24;
const LEFT: usize = 40;
const TOP: usize = 96;
const LEGEND_STEP: usize = 150;

const fn colour(tone: Tone) -> &'static str {
    match tone {
        Tone::Plain => "#6b7280",
        Tone::Begin => "#1d4ed8",
        Tone::Work => "#0891b2",
        Tone::Accepted => "#15803d",
        Tone::Unused => "#b45309",
        Tone::Loss => "#b91c1c",
    }
}

const STYLE: &str = "text{font:12px ui-sans-serif,system-ui,sans-serif;fill:#111827}\
.name{font-weight:600;font-size:13px}.role{fill:#6b7280;font-size:11px}\
.life{stroke:#9ca3af;stroke-width:1.5}.far{stroke-dasharray:5 4}\
.arrow{stroke:#6b7280;stroke-width:1.2;fill:none;marker-end:url(#head)}\
.words{paint-order:stroke;stroke:#fff;stroke-width:4px;stroke-linejoin:round}";

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            letter if letter.is_control() || matches!(letter, '\u{fffe}' | '\u{ffff}') => {
                escaped.push(' ');
            }
            letter => escaped.push(letter),
        }
    }
    escaped
}

const fn x(lane: usize) -> usize {
    LEFT + lane * COLUMN
}

const fn y(row: usize) -> usize {
    TOP + row * ROW
}

/// The shape of a mark, so that colours are not needed to read it.
fn shape(tone: Tone, x: usize, y: usize) -> String {
    let fill = colour(tone);
    match tone {
        Tone::Begin => {
            format!(r#"<rect x="{}" y="{}" width="11" height="11" fill="{fill}"/>"#, x - 5, y - 5)
        }
        Tone::Accepted => format!(
            r##"<circle cx="{x}" cy="{y}" r="6.5" fill="{fill}" stroke="#fff" stroke-width="1.5"/>"##
        ),
        Tone::Unused => format!(
            r##"<circle cx="{x}" cy="{y}" r="5" fill="#fff" stroke="{fill}" stroke-width="2.5"/>"##
        ),
        Tone::Loss => format!(
            r#"<path d="M{} {}L{} {}M{} {}L{} {}" stroke="{fill}" stroke-width="3"/>"#,
            x - 5,
            y - 5,
            x + 5,
            y + 5,
            x - 5,
            y + 5,
            x + 5,
            y - 5
        ),
        Tone::Plain | Tone::Work => {
            format!(r#"<circle cx="{x}" cy="{y}" r="4.5" fill="{fill}"/>"#)
        }
    }
}

/// Draws it.
pub(super) fn draw(diagram: &Diagram) -> String {
    let legend = LEFT + Tone::ALL.len() * LEGEND_STEP + 120;
    let width = (x(diagram.lanes.len()) + LEFT).max(legend);
    let height = y(diagram.marks.len()) + ROW;
    let mut drawn = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" role=\"img\">\n<title>Space-time diagram: {} life lines, \
         {} marks</title>\n<style>{STYLE}</style>\n<defs><marker id=\"head\" viewBox=\"0 0 8 8\" \
         refX=\"8\" refY=\"4\" markerWidth=\"8\" markerHeight=\"8\" orient=\"auto\"><path \
         d=\"M0 0L8 4L0 8z\" fill=\"#6b7280\"/></marker></defs>\n<rect width=\"{width}\" \
         height=\"{height}\" fill=\"#fff\"/>\n",
        diagram.lanes.len(),
        diagram.marks.len(),
    );
    draw_legend(&mut drawn);
    draw_lanes(diagram, &mut drawn);
    for (row, mark) in diagram.marks.iter().enumerate() {
        draw_arrows(diagram, row, mark, &mut drawn);
    }
    for (row, mark) in diagram.marks.iter().enumerate() {
        draw_mark(row, mark, &mut drawn);
    }
    drawn.push_str("</svg>\n");
    drawn
}

// Nothing fails when writing to a string, so what `write!` returns is passed over below.

fn draw_legend(drawn: &mut String) {
    let mut at = LEFT;
    for (tone, words) in Tone::ALL {
        let _ = writeln!(
            drawn,
            r#"{}<text x="{}" y="24" class="role">{words}</text>"#,
            shape(tone, at, 20),
            at + 12
        );
        at += words.len() * 6 + 50;
    }
}

fn draw_lanes(diagram: &Diagram, drawn: &mut String) {
    let bottom = y(diagram.marks.len());
    for (number, lane) in diagram.lanes.iter().enumerate() {
        let (x, name) = (x(number), escaped(&lane.name));
        let (role, class) = match lane.role {
            Role::Actor => ("writes", "life"),
            Role::Executor => ("executor", "life far"),
        };
        let top = TOP - 20;
        let _ = writeln!(
            drawn,
            r#"<text x="{x}" y="{}" class="name">{name}</text><text x="{x}" y="{}" class="role">{role}</text><line x1="{x}" y1="{top}" x2="{x}" y2="{bottom}" class="{class}"/>"#,
            TOP - 42,
            TOP - 27,
        );
    }
}

fn draw_arrows(diagram: &Diagram, row: usize, mark: &Mark, drawn: &mut String) {
    for cause in &mark.causes {
        let (from, to) = (x(diagram.marks[*cause].lane), x(mark.lane));
        // Ends at the edge of the mark, not in its middle.
        let end = if from < to { to - 7 } else { to + 7 };
        let _ =
            writeln!(drawn, r#"<path class="arrow" d="M{from} {}L{end} {}"/>"#, y(*cause), y(row));
    }
}

fn draw_mark(row: usize, mark: &Mark, drawn: &mut String) {
    let (x, y) = (x(mark.lane), y(row));
    let hue = mark.hue.map_or(String::new(), |hue| {
        let fill = format!("hsl({},55%,60%)", hue % 360);
        format!(r#"<rect x="{}" y="{}" width="4" height="14" fill="{fill}"/>"#, x + 11, y - 7)
    });
    let _ = writeln!(
        drawn,
        r#"<g><title>{}</title>{}{hue}<text x="{}" y="{}" class="words">{}</text></g>"#,
        escaped(&mark.detail),
        shape(mark.tone, x, y),
        x + 19,
        y + 4,
        escaped(&mark.label)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_text_becomes_markup() {
        assert_eq!(escaped("a<b>&\"c\"\n\u{7}"), "a&lt;b&gt;&amp;&quot;c&quot;  ");
    }
}
