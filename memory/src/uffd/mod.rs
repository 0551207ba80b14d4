//! Userfaultfd: what this host's kernel offers.

mod probe;

pub use probe::{Feature, Opened, Probe, ProbeError, probe};
