//! A guest of a few instructions in real mode, so that it runs on every KVM, and its machine.
//!
//! Each vCPU counts in EBX, tells each count to a port, adds up what the port and a register in memory give it, in EBP
//! and ESI, and copies XMM0, all without end. The first has the interval timer's interrupts, the second those of its
//! local APIC.

use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};

use devices::bus::{Bus, BusDevice};
use kvm_bindings::{
    KVM_MP_STATE_RUNNABLE, Msrs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_segment,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use memory::{Backing, GuestRam, RamRange};
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};

use super::super::{ClockPolicy, Extent, PlatformState, VcpuState, xsave};
use crate::arch::host::{Processor, ProcessorTopology, platform};
use crate::machine::message::{Message, Notifier};
use crate::machine::vm::map_ram;
use crate::vcpu::{Buses, Vcpu, VcpuMetrics, Vcpus, Ways, install_kick_handler};

pub(super) const VCPUS: u8 = 3;
const RAM_BYTES: usize = 2 << 20;

/// Where the loop's instructions are.
pub(super) const LOOP: u64 = 0x8000;
pub(super) const AFTER_INC: u64 = LOOP + 2;
pub(super) const AFTER_OUT: u64 = LOOP + 12;
pub(super) const AFTER_IN: u64 = LOOP + 14;
pub(super) const AFTER_LOAD: u64 = LOOP + 22;
const LOOP_CODE: [u8; 37] = [
    0x66, 0x43, // inc ebx
    0x66, 0x89, 0x1e, 0x00, 0x00, // mov [0], ebx
    0x66, 0x89, 0xd8, // mov eax, ebx
    0x66, 0xef, // out dx, eax
    0x66, 0xed, // in eax, dx
    0x66, 0x01, 0xc5, // add ebp, eax
    0x64, 0x66, 0xa1, 0x00, 0x00, // mov eax, fs:[0]
    0x66, 0x01, 0xc6, // add esi, eax
    0x0f, 0x10, 0x06, 0x10, 0x00, // movups xmm0, [0x10]
    0x0f, 0x11, 0x06, 0x20, 0x00, // movups [0x20], xmm0
    0xeb, 0xdb, // jmp to the first
];
/// Sets up the interrupt controller, vectors from 8, and the interval timer, 1 kHz; then goes to the loop.
const PRELUDE: u64 = 0x8200;
const PRELUDE_CODE: [u8; 35] = [
    0xb0, 0x11, 0xe6, 0x20, 0xb0, 0x08, 0xe6, 0x21, 0xb0, 0x04, 0xe6, 0x21, 0xb0, 0x01, 0xe6,
    0x21, // PIC
    0xb0, 0xfe, 0xe6, 0x21, // its first line only
    0xb0, 0x34, 0xe6, 0x43, 0xb0, 0xa9, 0xe6, 0x40, 0xb0, 0x04, 0xe6, 0x40, // PIT
    0xe9, 0xdd, 0xfd, // jmp to the loop
];
/// inc dword [8]; push ax; mov al, 0x20; out 0x20, al; pop ax; iret
const PIT_HANDLER: u64 = 0x9100;
const PIT_HANDLER_CODE: [u8; 12] = [0x66, 0xff, 0x06, 0x08, 0x00, 0x50, 0xb0, 0x20, 0xe6, 0x20, 0x58, 0xcf];
/// inc dword [4]; mov dword es:[0xb0], 0; iret
const APIC_HANDLER: u64 = 0x9000;
const APIC_HANDLER_CODE: [u8; 16] =
    [0x66, 0xff, 0x06, 0x04, 0x00, 0x26, 0x66, 0xc7, 0x06, 0xb0, 0x00, 0x00, 0x00, 0x00, 0x00, 0xcf];
