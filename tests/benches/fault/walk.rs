//! A vCPU that walks through memory: what it meets depends on how its pages were placed.
//!
//! ```text
//!   host    places all by MOVE, or by COPY; makes a VM over it; KVM_RUN ──▶ port 16 ─┬▶ KVM_RUN ──▶ port 17
//!   guest                                      ring 3, long mode, identity-mapped    └─ reads a word of each page
//! ```
//!
//! No page faults to userspace any more: the time is KVM's for mapping what is there, huge pages at once where they are
//! huge. The guest runs in ring 3 from its first instruction on, as some KVMs emulate ring 0 one instruction at a time;
//! it reaches the ports by the I/O bitmap of its TSS. The sum of the words is compared.
//!
//! `unsafe` is here because KVM is given memory by its address.
#![expect(unsafe_code, reason = "KVM_SET_USER_MEMORY_REGION takes an address")]

use std::time::{Duration, Instant};

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use memory::{Backing, GuestRam};
use vm_memory::{Bytes, GuestAddress};

use crate::fill::{Chunks, placed};
use crate::options::Effort;
use crate::ram::{ANONYMOUS, HUGE, MIB, Memory, PAGES_PER_MIB, word_of};
use crate::report::Section;
use crate::row::{Promise, Ratio, Row, Unit};

/// The first huge page has the guest and its tables; it is not walked.
const OWN_MIB: u64 = 2;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const TSS: u64 = 0x5000;
const CODE: u64 = 0x9000;
/// From the first table to the TSS.
const TABLES_BYTES: usize = 0x5000;
/// Where the I/O bitmap is in the TSS, and how long both are: ports below 64 are allowed.
const IO_BITMAP: u16 = 104;
const TSS_BYTES: u16 = IO_BITMAP + 9;
const PRESENT_WRITABLE_USER: u64 = 7;
const LARGE_PAGE: u64 = 0x80;
const LARGE_PAGE_BYTES: u64 = 2 * MIB;
const STARTS_PORT: u16 = 16;
const ENDS_PORT: u16 = 17;
const CR0_PE_MP_ET_NE_WP_PG: u64 = 0x8001_0033;
const CR4_PAE_OSFXSR_OSXMMEXCPT: u64 = 0x620;
const EFER_LME_LMA: u64 = 0x500;
/// What the VMs of Intel's older processors need an address for; nothing else is there.
const KVM_TSS: usize = 0xfffb_d000;
const FASTER: Promise = Promise::AtLeast(10.0);

/// `rsi` is the first address, `rcx` how many pages. The sum of their first words is in `rax` at the end.
const WALK: [u8; 25] = [
    0xe6, 0x10, //                               out %al, $16
    0x31, 0xc0, //                               xor %eax, %eax
    0x48, 0x03, 0x06, //                   next: add (%rsi), %rax
    0x48, 0x81, 0xc6, 0x00, 0x10, 0x00, 0x00, // add $4096, %rsi
    0x48, 0xff, 0xc9, //                         dec %rcx
    0x75, 0xf1, //                               jnz next
    0xe6, 0x11, //                               out %al, $17
    0xeb, 0xfe, //                               jmp .
    0xcc, 0xcc, //                               never
];

/// The rows of this part.
pub(crate) fn measure(effort: &Effort) -> Section {
    let memory = Memory::full(OWN_MIB + effort.walk_mib);
    let (mut moved, mut copied) = (Vec::new(), Vec::new());
    for round in 0..=effort.rounds {
        let one =
            (walk(HUGE, &memory, effort, Chunks::Missing), walk(ANONYMOUS, &memory, effort, Chunks::Begun));
        // The first meets cold code.
        if round > 0 {
            moved.push(one.0.as_secs_f64() * 1e3);
            copied.push(one.1.as_secs_f64() * 1e3);
        }
    }
    let name = "placed through MOVE, a word of each page";
    let beside = ("placed by COPY of 4 KiB", copied);
    let row = Row::beside(name, Unit::Milliseconds, moved, beside, Ratio::TimesFaster).promised(FASTER);
    let title = format!("A vCPU that walks through {} MiB, {} rounds", effort.walk_mib, effort.rounds);
    Section { title, rows: vec![row] }
}

