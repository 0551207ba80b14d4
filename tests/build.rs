//! Builds the bare-metal guest, in its two forms, with the compiler that builds everything else.
//!
//! It is no cargo package of its own: it needs another panic strategy, relocation model and linker script, and no
//! standard library, and must be there before the tests that boot it.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=guest");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts"));
    let (linux64, pvh) = (out.join("guest-linux64.elf"), out.join("guest-pvh.elf"));
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("x86_64") {
        build_guest(&linux64, &[]);
        build_guest(&pvh, &["--cfg", "pvh"]);
    }
    println!("cargo::rustc-env=FAULTLESS_GUEST_LINUX64={}", linux64.display());
    println!("cargo::rustc-env=FAULTLESS_GUEST_PVH={}", pvh.display());
}

fn build_guest(output: &Path, more: &[&str]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest");
    let rustc = std::env::var_os("RUSTC").expect("cargo sets RUSTC for build scripts");
    let status = Command::new(rustc)
        .args([
            "--edition=2024",
            "--crate-type=bin",
            "--crate-name=guest",
            "--target=x86_64-unknown-linux-gnu",
        ])
        .args(["-Cpanic=abort", "-Copt-level=2", "-Crelocation-model=static", "-Cstrip=debuginfo"])
        .args(["-Clink-arg=-nostdlib", "-Clink-arg=-static", "-Clink-arg=-no-pie"])
        .arg(format!("-Clink-arg=-Wl,-T,{},--build-id=none", folder.join("guest.ld").display()))
        .args(more)
        .arg("-o")
        .arg(output)
        .arg(folder.join("main.rs"))
        .status()
        .expect("the compiler that runs this script can be run");
    assert!(status.success(), "the bare-metal guest did not build; see rustc's message above");
}