const PIT_VECTOR: u64 = 8;
const APIC_VECTOR: u32 = 0x40;
const APIC_BASE: u64 = 0xfee0_0000;
const FIRST_PORT: u64 = 0x500;
const FIRST_REGISTER: u64 = 0xd000_0000;

/// What one vCPU talks to: it outlives the machines, as a device's state would.
#[derive(Debug, Default)]
pub(super) struct Peer {
    pub(super) told: u32,
    pub(super) out_of_order: u32,
    pub(super) given: u32,
}

impl BusDevice for Peer {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        self.given += 1;
        data.copy_from_slice(&self.given.to_le_bytes());
    }

    fn write(&mut self, _: u64, data: &[u8]) {
        let value = u32::from_le_bytes(data.try_into().unwrap());
        self.out_of_order += u32::from(value != self.told + 1);
        self.told = value;
    }
}

/// What all vCPUs talk to: at ports, and in memory.
pub(super) struct Peers {
    pub(super) ports: Vec<Arc<Mutex<Peer>>>,
    pub(super) registers: Vec<Arc<Mutex<Peer>>>,
    port_bus: Arc<Bus>,
    mmio_bus: Arc<Bus>,
}

impl Peers {
    pub(super) fn new() -> Self {
        let make = || -> Vec<Arc<Mutex<Peer>>> { (0..VCPUS).map(|_| Arc::default()).collect() };
        let (ports, registers) = (make(), make());
        let bus = |peers: &[Arc<Mutex<Peer>>], first: u64, stride: u64| {
            let mut bus = Bus::new();
            for (peer, index) in peers.iter().zip(0..) {
                let device: Arc<Mutex<dyn BusDevice>> = peer.clone();
                bus.insert(first + index * stride, 4, device).unwrap();
            }
            Arc::new(bus)
        };
        let (port_bus, mmio_bus) = (bus(&ports, FIRST_PORT, 0x10), bus(&registers, FIRST_REGISTER, 0x1000));
        Self { ports, registers, port_bus, mmio_bus }
    }
}

