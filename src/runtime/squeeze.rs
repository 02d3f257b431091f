//! Streams of facts, compressed piece by piece, so that each piece can be read when it is there.
//!
//! Knows nothing of facts. What comes from outside is expanded a bounded piece at a time, however
//! much it claims to be.
//! Source: RFC 8878 (zstd), as a content coding of HTTP.

use std::io;

use zstd::stream::raw::{Decoder, Encoder, InBuffer, Operation, OutBuffer};

/// The word in `Content-Encoding`.
pub const ZSTD: &str = "zstd";
/// Fast: links are slow where this matters, but brokers may be small.
const LEVEL: i32 = 3;
/// Bytes that come out at one time.
const PIECE_BYTES: usize = 64 << 10;

/// Compresses one stream.
pub struct Squeezer(Encoder<'static>);

impl Squeezer {
    /// Nothing yet.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn new() -> io::Result<Self> {
        Encoder::new(LEVEL).map(Self)
    }

    /// Compresses a piece whole: whoever reads the result can read all of the piece.
    ///
    /// # Errors
    /// The library refuses.
    pub fn piece(&mut self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let (mut out, mut input) = (vec![], InBuffer::around(bytes));
        let mut piece = vec![0; PIECE_BYTES];
        while input.pos() < bytes.len() {
            let mut output = OutBuffer::around(&mut piece);
            self.0.run(&mut input, &mut output)?;
            out.extend_from_slice(output.as_slice());
        }
        self.finish_with(&mut out, |encoder, output| encoder.flush(output))?;
        Ok(out)
    }

    /// The end of the stream.
    ///
    /// # Errors
    /// The library refuses.
    pub fn end(mut self) -> io::Result<Vec<u8>> {
        let mut out = vec![];
        self.finish_with(&mut out, |encoder, output| encoder.finish(output, true))?;
        Ok(out)
    }

    fn finish_with(
        &mut self,
        out: &mut Vec<u8>,
        step: impl Fn(&mut Encoder<'static>, &mut OutBuffer<'_, Vec<u8>>) -> io::Result<usize>,
    ) -> io::Result<()> {
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let mut output = OutBuffer::around(&mut piece);
            let left = step(&mut self.0, &mut output)?;
            out.extend_from_slice(output.as_slice());
            if left == 0 {
                return Ok(());
            }
        }
    }
}

/// Expands one stream.
pub struct Expander(Decoder<'static>);

impl Expander {
    /// Nothing yet.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn new() -> io::Result<Self> {
        Decoder::new().map(Self)
    }

    /// Expands what can be of a piece; hands it on in pieces of bounded size.
    ///
    /// # Errors
    /// It is not zstd.
    pub fn piece(&mut self, bytes: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let (mut input, mut piece) = (InBuffer::around(bytes), vec![0; PIECE_BYTES]);
        loop {
            let mut output = OutBuffer::around(&mut piece);
            self.0.run(&mut input, &mut output)?;
            let came = output.pos();
            each(output.as_slice());
            if came == 0 && input.pos() == bytes.len() {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_piece_can_be_read_when_it_is_there() {
        let (mut squeezer, mut expander) =
            (Squeezer::new().expect("made"), Expander::new().expect("made"));
        let mut read = |bytes: &[u8]| {
            let mut out = vec![];
            expander.piece(bytes, |piece| out.extend_from_slice(piece)).expect("zstd");
            out
        };
        let long = "a line of facts\n".repeat(20_000).into_bytes();
        for piece in [&b"first\n"[..], &long, b"", b"last\n"] {
            let squeezed = squeezer.piece(piece).expect("squeezed");
            assert!(squeezed.len() < 1_000);
            assert_eq!(read(&squeezed), piece);
        }
        assert_eq!(read(&squeezer.end().expect("the end")), b"");
    }

    #[test]
    fn what_is_not_zstd_is_an_error() {
        assert!(Expander::new().expect("made").piece(b"{\"v\":1}", |_| {}).is_err());
    }
}
