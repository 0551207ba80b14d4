//! The machine: what was configured, and the VM that runs.
//!
//! ```text
//!   API thread ──Request──▶ ┌────────┐  Resources ──start──▶ Vm ──▶ vCPU threads
//!   vCPUs, devices ─Event─▶ │ driver │                       └───▶ device loop
//!   signals ────────Quit──▶ └────────┘  the only writer of the state
//! ```
//!
//! | room | what it is for |
//! |---|---|
//! | [`state`] | the states of a VM and what each admits: pure |
//! | [`message`] | what the driver is told, and by whom |
//! | [`resources`] | what is configured before a start |
//! | [`build`] | from resources to a VM |
//! | [`restore`] | from a snapshot to a VM |
//! | [`saving`] | from a VM to a snapshot |
//! | [`memory`] | how its RAM comes about, and who serves it |
//! | [`vm`] | a VM that was built: pause, resume, stop |
//! | [`devices`] | the VM's devices, made and connected |
//! | [`driver`] | the loop that brings all of it together |

pub mod build;
mod device_config;
pub mod devices;
pub mod driver;
pub mod memory;
pub mod message;
pub mod resources;
pub mod restore;
mod saving;
pub mod state;
pub mod vm;
