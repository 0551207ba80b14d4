//! The legacy devices a PC's kernel expects.
//!
//! | device | where a PC has it |
//! |---|---|
//! | [`Serial`] | 16550 UART, I/O ports 0x3f8–0x3ff, IRQ 4 |
//! | [`I8042`] | keyboard controller, I/O ports 0x60 and 0x64 ([`I8042`] covers 0x60–0x64), IRQ 1 |
//! | [`Rtc`] | MC146818 clock and its RAM, I/O ports 0x70–0x71 |
//! | [`PowerControl`] | ACPI sleep and reset registers of a reduced-hardware platform, I/O ports of the VMM's choice |
//! | [`BootTimer`] | Firecracker's boot timer, MMIO |
//!
//! Serial port, keyboard controller and clock have saved types of their own. The power registers have no state, and
//! the boot timer none that a guest can read.

mod boot_timer;
pub mod i8042;
mod power;
pub mod rtc;
pub mod serial;

pub use boot_timer::BootTimer;
pub use i8042::{I8042, I8042Error, I8042RestoreError, I8042State};
pub use power::{PowerCallback, PowerControl, PowerEvent};
pub use rtc::{Rtc, RtcRestoreError, RtcState};
pub use serial::{Serial, SerialError, SerialInput, SerialState};
