//! The ACPI tables of a guest: what it cannot find out by probing.
//!
//! ```text
//!   RSDP ─▶ XSDT ─▶ FADT ─▶ DSDT   virtio-mmio devices, serial port, clock, keyboard, power states, generation
//!                └▶ MADT           processors, I/O APIC
//! ```
//!
//! The platform is "hardware-reduced" (ACPI 6.5, section 4.1): no fixed hardware, no SCI, no power management timer.
//! A guest powers off through the sleep control register and restarts through the reset register, which the FADT
//! gives as I/O ports (sections 4.8.3.7 and 4.8.3.6).

mod generation;

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};
use memory::GuestRam;
use vm_memory::{Bytes, GuestAddress};

use super::layout;

const OEM_ID: [u8; 6] = *b"FAULTL";
const OEM_TABLE_ID: [u8; 8] = *b"FAULTLES";
const OEM_REVISION: u32 = 1;
/// The DSDT's revision: 2 makes AML integers 64 bits wide.
const DSDT_REVISION: u8 = 2;
/// The value that resets the machine when written to the reset register.
const RESET_VALUE: u8 = 1;
/// `SLP_TYP` of the soft-off state S5, as `\_S5` tells it.
const SLEEP_TYPE_S5: u8 = 5;
/// FADT, `IAPC_BOOT_ARCH`: there are legacy devices, an 8042 among them, and neither VGA nor MSI.
const BOOT_ARCH: u16 = 1 | 1 << 1 | 1 << 2 | 1 << 3;

/// Why the tables could not be written.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// They do not fit where they belong.
    #[error("the ACPI tables take {bytes} bytes and there is room for {room_bytes}: attach fewer devices")]
    TooLarge {
        /// Their size in bytes.
        bytes: u64,
        /// The size of the room in bytes.
        room_bytes: u64,
    },
    /// Guest memory does not reach that far.
    #[error("the ACPI tables do not fit into guest memory: give the guest at least 1 MiB more")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// Writes the tables for `vcpu_count` processors and `virtio_devices` devices; gives the address of the RSDP.
///
/// # Errors
///
/// [`AcpiError`], where memory is too small or the tables too large.
pub fn write_tables(
    ram: &GuestRam,
    vcpu_count: u8,
    virtio_devices: usize,
) -> Result<GuestAddress, AcpiError> {
    let rsdp_address = layout::ACPI_TABLES;
    let mut room = Room { ram, next: rsdp_address.0 + Rsdp::len() as u64 };
    let dsdt = room.place(&dsdt(virtio_devices))?;
    let fadt = room.place(&fadt(dsdt))?;
    let madt = room.place(&madt(vcpu_count))?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = room.place(&xsdt)?;
    ram.write_slice(&bytes_of(&Rsdp::new(OEM_ID, xsdt)), rsdp_address)?;
    Ok(rsdp_address)
}

/// Where the next table goes.
struct Room<'a> {
    ram: &'a GuestRam,
    next: u64,
}

