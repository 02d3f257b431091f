//! Streams of facts, compressed piece by piece, so that each piece can be read when it is there.
//!
//! Knows nothing of facts. What comes from outside is expanded a bounded piece at a time, however
//! much it claims to be.
//! Source: RFC 8878 (zstd), as a content coding of HTTP.

use std::io;

use zstd::stream::raw::{DParameter, Decoder, Encoder, InBuffer, Operation, OutBuffer};

/// The word in `Content-Encoding`.
pub const ZSTD: &str = "zstd";
/// Fast: links are slow where this matters, but brokers may be small.
const LEVEL: i32 = 3;
/// The memory of a stream that comes in, as a power of two: more than [`LEVEL`] asks for.
const WINDOW_LOG_MAX: u32 = 23;
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
pub struct Expander {
    decoder: Decoder<'static>,
    piece: Vec<u8>,
}

impl Expander {
    /// Nothing yet.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn new() -> io::Result<Self> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))?;
        Ok(Self { decoder, piece: vec![0; PIECE_BYTES] })
    }

    /// The next of what comes out, a bounded piece; takes what it reads off `bytes`. Nothing once
    /// more has to come in.
    ///
    /// # Errors
    /// It is not zstd, or wants too much memory.
    pub fn next(&mut self, bytes: &mut &[u8]) -> io::Result<Option<&[u8]>> {
        loop {
            let mut input = InBuffer::around(bytes);
            let mut output = OutBuffer::around(&mut self.piece);
            self.decoder.run(&mut input, &mut output)?;
            let (read, came) = (input.pos(), output.pos());
            *bytes = bytes.get(read..).unwrap_or_default();
            if came > 0 {
                return Ok(self.piece.get(..came));
            }
            if bytes.is_empty() {
                return Ok(None);
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
        let mut read = |mut bytes: &[u8]| {
            let mut out = vec![];
            while let Some(piece) = expander.next(&mut bytes).expect("zstd") {
                assert!(piece.len() <= PIECE_BYTES);
                out.extend_from_slice(piece);
            }
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
        assert!(Expander::new().expect("made").next(&mut &b"{\"v\":1}"[..]).is_err());
    }
}
