//! Captures on the kernel's real userfaultfd, with threads that write in place of vCPUs.

mod exact;
mod failing;
mod guest;
mod present;
mod waiting;
