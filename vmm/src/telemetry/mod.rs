//! What the program says of itself: a log for people, metrics for programs.

mod budget;
pub mod log;
pub mod metrics;
mod sink;

pub(crate) use sink::open as open_output;
