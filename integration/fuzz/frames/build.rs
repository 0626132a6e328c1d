//! Compiles the kernel programs for user space, with the compiler that compiles them for the kernel.

use std::env;

fn main() {
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    let mut build = cc::Build::new();
    build
        .compiler("clang")
        .opt_level(2)
        .debug(true)
        .include("include") // before the system's: bpf/bpf_helpers.h is ours
        .include(format!("/usr/include/{arch}-linux-gnu"))
        .flag("-fno-sanitize=all")
        .flag("-Wno-address-of-packed-member")
        .files(["programs.c", "machine.c"]);
    if env::var_os("CARGO_CFG_FUZZING").is_some() {
        // What cargo-fuzz asks of rustc: the fuzzer sees which branches of the C were taken, and what was compared.
        build.flag("-fsanitize-coverage=inline-8bit-counters,pc-table,trace-cmp");
    }
    build.compile("namegate-frames");
    for path in ["programs.c", "machine.c", "include", "../../../bpf"] {
        println!("cargo:rerun-if-changed={path}");
    }
}
