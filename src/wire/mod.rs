//! The public contract: JSON shapes of the HTTP interface and of the command lines.
//!
//! Pure: shapes and framing only, no sockets. Members are only ever added; readers ignore members
//! that they do not know. Every line has a `type`.

pub mod api;
pub mod lines;
pub mod members;
pub mod problem;
