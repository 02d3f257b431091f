//! Bodies of answers: nothing, one value, or lines that are written while they are sent.
//!
//! A streamed body owns the work that makes it: the connection polls the body, the body polls the
//! work. So no task and no channel stands between, and a client that does not read stops the
//! work instead of filling memory; a client that goes away drops it.
//! Law: a body whose work failed never looks complete (the connection is cut instead).

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use hyper::body::{Bytes, Frame, SizeHint};
use serde::Serialize;

use crate::proto::limits;

/// Why a body ends early: the connection is cut, so that nobody takes it for complete.
#[derive(Debug, thiserror::Error)]
#[error("the answer was cut: {0}")]
pub struct Cut(pub String);

type Work = Pin<Box<dyn Future<Output = Result<(), Cut>>>>;

/// The body of an answer.
pub struct Body(Content);

enum Content {
    Whole(Option<Bytes>),
    Streamed { work: Option<Work>, sink: Sink },
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Body")
    }
}

/// Where the work of a streamed body writes.
#[derive(Debug, Clone, Default)]
pub struct Sink(Rc<RefCell<Vec<u8>>>);

impl Sink {
    /// Writes one line of JSON.
    pub fn line<T: Serialize>(&self, value: &T) {
        let mut bytes = self.0.borrow_mut();
        serde_json::to_writer(&mut *bytes, value).expect("lines have only string keys");
        bytes.push(b'\n');
    }

    /// Writes a line as it is.
    pub fn text(&self, line: &str) {
        let mut bytes = self.0.borrow_mut();
        bytes.extend_from_slice(line.as_bytes());
        bytes.push(b'\n');
    }

    /// Writes bytes.
    pub fn bytes(&self, piece: &[u8]) {
        self.0.borrow_mut().extend_from_slice(piece);
    }

    /// Waits until the connection has taken what was written, but for one piece.
    pub async fn room(&self) {
        // The body polls the work again after each piece that the connection took: no waker.
        let full = || self.0.borrow().len() >= limits::BODY_PIECE_BYTES;
        poll_fn(|_| if full() { Poll::Pending } else { Poll::Ready(()) }).await;
    }

    fn take(&self) -> Option<Bytes> {
        let mut bytes = self.0.borrow_mut();
        (!bytes.is_empty()).then(|| std::mem::take(&mut *bytes).into())
    }
}

impl Body {
    /// No body.
    #[must_use]
    pub const fn empty() -> Self {
        Self(Content::Whole(None))
    }

    /// These bytes.
    #[must_use]
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        Self(Content::Whole(Some(bytes.into())))
    }

    /// What `work` writes into the sink that it is given.
    pub fn streamed<W>(work: impl FnOnce(Sink) -> W) -> Self
    where
        W: Future<Output = Result<(), Cut>> + 'static,
    {
        let sink = Sink::default();
        let work: Work = Box::pin(work(sink.clone()));
        Self(Content::Streamed { work: Some(work), sink })
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let (work, sink) = match &mut self.get_mut().0 {
            Content::Whole(bytes) => return Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Content::Streamed { work, sink } => (work, sink),
        };
        let Some(running) = work else {
            return Poll::Ready(sink.take().map(|bytes| Ok(Frame::data(bytes))));
        };
        match running.as_mut().poll(context) {
            Poll::Ready(Err(cut)) => {
                *work = None;
                sink.take();
                Poll::Ready(Some(Err(cut)))
            }
            Poll::Ready(Ok(())) => {
                *work = None;
                Poll::Ready(sink.take().map(|bytes| Ok(Frame::data(bytes))))
            }
            Poll::Pending => match sink.take() {
                Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                None => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.0, Content::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Content::Whole(None) => SizeHint::with_exact(0),
            Content::Whole(Some(bytes)) => SizeHint::with_exact(bytes.len() as u64),
            Content::Streamed { .. } => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use hyper::body::Body as _;

    use super::*;

    fn frames(mut body: Body) -> Vec<Result<usize, String>> {
        let mut context = Context::from_waker(Waker::noop());
        let mut found = vec![];
        while let Poll::Ready(Some(frame)) = Pin::new(&mut body).poll_frame(&mut context) {
            let frame = frame.map_err(|cut| cut.to_string());
            found.push(frame.map(|frame| frame.data_ref().map_or(0, Bytes::len)));
        }
        found
    }

    #[test]
    fn work_stops_while_its_pieces_are_not_taken() {
        let body = Body::streamed(|sink| async move {
            for _ in 0..3 {
                sink.room().await;
                sink.bytes(&vec![b'x'; limits::BODY_PIECE_BYTES]);
            }
            Ok(())
        });
        assert_eq!(frames(body), vec![Ok(limits::BODY_PIECE_BYTES); 3]);
    }

    #[test]
    fn work_that_fails_leaves_no_complete_body() {
        let body = Body::streamed(|sink| async move {
            sink.line(&1);
            Err(Cut("the store is gone".into()))
        });
        assert_eq!(frames(body), [Err("the answer was cut: the store is gone".to_owned())]);
    }
}