fn walk(backing: Backing, memory: &Memory, effort: &Effort, chunks: Chunks) -> Duration {
    let (engine, _) = placed(backing, OWN_MIB + effort.walk_mib, memory, chunks);
    let ram = engine.ram();
    let pages = effort.walk_mib * PAGES_PER_MIB;
    write_tables(ram);
    let first = OWN_MIB * PAGES_PER_MIB;
    let expected = (first..first + pages).map(word_of).fold(0, u64::wrapping_add);

    let kvm = Kvm::new().expect("/dev/kvm can be opened, as the host was examined");
    let vm = kvm.create_vm().expect("KVM gives a VM");
    vm.set_tss_address(KVM_TSS).expect("the address is free");
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: ram.size_bytes(),
        userspace_addr: ram.base_address(),
    };
    // SAFETY: the mapping is the RAM's, which the engine keeps for longer than the VM is there.
    unsafe { vm.set_user_memory_region(region) }.expect("KVM takes the memory");
    let mut vcpu = vm.create_vcpu(0).expect("KVM gives a vCPU");
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).expect("KVM tells its CPUID");
    vcpu.set_cpuid2(&cpuid).expect("KVM takes what it told");
    set_registers(&vcpu, pages);
    run_to(&mut vcpu, STARTS_PORT);
    let start = Instant::now();
    run_to(&mut vcpu, ENDS_PORT);
    let took = start.elapsed();
    let sum = vcpu.get_regs().expect("a vCPU has registers").rax;
    assert_eq!(sum, expected, "the guest has not seen what the file has");
    took
}

fn run_to(vcpu: &mut VcpuFd, port: u16) {
    match vcpu.run() {
        Ok(VcpuExit::IoOut(actual, _)) => assert_eq!(actual, port, "the guest does one after the other"),
        other => panic!("the guest does nothing but write to ports: {other:?}"),
    }
}

fn write_tables(ram: &GuestRam) {
    let write = |address, value: u64| {
        ram.write_obj(value, GuestAddress(address)).expect("the tables are in the RAM");
    };
    // What the saved memory has there is none of the guest's.
    let zeros = [0; TABLES_BYTES];
    ram.write_slice(&zeros, GuestAddress(PML4)).expect("the tables are in the RAM");
    write(PML4, PDPT | PRESENT_WRITABLE_USER);
    write(PDPT, DIRECTORY | PRESENT_WRITABLE_USER);
    for entry in 0..512 {
        write(DIRECTORY + entry * 8, (entry * LARGE_PAGE_BYTES) | LARGE_PAGE | PRESENT_WRITABLE_USER);
    }
    ram.write_obj(IO_BITMAP, GuestAddress(TSS + 102)).expect("the TSS is in the RAM");
    ram.write_obj(0xff_u8, GuestAddress(TSS + u64::from(TSS_BYTES) - 1)).expect("the TSS is in the RAM");
    ram.write_slice(&WALK, GuestAddress(CODE)).expect("the code is in the RAM");
}

fn set_registers(vcpu: &VcpuFd, pages: u64) {
    let user = |selector, type_, l| kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 3,
        s: 1,
        l,
        g: 1,
        db: 1 - l,
        ..kvm_segment::default()
    };
    let data = user(0x33, 3, 0);
    let busy_tss = kvm_segment {
        base: TSS,
        limit: u32::from(TSS_BYTES) - 1,
        selector: 0x38,
        type_: 11,
        present: 1,
        ..kvm_segment::default()
    };
    let sregs = kvm_sregs {
        cs: user(0x2b, 11, 1),
        ss: data,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        tr: busy_tss,
        ldt: kvm_segment { unusable: 1, ..kvm_segment::default() },
        gdt: kvm_dtable::default(),
        idt: kvm_dtable::default(),
        cr0: CR0_PE_MP_ET_NE_WP_PG,
        cr3: PML4,
        cr4: CR4_PAE_OSFXSR_OSXMMEXCPT,
        efer: EFER_LME_LMA,
        apic_base: vcpu.get_sregs().expect("a vCPU has registers").apic_base,
        ..kvm_sregs::default()
    };
    vcpu.set_sregs(&sregs).expect("KVM takes a guest in ring 3");
    let regs = kvm_regs { rip: CODE, rsi: OWN_MIB * MIB, rcx: pages, rflags: 2, ..kvm_regs::default() };
    vcpu.set_regs(&regs).expect("KVM takes registers");
}