impl Room<'_> {
    /// Writes a table on an eight-byte boundary and gives its address.
    fn place(&mut self, table: &dyn Aml) -> Result<u64, AcpiError> {
        let bytes = bytes_of(table);
        let start = self.next.next_multiple_of(8);
        self.next = start + bytes.len() as u64;
        if self.next > layout::ACPI_TABLES_END {
            let room_bytes = layout::ACPI_TABLES_END - layout::ACPI_TABLES.0;
            return Err(AcpiError::TooLarge { bytes: self.next - layout::ACPI_TABLES.0, room_bytes });
        }
        self.ram.write_slice(&bytes, GuestAddress(start))?;
        Ok(start)
    }
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn fadt(dsdt: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.reset_reg = byte_port(layout::RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = byte_port(layout::SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = byte_port(layout::SLEEP_STATUS_PORT);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(OEM_TABLE_ID).into();
    fadt.finalize()
}

fn byte_port(port: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into())
}

fn madt(vcpu_count: u8) -> impl Aml {
    let local_apic = LocalInterruptController::Address(layout::LOCAL_APIC);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, local_apic);
    for index in 0..vcpu_count {
        madt.add_structure(ProcessorLocalApic::new(index, index, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IO_APIC, 0));
    madt
}

fn dsdt(virtio_devices: usize) -> Sdt {
    let mut body = Vec::new();
    for index in 0..virtio_devices {
        virtio_device(&mut body, index);
    }
    legacy_devices(&mut body);
    generation::devices(&mut body);
    let sleep = aml::Package::new(vec![&SLEEP_TYPE_S5]);
    aml::Name::new("_S5_".into(), &sleep).to_aml_bytes(&mut body);
    let header_bytes = 36;
    let mut dsdt = Sdt::new(*b"DSDT", header_bytes, DSDT_REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&body);
    dsdt
}

/// A virtio-mmio device, as `drivers/virtio/virtio_mmio.c` of Linux matches it.
fn virtio_device(body: &mut Vec<u8>, index: usize) {
    let slot = VirtioSlot::new(index);
    let base = u32::try_from(slot.base).expect("the device hole lies below 4 GiB");
    let stride = u32::try_from(layout::VIRTIO_MMIO_STRIDE).expect("one page");
    let resources = aml::ResourceTemplate::new(vec![
        &aml::Memory32Fixed::new(true, base, stride),
        &aml::Interrupt::new(true, true, false, false, slot.gsi),
    ])
    .bytes();
    scope_device(body, &format!("_SB_.V{index:03}"), &"LNRO0005", index, &resources);
}

/// The serial port, the clock and the keyboard controller.
fn legacy_devices(body: &mut Vec<u8>) {
    let ports = |first: u16, count: u16| {
        aml::IO::new(first, first, 1, u8::try_from(count).expect("legacy devices have few ports"))
    };
    let interrupt = |gsi| aml::Interrupt::new(true, true, false, false, gsi);
    let serial = aml::ResourceTemplate::new(vec![
        &ports(layout::SERIAL_PORT, layout::SERIAL_PORTS),
        &interrupt(layout::SERIAL_GSI),
    ])
    .bytes();
    scope_device(body, "_SB_.COM1", &aml::EISAName::new("PNP0501"), 0, &serial);
    let clock = aml::ResourceTemplate::new(vec![&ports(layout::RTC_PORT, 2)]).bytes();
    scope_device(body, "_SB_.RTC_", &aml::EISAName::new("PNP0B00"), 0, &clock);
    let keyboard = aml::ResourceTemplate::new(vec![
        &ports(layout::I8042_PORT, 1),
        &ports(layout::I8042_PORT + 4, 1),
        &interrupt(layout::I8042_GSI),
    ])
    .bytes();
    scope_device(body, "_SB_.PS2_", &aml::EISAName::new("PNP0303"), 0, &keyboard);
}

fn scope_device(body: &mut Vec<u8>, path: &str, hardware_id: &dyn Aml, unique_id: usize, resources: &[u8]) {
    let resources = Raw(resources);
    aml::Device::new(
        path.into(),
        vec![
            &aml::Name::new("_HID".into(), hardware_id),
            &aml::Name::new("_UID".into(), &unique_id),
            &aml::Name::new("_CRS".into(), &resources),
        ],
    )
    .to_aml_bytes(body);
}

/// AML that is encoded already.
struct Raw<'a>(&'a [u8]);

impl Aml for Raw<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(self.0);
    }
}

/// Encodes at once, where the parts of a composite do not live long enough to be borrowed.
trait Encoded {
    fn bytes(&self) -> Vec<u8>;
}

impl<T: Aml> Encoded for T {
    fn bytes(&self) -> Vec<u8> {
        bytes_of(self)
    }
}

/// The registers and the line of one virtio-mmio device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtioSlot {
    /// Guest physical address of its registers.
    pub base: u64,
    /// Its interrupt line.
    pub gsi: u32,
}

impl VirtioSlot {
    /// The slot of the device attached as number `index`, which is below [`layout::VIRTIO_DEVICES_MAX`].
    #[must_use]
    pub fn new(index: usize) -> Self {
        let number = u32::try_from(index).expect("there are fewer slots than interrupt lines");
        Self {
            base: layout::VIRTIO_MMIO + u64::from(number) * layout::VIRTIO_MMIO_STRIDE,
            gsi: layout::VIRTIO_GSI_FIRST + number,
        }
    }
}

#[cfg(test)]
mod tests {
    use memory::Backing;

    use super::*;

    fn table(ram: &GuestRam, address: u64) -> Vec<u8> {
        let length = ram.read_obj::<u32>(GuestAddress(address + 4)).unwrap();
        let mut bytes = vec![0; length as usize];
        ram.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        assert_eq!(bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0, "checksum");
        bytes
    }

    fn u64_at(bytes: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
    }

    #[test]
    fn tables_lead_to_each_other_and_sum_to_zero() {
        let ram =
            GuestRam::new(&layout::ram_ranges(2 << 20), Backing::Anonymous { transparent_huge_pages: false });
        let ram = ram.unwrap();
        let rsdp = write_tables(&ram, 32, layout::VIRTIO_DEVICES_MAX).unwrap();
        let xsdt = table(&ram, ram.read_obj::<u64>(GuestAddress(rsdp.0 + 24)).unwrap());
        assert_eq!(&xsdt[..4], b"XSDT");
        let fadt = table(&ram, u64_at(&xsdt, 36));
        assert_eq!(&fadt[..4], b"FACP");
        let dsdt = table(&ram, u64_at(&fadt, 140));
        assert_eq!(&dsdt[..4], b"DSDT");
        let madt = table(&ram, u64_at(&xsdt, 44));
        assert_eq!((&madt[..4], madt.len()), (&b"APIC"[..], 44 + 32 * 8 + 12));
    }
}
