//! x86_64: how a guest of this architecture is laid out, described and started.
//!
//! | room | what it is for |
//! |---|---|
//! | [`layout`] | guest physical addresses, ports and interrupt lines |
//! | [`platform`] | what KVM emulates for the whole machine, and the legacy devices |
//! | [`payload`] | the kernel's formats, and the boot protocol each of them wants |
//! | [`acpi`] | the tables that tell a kernel of processors and devices |
//! | [`processor`] | CPUID, model-specific registers and start values of each vCPU |
//! | [`state`] | everything KVM holds of a VM, saved and restored |

pub mod acpi;
mod cpuid;
pub mod layout;
mod msr;
pub mod payload;
pub mod platform;
pub mod processor;
mod segments;
pub mod state;

pub use acpi::VirtioSlot;
pub use payload::{EntryPoint, Payload, PayloadError};
pub use processor::{Processor, ProcessorError, ProcessorTopology};
