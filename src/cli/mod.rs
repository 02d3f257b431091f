//! What the commands share, and one file or folder for each command.

pub mod args;
pub mod broker;
pub mod check;
pub mod clock;
pub mod exec;
pub mod exit;
pub mod manual;
pub mod output;
pub mod report;
pub mod submit;
pub mod sync;
