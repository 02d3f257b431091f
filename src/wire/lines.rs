//! JSON Lines with a bound: bytes in, whole lines out.
//!
//! Pure. A line ends with `\n` (a `\r` before it is dropped); the last one may lack its end. Blank
//! lines are passed over. Lines that end with NUL are taken as they are.
//! At most [`limits::LINE_BYTES_MAX`] bytes of one line are ever held.

use crate::proto::limits;

/// Why bytes are no line. The bytes up to the next line end are dropped; later lines are whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LineError {
    /// The line is longer than may be.
    #[error("line {number} is over {max} bytes", max = limits::LINE_BYTES_MAX)]
    Long {
        /// The line's number, from 1.
        number: u64,
    },
    /// The line is not UTF-8.
    #[error("line {number} is not UTF-8")]
    Encoding {
        /// The line's number, from 1.
        number: u64,
    },
}

/// Cuts a stream of bytes into lines.
#[derive(Debug, Default)]
pub struct Lines {
    held: Vec<u8>,
    start: usize,
    searched: usize,
    number: u64,
    skipping: bool,
    /// Lines end with NUL and are taken as they are.
    null: bool,
}

impl Lines {
    /// Nothing held.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing held; lines end with NUL instead, and are any other bytes, also none.
    #[must_use]
    pub fn null() -> Self {
        Self { null: true, ..Self::default() }
    }

    /// The number of the line that `next` returned last, from 1.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Takes bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 && (self.start == self.held.len() || self.start > self.held.len() / 2) {
            self.held.drain(..self.start);
            self.searched -= self.start;
            self.start = 0;
        }
        self.held.extend_from_slice(bytes);
    }

    /// The next whole line, without its end; `None` when more bytes are needed.
    #[allow(clippy::should_implement_trait)] // more bytes may come after None
    pub fn next(&mut self) -> Option<Result<String, LineError>> {
        self.next_bytes().map(|line| self.text(line?))
    }

    /// Whether a whole line is here.
    #[must_use]
    pub fn has_line(&self) -> bool {
        self.held[self.searched..].contains(&b'\n')
    }

    /// Like [`Lines::next`], for lines of any bytes.
    pub fn next_bytes(&mut self) -> Option<Result<Vec<u8>, LineError>> {
        loop {
            let mark = if self.null { 0 } else { b'\n' };
            let end = self.held[self.searched..].iter().position(|byte| *byte == mark);
            let Some(end) = end.map(|at| at + self.searched) else {
                self.searched = self.held.len();
                return self.drop_long();
            };
            let line = self.held[self.start..end].to_vec();
            self.start = end + 1;
            self.searched = self.start;
            if let Some(line) = self.finish(line) {
                return Some(line);
            }
        }
    }

    /// The last line where it lacks its end; call at the end of the stream, after `next`.
    pub fn rest(&mut self) -> Option<Result<String, LineError>> {
        self.rest_bytes().map(|line| self.text(line?))
    }

    /// Like [`Lines::rest`], for lines of any bytes.
    pub fn rest_bytes(&mut self) -> Option<Result<Vec<u8>, LineError>> {
        let line = self.held.split_off(self.start);
        let Self { number, skipping, null, .. } = *self;
        *self = Self { number, skipping, null, ..Self::default() };
        if line.is_empty() { None } else { self.finish(line) }
    }

    fn text(&self, line: Vec<u8>) -> Result<String, LineError> {
        String::from_utf8(line).map_err(|_| LineError::Encoding { number: self.number })
    }

    fn finish(&mut self, mut line: Vec<u8>) -> Option<Result<Vec<u8>, LineError>> {
        self.number += 1;
        if std::mem::take(&mut self.skipping) {
            return None;
        }
        if !self.null && line.last() == Some(&b'\r') {
            line.pop();
        }
        if !self.null && line.iter().all(u8::is_ascii_whitespace) {
            return None;
        }
        let number = self.number;
        if line.len() > limits::LINE_BYTES_MAX {
            return Some(Err(LineError::Long { number }));
        }
        Some(Ok(line))
    }

    /// Gives up a line that is too long as soon as that is known.
    fn drop_long(&mut self) -> Option<Result<Vec<u8>, LineError>> {
        let long = self.held.len() - self.start > limits::LINE_BYTES_MAX;
        if !long && !self.skipping {
            return None;
        }
        let first = long && !self.skipping;
        self.held.clear();
        (self.start, self.searched, self.skipping) = (0, 0, true);
        first.then(|| Err(LineError::Long { number: self.number + 1 }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(lines: &mut Lines) -> Vec<Result<String, LineError>> {
        let mut found: Vec<_> = std::iter::from_fn(|| lines.next()).collect();
        found.extend(lines.rest());
        found
    }

    #[test]
    fn lines_are_the_same_however_the_bytes_are_cut() {
        let text = b"one\r\n\n two \nthree\n\xff\nlast";
        for cut in 1..text.len() {
            let (mut lines, mut found) = (Lines::new(), vec![]);
            for piece in text.chunks(cut) {
                lines.push(piece);
                found.extend(std::iter::from_fn(|| lines.next()));
            }
            found.extend(lines.rest());
            let expected = [
                Ok("one".to_owned()),
                Ok(" two ".to_owned()),
                Ok("three".to_owned()),
                Err(LineError::Encoding { number: 5 }),
                Ok("last".to_owned()),
            ];
            assert_eq!(found, expected, "pieces of {cut}");
        }
    }

    #[test]
    fn lines_that_end_with_nul_are_taken_as_they_are() {
        let text = b"a\nb\r\0\0 \0\xff\0last";
        for cut in 1..text.len() {
            let (mut lines, mut found) = (Lines::null(), vec![]);
            for piece in text.chunks(cut) {
                lines.push(piece);
                found.extend(std::iter::from_fn(|| lines.next_bytes()));
            }
            found.extend(lines.rest_bytes());
            let found: Vec<_> = found.into_iter().map(|line| line.expect("short")).collect();
            assert_eq!(found, [&b"a\nb\r"[..], b"", b" ", b"\xff", b"last"], "pieces of {cut}");
            assert_eq!(lines.number(), 5);
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_dropped_and_the_next_is_whole() {
        let mut lines = Lines::new();
        let piece = vec![b'x'; limits::LINE_BYTES_MAX / 2 + 1];
        let mut found = vec![];
        for _ in 0..5 {
            lines.push(&piece);
            found.extend(std::iter::from_fn(|| lines.next()));
            assert!(lines.held.len() <= limits::LINE_BYTES_MAX + piece.len());
        }
        lines.push(b"\nshort\n");
        found.extend(all(&mut lines));
        assert_eq!(found, [Err(LineError::Long { number: 1 }), Ok("short".to_owned())]);
    }
}
