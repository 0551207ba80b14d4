//! A machine in a state file, and the files that it lies over.

mod chain;
mod contents;
mod replacing;

use std::path::Path;

use devices::generation::{ClockCounters, GENERATION_STATE_VERSION, GenerationState, Place};
use devices::legacy::i8042::I8042_STATE_VERSION;
use devices::legacy::rtc::RTC_STATE_VERSION;
use devices::legacy::serial::SERIAL_STATE_VERSION;
use devices::legacy::{I8042State, RtcState, SerialState};
use devices::limiter::RateLimiterState;
use devices::virtio::block::{BLOCK_STATE_VERSION, BlockState, CacheType, IoEngine};
use devices::virtio::mmio::{MMIO_STATE_VERSION, MmioTransportState};
use devices::virtio::rng::{ENTROPY_STATE_VERSION, EntropyState};
use serde_json::json;

use super::file::SnapshotId;
use super::saved::{MemoryState, Meta, Parent, Saved};
use crate::arch::host::state::{HostFacts, PlatformState, Uapi, VcpuState};
use crate::machine::devices::{DevicesState, VirtioDeviceState, VirtioState};

const MIB: u64 = 1 << 20;

/// A machine of two vCPUs, 4 MiB, a drive and an entropy device; its id is made of `id`.
fn machine(id: u8) -> Saved {
    let config = json!({
        "boot-source": { "kernel_image_path": "/kernel" },
        "machine-config": { "vcpu_count": 2, "mem_size_mib": 4 },
        "drives": [{ "drive_id": "data", "path_on_host": "/disk", "is_root_device": false }],
        "entropy": {},
    });
    Saved {
        id: SnapshotId([id; 16]),
        meta: Meta { vmm_version: "1.2.3".to_owned(), instance_id: "one".to_owned(), saved_unix_ms: 7 },
        config: serde_json::from_value(config).unwrap(),
        host: host(),
        platform: PlatformState {
            chips: [1, 2, 3].map(|chip| Uapi([chip; _])),
            pit: Uapi(kvm_bindings::kvm_pit_state2::default()),
            clock_ns: 5,
            realtime_ns: 6,
        },
        vcpus: vec![vcpu(1), vcpu(2)],
        devices: devices(),
        memory: memory(None),
    }
}

/// The same as a diff over the machine `below`, whose files are in `folder`.
fn diff(id: u8, below: u8, folder: &Path) -> Saved {
    let [state_path, memory_path] = paths(below, folder);
    let parent = Parent { id: [below; 16], state_path, memory_path };
    Saved { memory: memory(Some(parent)), ..machine(id) }
}

/// Where the machine `id` is in `folder`: its state file and its memory file.
fn paths(id: u8, folder: &Path) -> [std::path::PathBuf; 2] {
    ["state", "memory"].map(|name| folder.join(format!("{id}.{name}")))
}

fn memory(parent: Option<Parent>) -> MemoryState {
    let contents = json!({ "pages": 1024, "data": [[3, 2]], "sums": [4, 5] });
    let contents = serde_json::from_value(contents).unwrap();
    MemoryState { regions: vec![(0, 4 * MIB)], contents, parent }
}

fn host() -> HostFacts {
    HostFacts {
        vendor: "AProcessor".to_owned(),
        family: 6,
        model: 7,
        brand: "A Processor".to_owned(),
        cpuid: Vec::new(),
        tsc_khz: Some(1_000_000),
        can_scale_tsc: true,
        msr_count: 3,
        kernel: "6.1.0".to_owned(),
    }
}

fn vcpu(number: u8) -> VcpuState {
    let regs = kvm_bindings::kvm_regs { rip: number.into(), ..Default::default() };
    VcpuState {
        cpuid: Vec::new(),
        tsc_khz: None,
        mp_state: 0,
        events: Uapi(kvm_bindings::kvm_vcpu_events::default()),
        regs: Uapi(regs),
        sregs: Uapi(kvm_bindings::kvm_sregs::default()),
        xcrs: Uapi(kvm_bindings::kvm_xcrs::default()),
        xsave: vec![number; 9],
        debugregs: Uapi(kvm_bindings::kvm_debugregs::default()),
        msrs: Vec::new(),
        lapic: Uapi(kvm_bindings::kvm_lapic_state::default()),
    }
}

fn devices() -> DevicesState {
    let block = BlockState {
        version: BLOCK_STATE_VERSION,
        path: "/disk".into(),
        read_only: false,
        cache: CacheType::Writeback,
        engine: IoEngine::Async,
        limiter: RateLimiterState::default(),
        device_id: *b"12345678901234567890",
        sectors: 8,
        config_unannounced: true,
    };
    let entropy = EntropyState { version: ENTROPY_STATE_VERSION, limiter: RateLimiterState::default() };
    let drive = VirtioDeviceState::Block { drive_id: "data".to_owned(), state: block };
    DevicesState {
        virtio: vec![virtio(2, drive), virtio(4, VirtioDeviceState::Entropy(entropy))],
        serial: serial(),
        keyboard: I8042State {
            version: I8042_STATE_VERSION,
            control: 1,
            output_port: 2,
            status: 3,
            pending: Some(4),
            output: vec![5],
        },
        clock: RtcState { version: RTC_STATE_VERSION, index: 1, ram: vec![2; 128], latched_ns: 3 },
        generation: GenerationState {
            version: GENERATION_STATE_VERSION,
            place: Place { id: 8, clock: 4096 },
            id: [9; 16],
            clock: ClockCounters::default(),
        },
    }
}

fn virtio(device_type: u32, device: VirtioDeviceState) -> VirtioState {
    let transport = MmioTransportState {
        version: MMIO_STATE_VERSION,
        device_type,
        device_features: 1 << 32,
        driver_features: 1 << 32,
        device_features_select: 0,
        driver_features_select: 1,
        queue_select: 0,
        status: 15,
        needs_reset: false,
        running: true,
        interrupt_status: 1,
        config_generation: 2,
        queues: Vec::new(),
    };
    VirtioState { transport, device }
}

fn serial() -> SerialState {
    SerialState {
        version: SERIAL_STATE_VERSION,
        baud_divisor: [12, 0],
        interrupt_enable: 1,
        interrupt_identification: 1,
        line_control: 3,
        line_status: 0x60,
        modem_control: 8,
        modem_status: 0xb0,
        scratch: 5,
        fifo: b"typed".to_vec(),
        inbox: b"more".to_vec(),
        limiter: None,
    }
}
