//! Guest memory that a vCPU cannot have, as KVM says it.
//!
//! | KVM says | of |
//! |---|---|
//! | SIGBUS, then `EINTR` from `KVM_RUN` | a page that is poisoned, which the guest touched |
//! | `EFAULT`, `EHWPOISON`, or `KVM_EXIT_MEMORY_FAULT` | a page that could not be mapped for another reason |
//! | `KVM_EXIT_MMIO` at an address that is RAM | a page that an instruction touched which KVM emulates: KVM takes what it cannot read or write for a device |
//!
//! In each case the guest has got nothing: its access has not happened.

use memory::{GuestRam, PageIndex};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::machine::memory::guest_address;
use crate::signals::BusError;

/// What a bus error was about.
pub(super) fn by_signal(index: u8, error: BusError, ram: &GuestRam) -> String {
    let offset = error.address.checked_sub(ram.base_address());
    let address = offset.and_then(|offset| guest_address(ram, PageIndex::at_offset(offset)));
    match address {
        Some(GuestAddress(address)) => cause(index, address, error.code),
        None => {
            format!("vCPU {index} met a memory error at host address {:#x} ({})", error.address, error.code)
        }
    }
}

/// What an error of `KVM_RUN` says of memory, if it does.
pub(super) fn by_errno(index: u8, errno: i32) -> Option<String> {
    let name = match errno {
        libc::EFAULT => "EFAULT",
        libc::EHWPOISON => "EHWPOISON",
        _ => return None,
    };
    Some(format!("vCPU {index} met a memory error at an address that KVM does not tell ({name})"))
}

/// What an access to registers is where there are none, but RAM.
pub(super) fn by_mmio(index: u8, address: u64, ram: &GuestRam) -> Option<String> {
    ram.address_in_range(GuestAddress(address)).then(|| cause(index, address, "KVM_EXIT_MMIO"))
}

/// A memory error at a guest's address.
pub(super) fn cause(index: u8, address: u64, said: &str) -> String {
    format!("vCPU {index} met a memory error at guest address {address:#x} ({said})")
}

#[cfg(test)]
mod tests {
    use memory::{Backing, RamRange};

    use super::*;

    #[test]
    fn the_page_is_named_as_the_guest_knows_it() {
        let range = |gpa, size_bytes| RamRange { gpa: GuestAddress(gpa), size_bytes };
        let ranges = [range(0, 2 << 20), range(1 << 32, 2 << 20)];
        let ram = GuestRam::new(&ranges, Backing::Anonymous { transparent_huge_pages: false }).unwrap();
        let at = |address| by_signal(1, BusError { address, code: "BUS_MCEERR_AR" }, &ram);
        let told = at(ram.base_address() + (2 << 20) + 0x3000);
        assert_eq!(told, "vCPU 1 met a memory error at guest address 0x100003000 (BUS_MCEERR_AR)");
        assert!(at(ram.base_address() - 1).contains("host address"));
        assert!(by_mmio(0, 0x1f_ffff, &ram).is_some());
        assert!(by_mmio(0, 0x20_0000, &ram).is_none(), "a hole is a device, or nothing");
        assert!(by_errno(0, libc::EINVAL).is_none());
    }
}
