//! A diagram as columns of characters: one row a mark, one column a life line.
//!
//! `*` is the mark, `|` a life line; behind the columns stand the line's name, the words, and
//! after `<-` the rows that it knew of first.

use std::fmt::Write as _;

use super::diagram::Diagram;

/// Draws it.
pub(super) fn draw(diagram: &Diagram) -> String {
    let mut drawn = String::new();
    let digits = diagram.marks.len().to_string().len();
    for (row, mark) in diagram.marks.iter().enumerate() {
        let column = |lane| if lane == mark.lane { "* " } else { "| " };
        let columns: String = (0..diagram.lanes.len()).map(column).collect();
        let name = &diagram.lanes[mark.lane].name;
        // Nothing fails when writing to a string.
        let _ = write!(drawn, "{:>digits$}  {columns} {name}  {}", row + 1, mark.label);
        for (at, cause) in mark.causes.iter().enumerate() {
            let _ = write!(drawn, "{}{}", if at == 0 { "  <- " } else { ", " }, cause + 1);
        }
        drawn.push('\n');
    }
    drawn
}
