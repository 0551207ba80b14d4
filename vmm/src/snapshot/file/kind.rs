//! What a section is of.

use std::fmt;

/// The kind of a section. Numbers are never used again for something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind(pub u32);

impl Kind {
    /// Who saved it, and when.
    pub const META: Self = Self(1);
    /// What the machine was configured as.
    pub const CONFIG: Self = Self(2);
    /// The host it ran on, as far as that matters.
    pub const HOST: Self = Self(3);
    /// What KVM keeps for the whole machine: interrupt controllers, timer, clock.
    pub const PLATFORM: Self = Self(4);
    /// A vCPU; the instance is its index.
    pub const VCPU: Self = Self(5);
    /// The memory's regions, and the checksums of its file.
    pub const MEMORY: Self = Self(6);
    /// The serial port.
    pub const DEVICE_SERIAL: Self = Self(0x100);
    /// The keyboard controller.
    pub const DEVICE_I8042: Self = Self(0x101);
    /// The clock.
    pub const DEVICE_RTC: Self = Self(0x102);
    /// What tells a guest that it is a clone.
    pub const DEVICE_GENERATION: Self = Self(0x103);
    /// A block device and its transport; the instance is its place among the drives.
    pub const DEVICE_BLOCK: Self = Self(0x110);
    /// The entropy device and its transport.
    pub const DEVICE_ENTROPY: Self = Self(0x111);

    /// All kinds that this program knows, with their names.
    const NAMES: [(Self, &str); 12] = [
        (Self::META, "meta"),
        (Self::CONFIG, "config"),
        (Self::HOST, "host"),
        (Self::PLATFORM, "platform"),
        (Self::VCPU, "vcpu"),
        (Self::MEMORY, "memory"),
        (Self::DEVICE_SERIAL, "serial"),
        (Self::DEVICE_I8042, "i8042"),
        (Self::DEVICE_RTC, "rtc"),
        (Self::DEVICE_GENERATION, "generation"),
        (Self::DEVICE_BLOCK, "block"),
        (Self::DEVICE_ENTROPY, "entropy"),
    ];

    /// Its name, if this program knows it.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        Self::NAMES.iter().find(|(kind, _)| *kind == self).map(|(_, name)| *name)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "{:#x}", self.0),
        }
    }
}

/// A section's name: a file has each at most once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SectionName {
    /// What it is of.
    pub kind: Kind,
    /// Of which one of them: a vCPU's index, a device's place among those of its kind.
    pub instance: u16,
}

impl fmt::Display for SectionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.instance)
    }
}
