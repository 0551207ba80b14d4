//! How a device gets a guest's attention.

use std::io;

use vmm_sys_util::eventfd::EventFd;

/// An interrupt line.
pub trait Interrupt: Send + Sync {
    /// Raises the interrupt.
    ///
    /// # Errors
    ///
    /// What the host says when it cannot be raised.
    fn trigger(&self) -> io::Result<()>;
}

/// An interrupt line that is an eventfd, given to KVM as an irqfd: one write is one edge, without an exit of any
/// vCPU.
#[derive(Debug)]
pub struct IrqFd(pub EventFd);

impl Interrupt for IrqFd {
    fn trigger(&self) -> io::Result<()> {
        match self.0.write(1) {
            // The counter is full: an edge nobody has taken yet is pending, and one is as good as two.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            result => result,
        }
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    #[test]
    fn an_edge_is_one_write_and_a_full_counter_is_no_error() {
        let line = IrqFd(EventFd::new(EFD_NONBLOCK).unwrap());
        line.trigger().unwrap();
        assert_eq!(line.0.read().unwrap(), 1);
        line.0.write(u64::MAX - 1).unwrap();
        line.trigger().unwrap();
    }
}
