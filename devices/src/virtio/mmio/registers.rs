//! The registers, by offset (virtio 1.2, 4.2.2): what reading one tells, and what writing one does.

use virtio_bindings::virtio_mmio as register;
use virtio_queue::QueueState;

use super::{MmioTransport, status};
use crate::bus::BusDevice;

/// `virt`, in the order of its bytes.
const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
/// Nobody's.
const VENDOR: u32 = 0;
/// What a shared memory region reads as that is not there: a length and a base of -1.
const NO_SHARED_MEMORY: u32 = u32::MAX;
/// virtio-bindings leaves this one of the registers out.
pub(super) const VIRTIO_MMIO_QUEUE_NUM_MAX: u32 = 0x34;

impl MmioTransport {
    fn write_driver_features(&mut self, value: u32) {
        if self.status & status::FEATURES_OK != 0 {
            return;
        }
        let mut halves = [low(self.driver_features), high(self.driver_features)];
        if let Some(half) = usize::try_from(self.driver_features_select).ok().and_then(|i| halves.get_mut(i))
        {
            *half = value;
        }
        self.driver_features = join(halves[0], halves[1]);
    }

    fn selected_queue(&self) -> Option<&QueueState> {
        usize::try_from(self.queue_select).ok().and_then(|index| self.queues.get(index))
    }

    /// Changes the selected queue, while it may be changed: features are agreed on and the driver is not ready.
    fn set_up_queue(&mut self, change: impl FnOnce(&mut QueueState)) {
        let may = self.status & (status::FEATURES_OK | status::DRIVER_OK) == status::FEATURES_OK;
        let queue = usize::try_from(self.queue_select).ok().and_then(|index| self.queues.get_mut(index));
        if let (true, Some(queue)) = (may, queue) {
            change(queue);
        }
    }

    fn read_register(&self, offset: u32) -> u32 {
        match offset {
            register::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            register::VIRTIO_MMIO_VERSION => VERSION,
            register::VIRTIO_MMIO_DEVICE_ID => self.device_type,
            register::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            register::VIRTIO_MMIO_DEVICE_FEATURES => match self.device_features_select {
                0 => low(self.device_features),
                1 => high(self.device_features),
                _ => 0,
            },
            VIRTIO_MMIO_QUEUE_NUM_MAX => self.selected_queue().map_or(0, |queue| u32::from(queue.max_size)),
            register::VIRTIO_MMIO_QUEUE_READY => {
                self.selected_queue().map_or(0, |queue| u32::from(queue.ready))
            }
            register::VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status(),
            register::VIRTIO_MMIO_STATUS if self.interrupt.needs_reset() => self.status | status::NEEDS_RESET,
            register::VIRTIO_MMIO_STATUS => self.status,
            register::VIRTIO_MMIO_SHM_LEN_LOW..=register::VIRTIO_MMIO_SHM_BASE_HIGH => NO_SHARED_MEMORY,
            register::VIRTIO_MMIO_CONFIG_GENERATION => self.config.generation(),
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u32, value: u32) {
        match offset {
            register::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_select = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_select = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES => self.write_driver_features(value),
            register::VIRTIO_MMIO_QUEUE_SEL => self.queue_select = value,
            register::VIRTIO_MMIO_QUEUE_NOTIFY => self.notify_queue(value),
            register::VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            register::VIRTIO_MMIO_STATUS => self.write_status(value),
            _ => self.write_queue_register(offset, value),
        }
    }

    fn write_queue_register(&mut self, offset: u32, value: u32) {
        self.set_up_queue(|queue| match offset {
            // No queue has size 0, nor one that does not fit: it will be refused when the driver is ready.
            register::VIRTIO_MMIO_QUEUE_NUM => queue.size = u16::try_from(value).unwrap_or(0),
            register::VIRTIO_MMIO_QUEUE_READY => queue.ready = value == 1,
            register::VIRTIO_MMIO_QUEUE_DESC_LOW => set_low(&mut queue.desc_table, value),
            register::VIRTIO_MMIO_QUEUE_DESC_HIGH => set_high(&mut queue.desc_table, value),
            register::VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_low(&mut queue.avail_ring, value),
            register::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_high(&mut queue.avail_ring, value),
            register::VIRTIO_MMIO_QUEUE_USED_LOW => set_low(&mut queue.used_ring, value),
            register::VIRTIO_MMIO_QUEUE_USED_HIGH => set_high(&mut queue.used_ring, value),
            _ => tracing::debug!(offset, value, "write to a virtio register that is not there"),
        });
    }

    fn notify_queue(&self, index: u32) {
        let event = usize::try_from(index).ok().and_then(|index| self.notify.get(index));
        if let Some(Err(error)) = event.map(|event| event.write(1)) {
            tracing::error!(%error, "cannot tell a virtio device of new buffers");
        }
    }
}

impl BusDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(u64::from(register::VIRTIO_MMIO_CONFIG)) {
            return self.config.read(offset, data);
        }
        data.fill(0);
        let register = u32::try_from(offset).ok().filter(|offset| offset.is_multiple_of(4));
        if let (Some(register), Ok(data)) = (register, <&mut [u8; 4]>::try_from(data)) {
            *data = self.read_register(register).to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset >= u64::from(register::VIRTIO_MMIO_CONFIG) {
            return self.config.refuse_write();
        }
        let register = u32::try_from(offset).ok().filter(|offset| offset.is_multiple_of(4));
        if let (Some(register), Ok(value)) = (register, <[u8; 4]>::try_from(data)) {
            self.write_register(register, u32::from_le_bytes(value));
        }
    }
}

fn low(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).expect("masked to 32 bits")
}

fn high(value: u64) -> u32 {
    low(value >> 32)
}

fn join(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

fn set_low(value: &mut u64, half: u32) {
    *value = join(half, high(*value));
}

fn set_high(value: &mut u64, half: u32) {
    *value = join(low(*value), half);
}
