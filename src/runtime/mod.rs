//! The thin shell of IO: each file is one contact with the world.

pub mod activation;
pub mod alone;
pub mod attempt;
pub mod blobs;
pub mod client;
pub mod continuity;
pub mod drive;
pub mod endpoint;
pub mod entropy;
pub mod executor;
pub mod isolation;
pub mod measure;
pub mod metrics;
pub mod process;
pub mod ready;
pub mod rooms;
pub mod rundir;
pub mod search;
pub mod server;
pub mod session;
pub mod signals;
pub mod spawner;
pub mod spool;
pub mod store;
pub mod transfer;
pub mod wasm;
