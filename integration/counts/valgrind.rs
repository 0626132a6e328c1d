//! The one request to valgrind that is needed (valgrind.h, callgrind.h). Without valgrind it does nothing.

/// Whether this machine's requests are known here.
pub const KNOWN: bool = cfg!(target_arch = "x86_64");

/// Starts or stops to count, on this thread.
pub fn toggle_collect() {
    const TOGGLE_COLLECT: usize = (b'C' as usize) << 24 | (b'T' as usize) << 16 | 2;
    let request = [TOGGLE_COLLECT, 0, 0, 0, 0, 0];
    // SAFETY: turns rdi by 128 bits in all and exchanges rbx with itself, which changes neither; valgrind knows the
    // sequence, reads `request` and writes its answer to rdx.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!(
            "rol rdi, 3",
            "rol rdi, 13",
            "rol rdi, 61",
            "rol rdi, 51",
            "xchg rbx, rbx",
            in("rax") &raw const request,
            inout("rdx") 0usize => _,
            options(nostack),
        );
    }
    let _ = request;
}
