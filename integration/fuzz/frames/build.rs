//! Compiles the kernel programs for user space, with the compiler that compiles them for the kernel.

use std::env;
use std::path::Path;
use std::process::Command;

/// What is not hidden of the program of XDP, whose other names are those of the programs of TC.
const SHOWN: [&str; 2] = ["machine_early", "machine_early_settings"];

fn main() {
    let fuzzing = env::var_os("CARGO_CFG_FUZZING").is_some();
    let mut early = compiler();
    let objects = early.file("early.c").compile_intermediates();
    let hidden = Path::new(&env::var_os("OUT_DIR").expect("cargo sets it")).join("early-hidden.o");
    let mut objcopy = Command::new("llvm-objcopy");
    objcopy.args(SHOWN.map(|name| format!("--keep-global-symbol={name}"))).args(&objects).arg(&hidden);
    assert!(objcopy.status().expect("llvm-objcopy runs").success(), "{objcopy:?} failed");
    let mut build = compiler();
    if fuzzing {
        // What cargo-fuzz asks of rustc: the fuzzer sees which branches of the C were taken, and what was compared.
        build.flag("-fsanitize-coverage=inline-8bit-counters,pc-table,trace-cmp");
    }
    build.files(["programs.c", "machine.c"]).object(hidden).compile("namegate-frames");
    for path in ["programs.c", "early.c", "machine.c", "include", "../../../bpf"] {
        println!("cargo:rerun-if-changed={path}");
    }
}

fn compiler() -> cc::Build {
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    let mut build = cc::Build::new();
    build
        .compiler("clang")
        .opt_level(2)
        .debug(true)
        .include("include") // before the system's: bpf/bpf_helpers.h is ours
        .include(format!("/usr/include/{arch}-linux-gnu"))
        .flag("-fno-sanitize=all")
        .flag("-Wno-address-of-packed-member");
    build
}
