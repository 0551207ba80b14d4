//! The bus: which device answers at an address.
//!
//! One [`Bus`] serves port I/O and another one MMIO. It is filled while a VM is built, then shared by all vCPUs
//! without a lock of its own; each device has one, held for one register access.

use std::sync::{Arc, Mutex};

use crate::sync::lock;

/// A device with registers that a vCPU reads and writes.
pub trait BusDevice: Send {
    /// Fills `data` from the registers at `offset` bytes from the device's base.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Writes `data` to the registers at `offset` bytes from the device's base.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// Why a device could not be put on a bus.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BusError {
    /// The range has no bytes, or runs past the end of the address space.
    #[error("a device cannot have {len:#x} bytes at {base:#x}")]
    Range {
        /// The first address.
        base: u64,
        /// The number of bytes.
        len: u64,
    },
    /// Some of the addresses belong to another device.
    #[error("{len:#x} bytes at {base:#x} overlap the device at {other_base:#x}")]
    Overlap {
        /// The first address.
        base: u64,
        /// The number of bytes.
        len: u64,
        /// The first address of the device that is there.
        other_base: u64,
    },
}

struct Slot {
    base: u64,
    len: u64,
    device: Arc<Mutex<dyn BusDevice>>,
}

impl Slot {
    fn last(&self) -> u64 {
        self.base + (self.len - 1)
    }
}

/// Devices by address, in ascending order and without overlaps.
#[derive(Default)]
pub struct Bus {
    slots: Vec<Slot>,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.slots.iter().map(|slot| slot.base..=slot.last())).finish()
    }
}

impl Bus {
    /// A bus with nobody on it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `device` at the `len` addresses from `base`.
    ///
    /// # Errors
    ///
    /// [`BusError`] when the range is empty, wraps, or is partly taken. The bus is then as it was.
    pub fn insert(&mut self, base: u64, len: u64, device: Arc<Mutex<dyn BusDevice>>) -> Result<(), BusError> {
        let last = len.checked_sub(1).and_then(|more| base.checked_add(more));
        let last = last.ok_or(BusError::Range { base, len })?;
        let place = self.slots.partition_point(|slot| slot.base < base);
        let before = place.checked_sub(1).and_then(|index| self.slots.get(index));
        let after = self.slots.get(place);
        let overlapped = before.filter(|slot| slot.last() >= base).or(after.filter(|slot| slot.base <= last));
        if let Some(slot) = overlapped {
            return Err(BusError::Overlap { base, len, other_base: slot.base });
        }
        self.slots.insert(place, Slot { base, len, device });
        Ok(())
    }

    /// Reads from whoever is at `addr`. `false` means nobody: `data` is then untouched.
    #[must_use]
    pub fn read(&self, addr: u64, data: &mut [u8]) -> bool {
        let found = self.find(addr, data.len());
        found.map(|(device, offset)| lock(device).read(offset, data)).is_some()
    }

    /// Writes to whoever is at `addr`. `false` means nobody.
    #[must_use]
    pub fn write(&self, addr: u64, data: &[u8]) -> bool {
        let found = self.find(addr, data.len());
        found.map(|(device, offset)| lock(device).write(offset, data)).is_some()
    }

    /// The device that has all of `len` bytes at `addr`, and the offset into it. An access that straddles the end
    /// of a device belongs to nobody.
    fn find(&self, addr: u64, len: usize) -> Option<(&Mutex<dyn BusDevice>, u64)> {
        let index = self.slots.partition_point(|slot| slot.base <= addr).checked_sub(1)?;
        let slot = self.slots.get(index)?;
        let offset = addr - slot.base;
        let room = slot.len.checked_sub(offset)?;
        let fits = len > 0 && u64::try_from(len).is_ok_and(|len| len <= room);
        fits.then(|| (&*slot.device, offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Recorder(Vec<(u64, Vec<u8>)>);

    impl BusDevice for Recorder {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset).unwrap());
        }

        fn write(&mut self, offset: u64, data: &[u8]) {
            self.0.push((offset, data.to_vec()));
        }
    }

    fn device() -> Arc<Mutex<Recorder>> {
        Arc::default()
    }

    #[test]
    fn accesses_reach_the_device_with_their_offset() {
        let (low, high) = (device(), device());
        let mut bus = Bus::new();
        bus.insert(0x2000, 0x1000, high.clone()).unwrap();
        bus.insert(0x1000, 0x1000, low.clone()).unwrap();
        assert!(bus.write(0x1ffc, &[1, 2, 3, 4]));
        assert!(bus.write(0x2000, &[5]));
        assert_eq!(low.lock().unwrap().0, [(0xffc, vec![1, 2, 3, 4])]);
        assert_eq!(high.lock().unwrap().0, [(0, vec![5])]);
        let mut data = [0; 2];
        assert!(bus.read(0x2011, &mut data));
        assert_eq!(data, [0x11; 2]);
    }

    #[test]
    fn nobody_answers_outside_or_across_an_end() {
        let mut bus = Bus::new();
        bus.insert(0x1000, 8, device()).unwrap();
        bus.insert(0x1008, 8, device()).unwrap();
        let mut data = [7; 4];
        for addr in [0, 0xfff, 0x1006, 0x100d, 0x1010, u64::MAX] {
            assert!(!bus.read(addr, &mut data), "{addr:#x}");
            assert!(!bus.write(addr, &data), "{addr:#x}");
        }
        assert_eq!(data, [7; 4]);
        assert!(!bus.read(0x1000, &mut []), "an access has at least one byte");
    }

    #[test]
    fn overlaps_and_empty_ranges_are_refused() {
        let mut bus = Bus::new();
        bus.insert(0x1000, 0x100, device()).unwrap();
        for (base, len) in [(0x1000, 1), (0x10ff, 1), (0xfff, 2), (0xf00, 0x1000), (0x1080, 8)] {
            let refused = bus.insert(base, len, device());
            assert_eq!(refused, Err(BusError::Overlap { base, len, other_base: 0x1000 }));
        }
        assert_eq!(bus.insert(5, 0, device()), Err(BusError::Range { base: 5, len: 0 }));
        assert!(bus.insert(u64::MAX, 2, device()).is_err());
        bus.insert(0x1100, 1, device()).unwrap();
        bus.insert(0xfff, 1, device()).unwrap();
        bus.insert(u64::MAX, 1, device()).unwrap();
        assert!(bus.write(u64::MAX, &[0]));
    }
}