pub(super) fn look<T>(peer: &Mutex<Peer>, at: impl FnOnce(&Peer) -> T) -> T {
    at(&peer.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A whole machine, as a snapshot would have it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Saved {
    pub(super) vcpus: Vec<VcpuState>,
    pub(super) platform: PlatformState,
    pub(super) ram: Vec<u8>,
}

pub(super) struct Machine {
    pub(super) vcpus: Vcpus,
    pub(super) events: Receiver<Message>,
    pub(super) extent: Arc<Extent>,
    pub(super) vm: VmFd,
    pub(super) ram: GuestRam,
    /// The buses' word for a guest that has ended.
    pub(super) ended: Arc<AtomicBool>,
}

impl Machine {
    /// One whose guest is at its beginning.
    pub(super) fn new(kvm: &Kvm, peers: &Peers) -> Self {
        let topology = ProcessorTopology { vcpu_count: VCPUS, smt: false };
        let processor = Processor::new(kvm, topology).unwrap();
        Self::build(kvm, peers, load, |vcpu, extent, index| {
            processor.identify(vcpu, index).unwrap();
            set_up(vcpu, extent, index);
        })
    }

    /// One that goes on where another was.
    pub(super) fn restored(kvm: &Kvm, peers: &Peers, saved: &Saved) -> Self {
        let load = |ram: &GuestRam| ram.write_slice(&saved.ram, GuestAddress(0)).unwrap();
        let machine = Self::build(kvm, peers, load, |vcpu, extent, index| {
            saved.vcpus[usize::from(index)].restore(vcpu, extent).unwrap();
        });
        saved.platform.restore(&machine.vm, ClockPolicy::Continue).unwrap();
        machine
    }

    fn build(
        kvm: &Kvm,
        peers: &Peers,
        load: impl FnOnce(&GuestRam),
        set_up: impl Fn(&VcpuFd, &Extent, u8),
    ) -> Self {
        install_kick_handler().unwrap();
        let range = RamRange { gpa: GuestAddress(0), size_bytes: RAM_BYTES as u64 };
        let ram = GuestRam::new(&[range], Backing::Anonymous { transparent_huge_pages: false }).unwrap();
        load(&ram);
        let vm = kvm.create_vm().unwrap();
        map_ram(&vm, &ram).unwrap();
        platform::create(&vm).unwrap();
        let extent = Arc::new(Extent::of(kvm, &vm).unwrap());
        let (sender, events) = channel();
        let ended = Arc::<AtomicBool>::default();
        let (ports, mmio) = (Arc::clone(&peers.port_bus), Arc::clone(&peers.mmio_bus));
        let buses = Buses { ports, mmio, ended: Arc::clone(&ended) };
        let vcpus = (0..VCPUS).map(|index| {
            let vcpu = vm.create_vcpu(index.into()).unwrap();
            set_up(&vcpu, &extent, index);
            let ways = Ways { buses: buses.clone(), ram: ram.clone() };
            Vcpu::spawn(index, vcpu, ways, VcpuMetrics::default(), Notifier::new(sender.clone())).unwrap()
        });
        Self { vcpus: Vcpus(vcpus.collect()), events, extent, vm, ram, ended }
    }

    /// All of it; its vCPUs are paused.
    pub(super) fn save(&mut self) -> Saved {
        let vcpus = self.vcpus.save(&self.extent).unwrap();
        let platform = PlatformState::save(&self.vm).unwrap();
        let mut ram = vec![0; RAM_BYTES];
        self.ram.read_slice(&mut ram, GuestAddress(0)).unwrap();
        Saved { vcpus, platform, ram }
    }
}

/// Where vCPU `index` has its data; its stack grows down from the end of that.
pub(super) fn data_base(index: usize) -> u64 {
    0x1_0000 + index as u64 * 0x1000
}

/// Where XMM registers are in an XSAVE area.
pub(super) const XMM_PLACE: usize = 160;

/// What XMM register `register` of vCPU `index` holds.
pub(super) fn pattern(index: u8, register: u8) -> [u8; 16] {
    std::array::from_fn(|byte| 1 + index * 64 + register * 4 + byte.to_le_bytes()[0] % 4)
}

fn load(ram: &GuestRam) {
    let write = |bytes: &[u8], address| ram.write_slice(bytes, GuestAddress(address)).unwrap();
    for vector in [PIT_VECTOR, APIC_VECTOR.into()] {
        let handler = if vector == PIT_VECTOR { PIT_HANDLER } else { APIC_HANDLER };
        write(&u32::try_from(handler).unwrap().to_le_bytes(), vector * 4);
    }
    write(&LOOP_CODE, LOOP);
    write(&PRELUDE_CODE, PRELUDE);
    write(&PIT_HANDLER_CODE, PIT_HANDLER);
    write(&APIC_HANDLER_CODE, APIC_HANDLER);
    (0..VCPUS).for_each(|index| write(&pattern(index, 0), data_base(index.into()) + 0x10));
}

fn set_up(vcpu: &VcpuFd, extent: &Extent, index: u8) {
    let rip = if index == 0 { PRELUDE } else { LOOP };
    let regs = kvm_regs {
        rip,
        rdx: FIRST_PORT + u64::from(index) * 0x10,
        rsp: 0xff0,
        rflags: 0x202, // interrupts on
        r15: 0x1234_5678_9abc_def0 + u64::from(index),
        ..kvm_regs::default()
    };
    vcpu.set_regs(&regs).unwrap();
    let mut sregs = vcpu.get_sregs().unwrap();
    let based = |segment: kvm_segment, base: u64| kvm_segment { base, selector: 0, ..segment };
    sregs.cs = based(sregs.cs, 0);
    (sregs.ds, sregs.ss) =
        (based(sregs.ds, data_base(index.into())), based(sregs.ss, data_base(index.into())));
    sregs.es = based(sregs.es, APIC_BASE);
    sregs.fs = based(sregs.fs, FIRST_REGISTER + u64::from(index) * 0x1000);
    sregs.cr2 = 0xdead_0000 + u64::from(index);
    sregs.cr4 |= 1 << 9; // SSE
    vcpu.set_sregs(&sregs).unwrap();
    vcpu.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }).unwrap();
    let mut xcrs = vcpu.get_xcrs().unwrap();
    (xcrs.nr_xcrs, xcrs.xcrs[0].value) = (1, 3);
    vcpu.set_xcrs(&xcrs).unwrap();
    set_up_fpu(vcpu, extent, index);
    let mut debugregs = vcpu.get_debug_regs().unwrap();
    debugregs.db = [0x1000, 0x2000, 0x3000, 0x4000];
    vcpu.set_debug_regs(&debugregs).unwrap();
    set_up_apic(vcpu, index);
    set_up_msrs(vcpu, index);
}

