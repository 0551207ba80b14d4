//! Flat segments for the start of a guest: a kernel replaces them with its own within its first instructions.
//!
//! The 64-bit boot protocol names the selectors: `__BOOT_CS` is 0x10, `__BOOT_DS` 0x18 (Documentation/arch/x86/boot.rst).

use kvm_bindings::{kvm_segment, kvm_sregs};

/// A descriptor of the boot GDT. Access byte and flags are those of the Intel SDM, volume 3, section 3.4.5.
#[derive(Debug, Clone, Copy)]
struct Descriptor {
    /// Bits 8..16 of the high word: present, DPL, system, type.
    access: u8,
    /// Bits 20..24 of the high word: granularity, default size, long mode.
    flags: u8,
    limit: u32,
}

impl Descriptor {
    /// Code, executable and readable; 64-bit.
    const CODE64: Self = Self { access: 0x9b, flags: 0xa, limit: 0xf_ffff };
    /// Code, executable and readable; 32-bit.
    const CODE32: Self = Self { access: 0x9b, flags: 0xc, limit: 0xf_ffff };
    /// Data, writable.
    const DATA: Self = Self { access: 0x93, flags: 0xc, limit: 0xf_ffff };
    /// A busy task state segment, which entering a guest requires.
    const TASK: Self = Self { access: 0x8b, flags: 0x0, limit: 0x67 };

    /// The descriptor as it stands in a GDT, with base 0.
    fn encode(self) -> u64 {
        u64::from(self.limit & 0xffff)
            | u64::from(self.access) << 40
            | u64::from(self.limit >> 16 & 0xf) << 48
            | u64::from(self.flags) << 52
    }

    /// The descriptor as KVM loads it into a register, at `index` of the GDT.
    fn segment(self, index: u16) -> kvm_segment {
        let granular = self.flags & 0x8 != 0;
        kvm_segment {
            base: 0,
            limit: if granular { self.limit << 12 | 0xfff } else { self.limit },
            selector: index * 8,
            type_: self.access & 0xf,
            present: self.access >> 7 & 1,
            dpl: self.access >> 5 & 3,
            db: self.flags >> 2 & 1,
            s: self.access >> 4 & 1,
            l: self.flags >> 1 & 1,
            g: self.flags >> 3 & 1,
            ..kvm_segment::default()
        }
    }
}

/// Which mode a vCPU starts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// 64-bit, paged.
    Long,
    /// 32-bit protected, unpaged.
    Protected,
}

/// Places in the GDT.
const CODE_INDEX: u16 = 2;
const DATA_INDEX: u16 = 3;
const TASK_INDEX: u16 = 4;

/// The GDT for `mode`, as it stands in guest memory: null, nothing, code, data, task state.
pub(super) fn gdt(mode: Mode) -> [u64; 5] {
    [0, 0, code(mode).encode(), Descriptor::DATA.encode(), Descriptor::TASK.encode()]
}

/// Loads the segment registers with what [`gdt`] holds.
pub(super) fn load(sregs: &mut kvm_sregs, mode: Mode) {
    let data = Descriptor::DATA.segment(DATA_INDEX);
    sregs.cs = code(mode).segment(CODE_INDEX);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = Descriptor::TASK.segment(TASK_INDEX);
}

fn code(mode: Mode) -> Descriptor {
    match mode {
        Mode::Long => Descriptor::CODE64,
        Mode::Protected => Descriptor::CODE32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_every_loader_uses() {
        let long = gdt(Mode::Long);
        assert_eq!(long[2..], [0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067]);
        assert_eq!(gdt(Mode::Protected)[2], 0x00cf_9b00_0000_ffff);
        let mut sregs = kvm_sregs::default();
        load(&mut sregs, Mode::Long);
        assert_eq!((sregs.cs.selector, sregs.ds.selector), (0x10, 0x18));
        assert_eq!((sregs.cs.l, sregs.cs.db, sregs.cs.limit), (1, 0, 0xffff_ffff));
        assert_eq!((sregs.tr.limit, sregs.tr.type_, sregs.tr.s), (0x67, 0xb, 0));
    }
}
