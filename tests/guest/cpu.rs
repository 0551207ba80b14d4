//! Instructions that Rust has no name for, and the memory routines that the compiler calls.

use core::arch::{asm, naked_asm};

pub fn out8(port: u16, value: u8) {
    // SAFETY: a port write touches no memory of this program.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) }
}

pub fn in8(port: u16) -> u8 {
    let value: u8;
    // SAFETY: a port read touches no memory of this program.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) }
    value
}

/// The time-stamp counter.
pub fn cycles() -> u64 {
    // SAFETY: every 64-bit processor has it, and ring 3 may read it while CR4.TSD is clear.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Says what CPUID answers to a leaf.
pub fn say_cpuid(leaf: u32, subleaf: u32) {
    let answer = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    let core::arch::x86_64::CpuidResult { eax, ebx, ecx, edx } = answer;
    crate::say!("cpuid {leaf:#x} {subleaf:#x}: {eax:#x} {ebx:#x} {ecx:#x} {edx:#x}");
}

/// The ring this runs in: the low two bits of CS.
pub fn ring() -> u64 {
    let cs: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cs", out(reg) cs, options(nomem, nostack, preserves_flags)) }
    cs & 3
}

pub fn undefined_instruction() -> ! {
    // SAFETY: it does not come back.
    unsafe { asm!("ud2", options(noreturn)) }
}

// The compiler emits calls to these, and no C library is linked in.

#[unsafe(naked)]
#[unsafe(no_mangle)]
extern "C" fn memcpy(destination: *mut u8, source: *const u8, count: usize) -> *mut u8 {
    naked_asm!("mov rax, rdi", "mov rcx, rdx", "rep movsb", "ret")
}

#[unsafe(naked)]
#[unsafe(no_mangle)]
extern "C" fn memset(destination: *mut u8, value: i32, count: usize) -> *mut u8 {
    naked_asm!("mov r8, rdi", "mov eax, esi", "mov rcx, rdx", "rep stosb", "mov rax, r8", "ret")
}

#[unsafe(naked)]
#[unsafe(no_mangle)]
extern "C" fn memcmp(left: *const u8, right: *const u8, count: usize) -> i32 {
    naked_asm!(
        "xor eax, eax",
        "mov rcx, rdx",
        "cmp eax, eax",
        "repe cmpsb",
        "je 2f",
        "movzx eax, byte ptr [rdi - 1]",
        "movzx ecx, byte ptr [rsi - 1]",
        "sub eax, ecx",
        "2:",
        "ret"
    )
}

#[unsafe(no_mangle)]
extern "C" fn bcmp(left: *const u8, right: *const u8, count: usize) -> i32 {
    memcmp(left, right, count)
}

#[unsafe(naked)]
#[unsafe(no_mangle)]
extern "C" fn strlen(text: *const u8) -> usize {
    naked_asm!("xor eax, eax", "mov rcx, -1", "repne scasb", "not rcx", "lea rax, [rcx - 1]", "ret")
}