/// Patterns in x87 and XMM registers, and the bits that say that something is in them (Intel SDM, volume 1, "XSAVE
/// area"). `KVM_SET_FPU` would not set those.
fn set_up_fpu(vcpu: &VcpuFd, extent: &Extent, index: u8) {
    let mut area = xsave::save(vcpu, extent).unwrap();
    area[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
    area[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
    (0..8).for_each(|register| area[32 + 16 * register..][..10].fill(0x11 + index));
    for register in 0..16 {
        let place = XMM_PLACE + 16 * usize::from(register);
        area[place..place + 16].copy_from_slice(&pattern(index, register));
    }
    area[512] |= 3;
    xsave::restore(vcpu, extent, &area).unwrap();
}

/// The first vCPU gets the interrupt controller's, the second has a timer that repeats, the third one with a deadline.
fn set_up_apic(vcpu: &VcpuFd, index: u8) {
    let mut apic = vcpu.get_lapic().unwrap();
    set_register(&mut apic, 0xf0, 0x1ff);
    match index {
        0 => set_register(&mut apic, 0x350, 0x700),
        1 => {
            set_register(&mut apic, 0x3e0, 0xb);
            set_register(&mut apic, 0x320, 0x2_0000 | APIC_VECTOR);
            set_register(&mut apic, 0x380, 1_000_000);
        }
        _ => set_register(&mut apic, 0x320, 0x4_0000 | APIC_VECTOR),
    }
    vcpu.set_lapic(&apic).unwrap();
}

pub(super) const SYSENTER_EIP: u32 = 0x176;
pub(super) const LSTAR: u32 = 0xc000_0082;
pub(super) const KVM_SYSTEM_TIME: u32 = 0x4b56_4d01;
pub(super) const TSC_DEADLINE: u32 = 0x6e0;
/// Years from now at any frequency.
pub(super) const DEADLINE: u64 = 1 << 60;

fn set_up_msrs(vcpu: &VcpuFd, index: u8) {
    let values = [
        (SYSENTER_EIP, 0x4321 + u64::from(index)),
        (LSTAR, 0xffff_8000_dead_0000 + u64::from(index)),
        (KVM_SYSTEM_TIME, 0x2_0001 + u64::from(index) * 0x1000),
        (TSC_DEADLINE, if index == 2 { DEADLINE } else { 0 }),
    ];
    for (msr, data) in values {
        let one = Msrs::from_entries(&[kvm_msr_entry { index: msr, data, ..kvm_msr_entry::default() }]);
        assert_eq!(vcpu.set_msrs(&one.unwrap()).unwrap(), 1, "{msr:#x}");
    }
}

fn set_register(apic: &mut kvm_lapic_state, register: usize, value: u32) {
    for (target, byte) in apic.regs[register..register + 4].iter_mut().zip(value.to_le_bytes()) {
        *target = byte.cast_signed();
    }
}
