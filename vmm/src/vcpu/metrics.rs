//! How often vCPUs leave the guest, and why.

use prometheus_client::metrics::counter::Counter;

/// Counters of all vCPUs of a VM together, under Firecracker's names.
#[derive(Debug, Clone, Default)]
pub struct VcpuMetrics {
    /// Reads of an I/O port.
    pub exit_io_in: Counter,
    /// Writes to an I/O port.
    pub exit_io_out: Counter,
    /// Reads of a memory-mapped register.
    pub exit_mmio_read: Counter,
    /// Writes to a memory-mapped register.
    pub exit_mmio_write: Counter,
    /// Exits that end a guest.
    pub failures: Counter,
}

impl VcpuMetrics {
    /// Every counter, as its name, what it counts, and itself.
    pub fn list(&self) -> impl Iterator<Item = (&'static str, &'static str, &Counter)> {
        [
            ("exit_io_in", "exits for reads of an I/O port", &self.exit_io_in),
            ("exit_io_out", "exits for writes to an I/O port", &self.exit_io_out),
            ("exit_mmio_read", "exits for reads of a memory-mapped register", &self.exit_mmio_read),
            ("exit_mmio_write", "exits for writes to a memory-mapped register", &self.exit_mmio_write),
            ("failures", "exits that ended a guest", &self.failures),
        ]
        .into_iter()
    }
}
