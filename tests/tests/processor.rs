//! The processors that a guest sees, without Linux where that suffices.
#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use serde_json::json;
use tests::host::{on_kvm_host, on_linux_host};
use tests::vmm::Vmm;

/// Linux, arch/x86/include/uapi/asm/kvm_para.h.
const KVM_SIGNATURE: u32 = 0x4000_0000;
const KVM_FEATURES: u32 = 0x4000_0001;
const KVM_FEATURE_CLOCKSOURCE2: u32 = 1 << 3;
const KVM_FEATURE_ASYNC_PF: u32 = 1 << 4;
const KVM_FEATURE_ASYNC_PF_INT: u32 = 1 << 14;

/// Starts a machine and gives what CPUID answers in the guest to each leaf and subleaf: EAX, EBX, ECX, EDX.
fn cpuid(cpus: u32, smt: bool, leaves: &[(u32, u32)]) -> Vec<[u32; 4]> {
    let commands: String = leaves.iter().map(|(leaf, subleaf)| format!("cpuid {leaf} {subleaf} ")).collect();
    let mut vmm = Vmm::configured(&format!("{commands}exit"));
    vmm.grant("PATCH", "/machine-config", &json!({ "vcpu_count": cpus, "smt": smt }));
    vmm.start_instance();
    let answers = leaves.iter().map(|_| {
        let line = vmm.wait_for_line("guest: cpuid ");
        let (_, registers) = line.split_once(": 0x").unwrap();
        let registers: Vec<_> =
            registers.split(" 0x").map(|hex| u32::from_str_radix(hex, 16).unwrap()).collect();
        registers.try_into().unwrap()
    });
    let answers = answers.collect();
    vmm.ends_cleanly();
    answers
}

/// On a host where Linux runs, CPUID in the guest is answered by KVM; where ring 3 runs on the processor as it is, it
/// may answer for itself.
#[test]
fn cpuid_tells_the_topology_and_kvms_features() {
    on_linux_host(|| {
        let leaves = [(KVM_SIGNATURE, 0), (KVM_FEATURES, 0), (1, 0), (0xb, 0), (0xb, 1), (0xb, 2)];
        let [kvm, features, one, threads, cores, end] = cpuid(6, true, &leaves).try_into().unwrap();
        let signature: Vec<u8> = kvm[1..].iter().flat_map(|register| register.to_le_bytes()).collect();
        assert_eq!(&signature, b"KVMKVMKVM\0\0\0");
        for bit in [KVM_FEATURE_ASYNC_PF, KVM_FEATURE_ASYNC_PF_INT, KVM_FEATURE_CLOCKSOURCE2] {
            assert_ne!(features[0] & bit, 0, "{:#x} in {:#x}", bit, features[0]);
        }
        assert_ne!(one[2] & 1 << 31, 0, "there is a hypervisor");
        assert_eq!(one[1] >> 16 & 0xff, 8, "APIC ids of the package");
        // Level type 1, threads: one bit of the APIC id, two of them. Level type 2, cores: three bits, six threads.
        assert_eq!([threads[0] & 0x1f, threads[1] & 0xffff, threads[2]], [1, 2, 0x100]);
        assert_eq!([cores[0] & 0x1f, cores[1] & 0xffff, cores[2]], [3, 6, 0x201]);
        assert_eq!([end[1] & 0xffff, end[2] >> 8 & 0xff], [0, 0]);
        assert_eq!([threads[3], cores[3]], [0, 0], "the first vCPU's APIC id");

        let [threads, cores] = cpuid(4, false, &[(0xb, 0), (0xb, 1)]).try_into().unwrap();
        assert_eq!([threads[0] & 0x1f, threads[1] & 0xffff], [0, 1]);
        assert_eq!([cores[0] & 0x1f, cores[1] & 0xffff], [2, 4]);
    });
}

/// The bare-metal guest uses the first of them only: this shows that 32 are made, wait for their start-up, and stop and
/// end with it. That Linux brings more than one up is shown in `linux.rs`.
#[test]
fn thirty_two_vcpus_start_pause_and_end_together() {
    on_kvm_host(|| {
        let mut vmm = Vmm::configured("hello echo exit");
        vmm.machine(32, 64);
        vmm.start_instance();
        vmm.wait_for_line("guest: echo");
        let vcpus: Vec<String> = (0..32).map(|index| format!("vcpu{index}")).collect();
        let mut threads = vec!["faultless", "api", "log", "devices", "serial-out"];
        threads.extend(vcpus.iter().map(String::as_str));
        vmm.wait_for_threads(&threads);
        for _ in 0..5 {
            vmm.pause();
            vmm.resume();
        }
        vmm.type_text("quit\n");
        vmm.ends_cleanly();
    });
}
