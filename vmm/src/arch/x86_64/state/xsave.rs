//! The XSAVE area: x87, SSE, AVX and whatever else the processor keeps there.
//!
//! It was 4096 bytes, and grew with Linux 5.17: `KVM_CAP_XSAVE2` says to how many, and `KVM_GET_XSAVE2` writes as many.
//! `KVM_SET_XSAVE` has kept its number, and reads as many too (Documentation/virt/kvm/api.rst, "`KVM_SET_XSAVE`").
//!
//! `unsafe` is here because both trust the length of the buffer.
#![expect(unsafe_code, reason = "KVM_GET_XSAVE2 and KVM_SET_XSAVE trust the length of the buffer")]

use kvm_bindings::{Xsave, kvm_xsave};
use kvm_ioctls::VcpuFd;
use zerocopy::IntoBytes;

use super::{Extent, StateError, refused};

/// The area of `vcpu`, as many bytes as `extent` says.
pub(super) fn save(vcpu: &VcpuFd, extent: &Extent) -> Result<Vec<u8>, StateError> {
    if !extent.has_xsave2 {
        let xsave = vcpu.get_xsave().map_err(refused("read the FPU"))?;
        return Ok(xsave.region.as_bytes().to_vec());
    }
    let mut xsave = area(extent)?;
    // SAFETY: `area` made it as long as `KVM_CAP_XSAVE2` says. It grows only by a call of `arch_prctl` that this
    // program does not make.
    unsafe { vcpu.get_xsave2(&mut xsave) }.map_err(refused("read the FPU"))?;
    let mut bytes = xsave.as_fam_struct_ref().xsave.region.as_bytes().to_vec();
    bytes.extend_from_slice(xsave.as_slice().as_bytes());
    bytes.truncate(extent.xsave_bytes);
    Ok(bytes)
}

/// Gives `vcpu` an area. A shorter one than this host's is filled up with zeros, which is how a processor says that a
/// component is as after reset; of a longer one nothing may be lost.
pub(super) fn restore(vcpu: &VcpuFd, extent: &Extent, saved: &[u8]) -> Result<(), StateError> {
    let host_bytes = extent.xsave_bytes;
    let (fitting, rest) = saved.split_at(saved.len().min(host_bytes));
    if rest.iter().any(|&byte| byte != 0) {
        return Err(StateError::Fpu { saved_bytes: saved.len(), host_bytes });
    }
    let mut bytes = fitting.to_vec();
    bytes.resize(host_bytes.next_multiple_of(4), 0);
    let (head, tail) = bytes.split_at(size_of::<kvm_xsave>());
    let mut xsave = area(extent)?;
    xsave.as_mut_slice().as_mut_bytes().copy_from_slice(tail);
    // SAFETY: the fixed part is written; neither the length nor what lies behind is touched.
    let fixed = unsafe { xsave.as_mut_fam_struct() };
    fixed.xsave.region.as_mut_bytes().copy_from_slice(head);
    // SAFETY: `area` made it as long as this KVM reads.
    unsafe { vcpu.set_xsave2(&xsave) }.map_err(refused("set the FPU"))
}

/// A zeroed area of `extent`'s length.
fn area(extent: &Extent) -> Result<Xsave, StateError> {
    let words = (extent.xsave_bytes - size_of::<kvm_xsave>()).div_ceil(size_of::<u32>());
    Xsave::new(words).map_err(|_| StateError::Damaged { what: "FPU" })
}
