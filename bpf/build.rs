//! Compiles the probes with clang and leaves the object for `include_bytes!`. It needs no
//! kernel headers, no libc and no libelf on the build host; libbpf's BPF headers come from
//! the libbpf-sys crate.
//!
//! `CLANG` and `LLVM_OBJCOPY` name other programs than `clang` and `llvm-objcopy`. With
//! `SYSFLOW_PROBES_STRICT=1`, as `cargo xtask check` and `test` have it, a warning of clang's is an
//! error; elsewhere a newer clang may warn of more, and builds all the same.

use std::env;
use std::path::PathBuf;
use std::process::Command;

const STRICT: &str = "SYSFLOW_PROBES_STRICT";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arch = match env::var("CARGO_CFG_TARGET_ARCH")?.as_str() {
        "x86_64" => "x86",
        "aarch64" => "arm64",
        "arm" => "arm",
        "riscv64" => "riscv",
        other => return Err(format!("the probes do not know the architecture {other}").into()),
    };
    let manifest = env::var("CARGO_MANIFEST_DIR")?;
    let source = PathBuf::from(&manifest).join("src");
    let object = PathBuf::from(env::var("OUT_DIR")?).join("probes.bpf.o");
    let include = env::var("DEP_BPF_INCLUDE")?;
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    println!("cargo:rerun-if-changed=src");
    for variable in ["CLANG", "LLVM_OBJCOPY", STRICT] {
        println!("cargo:rerun-if-env-changed={variable}");
    }

    let mut compile = Command::new(&clang);
    compile
        .args(["-target", "bpf", "-g", "-O2", "-Wall", "-Wextra"])
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
    if env::var_os(STRICT).is_some_and(|value| value == "1") {
        compile.arg("-Werror");
    }
    if arch == "arm" {
        compile.arg("-DVOLUME_SLOTS=8");
    }
    run(compile, &clang, "install clang, or name it in CLANG")?;

    // The debug information has done its work (BTF is made from it); BTF itself stays. What only
    // linkers and verifier logs would read is half of the object, and every device would carry it:
    // the relocations of `.BTF.ext` with their labels, and the lines of the source.
    let objcopy = env::var("LLVM_OBJCOPY").unwrap_or_else(|_| "llvm-objcopy".into());
    let remedy = "install llvm, or name it in LLVM_OBJCOPY";
    let extension = object.with_extension("ext");
    let mut dump = Command::new(&objcopy);
    dump.arg(format!("--dump-section=.BTF.ext={}", extension.display())).arg(&object);
    run(dump, &objcopy, remedy)?;
    let lines_cut = without_lines(&std::fs::read(&extension)?)
        .ok_or("the probes' .BTF.ext is not laid out as libbpf 1 reads it")?;
    std::fs::write(&extension, lines_cut)?;
    let mut strip = Command::new(&objcopy);
    strip
        .args(["--strip-debug", "--remove-section=.rel.BTF.ext", "--strip-unneeded"])
        .arg(format!("--update-section=.BTF.ext={}", extension.display()))
        .arg(&object);
    run(strip, &objcopy, remedy)
}

/// Bytes of the header of `.BTF.ext` that are read here: magic, version, flags, its own length,
/// then offset and length of functions, of lines, and of CO-RE relocations.
const HEADER_BYTES: usize = 32;
const LINES: usize = 16;
const RELOCATIONS: usize = 24;

/// `.BTF.ext` without the lines of the source: the relocations move up into their place.
fn without_lines(bytes: &[u8]) -> Option<Vec<u8>> {
    let word = |at: usize| -> Option<usize> {
        let word = bytes.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(word)).ok()
    };
    // Offsets count from the end of the header.
    let header = word(4).filter(|bytes| *bytes >= HEADER_BYTES)?;
    let (lines, length) = (header + word(LINES)?, word(LINES + 4)?);
    let relocations = header + word(RELOCATIONS)?;
    if relocations != lines + length {
        return None;
    }
    let mut out = [bytes.get(..lines)?, bytes.get(lines + length..)?].concat();
    out.get_mut(LINES + 4..LINES + 8)?.fill(0);
    let moved = u32::try_from(relocations - length - header).ok()?;
    out.get_mut(RELOCATIONS..RELOCATIONS + 4)?.copy_from_slice(&moved.to_le_bytes());
    Some(out)
}

fn run(mut command: Command, name: &str, remedy: &str) -> Result<(), Box<dyn std::error::Error>> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{name} on the probes: {status}").into()),
        Err(error) => Err(format!("{name}: {error} ({remedy})").into()),
    }
}
