//! Compiles the probes with clang and leaves the object for `include_bytes!`. It needs no
//! kernel headers, no libc and no libelf on the build host; libbpf's BPF headers come from
//! the libbpf-sys crate.
//!
//! `CLANG` and `LLVM_STRIP` name other programs than `clang` and `llvm-strip`.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arch = match env::var("CARGO_CFG_TARGET_ARCH")?.as_str() {
        "x86_64" => "x86",
        "aarch64" => "arm64",
        "arm" => "arm",
        other => return Err(format!("the probes do not know the architecture {other}").into()),
    };
    let manifest = env::var("CARGO_MANIFEST_DIR")?;
    let source = PathBuf::from(&manifest).join("src");
    let object = PathBuf::from(env::var("OUT_DIR")?).join("probes.bpf.o");
    let include = env::var("DEP_BPF_INCLUDE")?;
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    println!("cargo:rerun-if-changed=src");
    for variable in ["CLANG", "LLVM_STRIP"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }

    let mut compile = Command::new(&clang);
    compile
        .args(["-target", "bpf", "-g", "-O2", "-Wall", "-Wextra", "-Werror"])
        .args(["-Wno-unused-parameter", "-Wno-missing-field-initializers", "-Wno-sign-compare"])
        .arg(format!("-D__TARGET_ARCH_{arch}"))
        // No absolute path of the build machine may end in the object's BTF, not even that of the
        // folder in which clang runs.
        .arg(format!("-ffile-prefix-map={manifest}=/sysflow/bpf"))
        .arg(format!("-ffile-prefix-map={include}=libbpf"))
        .arg(format!("-I{include}"))
        .arg("-c")
        .arg(source.join("probes.bpf.c"))
        .arg("-o")
        .arg(&object);
    if arch == "arm" {
        compile.arg("-DVOLUME_SLOTS=8");
    }
    run(compile, &clang, "install clang, or name it in CLANG")?;

    // The debug information has done its work (BTF is made from it); BTF itself stays.
    let strip = env::var("LLVM_STRIP").unwrap_or_else(|_| "llvm-strip".into());
    let mut command = Command::new(&strip);
    command.arg("-g").arg(&object);
    run(command, &strip, "install llvm, or name it in LLVM_STRIP")
}

fn run(mut command: Command, name: &str, remedy: &str) -> Result<(), Box<dyn std::error::Error>> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{name} on the probes: {status}").into()),
        Err(error) => Err(format!("{name}: {error} ({remedy})").into()),
    }
}
