//! The host's randomness. Unsafe because getrandom(2) has no safe wrapper in the standard library.
#![expect(unsafe_code, reason = "getrandom(2) is called directly")]

use std::io;

/// Fills `bytes` from the kernel's generator, which may be waited for early in a host's life.
pub(crate) fn fill_random(bytes: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        let rest = &mut bytes[filled..];
        // SAFETY: the kernel writes at most `rest.len()` bytes to `rest`, which is borrowed for the call.
        let count = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(count) {
            Ok(count) => filled += count,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_a_buffer_is_filled() {
        let mut bytes = vec![0; 100_000];
        fill_random(&mut bytes).unwrap();
        let zeroes = bytes.iter().filter(|&&byte| byte == 0).count();
        assert!(
            (100..1000).contains(&zeroes),
            "{zeroes} of 100000 bytes are zero, and 390 would be expected"
        );
    }
}
