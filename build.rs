//! Compiles the kernel programs and generates the Rust types of bpf/include/abi.h from their BTF.

use std::env;
use std::path::PathBuf;

use libbpf_cargo::SkeletonBuilder;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    for hook in ["from_pod", "to_pod", "beat", "early", "inside"] {
        SkeletonBuilder::new()
            .source(format!("bpf/{hook}.bpf.c"))
            .obj(out.join(format!("{hook}.bpf.o")))
            // Debian and Ubuntu keep asm/types.h, which every uapi header needs, in the directory of the architecture.
            .clang_args(["-Wall", "-Wextra", "-Werror", "-mcpu=v3", &format!("-I/usr/include/{arch}-linux-gnu")])
            .build_and_generate(out.join(format!("{hook}.skel.rs")))?;
    }
    println!("cargo:rerun-if-changed=bpf");
    Ok(())
}
