//! The thin shell of IO: each file is one contact with the world.

pub mod blobs;
pub mod client;
pub mod continuity;
pub mod drive;
pub mod endpoint;
pub mod entropy;
pub mod executor;
pub mod measure;
pub mod process;
pub mod ready;
pub mod rundir;
pub mod search;
pub mod server;
pub mod session;
pub mod signals;
pub mod spawner;
pub mod spool;
pub mod store;
