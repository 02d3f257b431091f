//! Our standard input, in pieces.
//!
//! Cuts no lines (wire/lines.rs does).

use std::io::{self, Read};

use hyper::body::Bytes;
use tokio::sync::mpsc;

/// Bytes read at one time.
const PIECE_BYTES: usize = 64 << 10;
/// Pieces that wait to be cut into lines.
const PIECES_MAX: usize = 4;

/// Reads stdin on a thread of its own, which nobody waits for at the end.
pub fn read_stdin() -> mpsc::Receiver<io::Result<Bytes>> {
    let (pieces, input) = mpsc::channel(PIECES_MAX);
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let read = match stdin.read(&mut piece) {
                Ok(0) => break,
                Ok(length) => Ok(Bytes::copy_from_slice(&piece[..length])),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let failed = read.is_err();
            if pieces.blocking_send(read).is_err() || failed {
                break;
            }
        }
    });
    input
}
