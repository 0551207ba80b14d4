//! The virtual machine monitor: KVM, vCPUs, boot, and the machine that holds them together.
//!
//! | room | what it is for |
//! |---|---|
//! | [`machine`] | the machine: its state, its one driver, how it is built and ended |
//! | [`vcpu`] | a vCPU's thread, and taking it out of the guest |
//! | [`arch`] | what differs between processor architectures |
//! | [`boot`] | files and command line a guest is started from |
//! | [`kvm`] | the host's KVM |
//! | [`service`] | from the API's thread to the driver |
//! | [`snapshot`] | a machine as files |
//! | [`process`] | the process as a VMM: sockets, signals, exit codes |
//! | [`console`] | `faultless run`: a machine on this terminal |
//! | [`doctor`] | `faultless doctor`: what this host can do |
//! | [`telemetry`] | log and metrics |

pub mod arch;
pub mod boot;
pub mod console;
pub mod doctor;
mod error;
mod front;
pub mod kvm;
pub mod machine;
pub mod process;
pub mod service;
mod signals;
pub mod snapshot;
pub mod telemetry;
mod terminal;
pub mod vcpu;
