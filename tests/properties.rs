//! Laws as properties.
#[path = "properties/array.rs"]
mod array;
#[path = "properties/clock.rs"]
mod clock;
#[path = "properties/fact.rs"]
mod fact;
#[path = "properties/fold.rs"]
mod fold;
#[path = "properties/history.rs"]
mod history;
#[path = "properties/log.rs"]
mod log;
#[path = "properties/schedule.rs"]
mod schedule;
#[path = "properties/sync.rs"]
mod sync;
#[path = "properties/wire.rs"]
mod wire;
