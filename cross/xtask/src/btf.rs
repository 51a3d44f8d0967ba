//! `cargo xtask btf`: of a kernel's types (BTF) those that the probes ask for, a few kilobytes
//! of several megabytes, for kernels that bring none or for agents that must stay small.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;
use crate::build::{self, grouped};
use crate::workspace::show;
use crate::{setup, targets};

/// First bytes of BTF, little endian: magic, version 1, no flags, header of 24 bytes.
const BTF_HEAD: [u8; 8] = [0x9f, 0xeb, 1, 0, 24, 0, 0, 0];
/// Bytes of the header, behind which types and strings lie at the offsets that it names.
const HEADER_BYTES: usize = 24;
/// Structures of the kernel without which the probes see nothing.
const NEEDED: [&str; 5] = ["task_struct", "files_struct", "dentry", "sock_common", "pt_regs"];
/// Smaller ones are a module's, or chance.
const KERNEL_TYPES_BYTES_MIN: usize = 100_000;

/// Minimises the types of `kernel` for the agent of `triple`.
///
/// # Errors
/// If the agent does not build, or `kernel` holds no types.
pub fn run(triple: &str, kernel: &Path, out: &Path) -> Result {
    let probes = build::agent(&targets::find(triple)?)?.probes;
    let (before, after) = minimise(&probes, kernel, out)?;
    let (before, after) = (grouped(before), grouped(after));
    println!("{}: {after} bytes, of {before}", out.display());
    Ok(())
}

/// Writes to `out` what the object `probes` needs of the types of `kernel`: BTF as it is (or
/// packed by xz), an ELF vmlinux, or a kernel's image whose types lie in it unpacked. Returns
/// the sizes before and after, bytes.
///
/// # Errors
/// If bpftool is missing, or `kernel` holds no types.
pub fn minimise(probes: &Path, kernel: &Path, out: &Path) -> Result<(u64, u64)> {
    setup::btf()?;
    let folder = tempfile::tempdir()?;
    let (plain, small) = (folder.path().join("kernel.btf"), folder.path().join("out.btf"));
    let bytes = read(kernel)?;
    // bpftool reads ELF itself: the types may lie in a section that is not loaded.
    let types = if bytes.starts_with(b"\x7fELF") { &bytes } else { find(kernel, &bytes)? };
    std::fs::write(&plain, types).map_err(|e| format!("write {}: {e}", plain.display()))?;
    let before = types.len() as u64;
    let mut command = Command::new(program());
    command.args(["gen", "min_core_btf"]).arg(&plain).arg(&small).arg(probes);
    let made = command.output().map_err(|e| format!("start {}: {e}", show(&command)))?;
    if !made.status.success() {
        let said = String::from_utf8_lossy(&made.stderr);
        let said = said.replace(&*plain.to_string_lossy(), &kernel.to_string_lossy());
        return Err(
            format!("{}: bpftool reads no types in it: {}", kernel.display(), said.trim()).into()
        );
    }
    let small = std::fs::read(&small)?;
    if let Some(missing) = NEEDED.into_iter().find(|name| !has_name(&small, name)) {
        return Err(format!(
            "{}: these are no types of a whole kernel, they lack {missing} (give the vmlinux, or \
             the /sys/kernel/btf/vmlinux of the device)",
            kernel.display()
        )
        .into());
    }
    std::fs::write(out, &small).map_err(|e| format!("write {}: {e}", out.display()))?;
    Ok((before, small.len() as u64))
}

/// Whether the strings of this BTF have such a name.
fn has_name(types: &[u8], name: &str) -> bool {
    let wanted = [b"\0", name.as_bytes(), b"\0"].concat();
    types.windows(wanted.len()).any(|bytes| bytes == wanted)
}

/// Debian keeps it where only the superuser's shell looks.
fn program() -> PathBuf {
    let debian = Path::new("/usr/sbin/bpftool");
    if debian.exists() { debian.to_path_buf() } else { "bpftool".into() }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let bytes = std::fs::read(path).map_err(|e| format!("read {}: {e}", path.display()))?;
    let unpacker = match bytes.as_slice() {
        [0xfd, b'7', b'z', ..] => "xz",
        [0x1f, 0x8b, ..] => "gzip",
        _ => return Ok(bytes),
    };
    let mut command = Command::new(unpacker);
    let output = command
        .args(["--decompress", "--stdout"])
        .arg(path)
        .output()
        .map_err(|e| format!("start {unpacker}: {e}"))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(format!("{}: {}", show(&command), output.status).into())
}

/// The types in a file that begins with them or has them somewhere, as a kernel's image does.
fn find<'b>(path: &Path, bytes: &'b [u8]) -> Result<&'b [u8]> {
    let at = |start: usize| -> Option<&'b [u8]> {
        let rest = bytes.get(start..)?;
        let word = |at: usize| -> Option<usize> {
            let bytes = rest.get(at..at + 4)?.try_into().ok()?;
            usize::try_from(u32::from_le_bytes(bytes)).ok()
        };
        // Types, then strings; the strings begin with an empty one.
        let (types, strings) = (word(8)?.checked_add(word(12)?)?, word(16)?);
        let length = strings.checked_add(word(20)?)?.checked_add(HEADER_BYTES)?;
        let is_whole = types == strings && rest.get(HEADER_BYTES + strings) == Some(&0);
        let is_kernel = start == 0 || length >= KERNEL_TYPES_BYTES_MIN;
        rest.get(..length).filter(|_| is_whole && is_kernel)
    };
    let heads = bytes.windows(BTF_HEAD.len()).enumerate();
    heads.filter(|(_, head)| *head == BTF_HEAD).find_map(|(start, _)| at(start)).ok_or_else(|| {
        format!(
            "{}: holds no types (BTF) that lie open in it: a compressed image hides them, and a \
                 kernel without CONFIG_DEBUG_INFO_BTF has none (give the vmlinux, the \
                 /sys/kernel/btf/vmlinux of the device, or a BTF file that pahole made of a \
                 vmlinux with debug information)",
            path.display()
        )
        .into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(strings: usize) -> Vec<u8> {
        let mut bytes = BTF_HEAD.to_vec();
        for word in [0_u32, 4, 4, strings as u32] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend([7; 4]);
        bytes.extend(vec![0; strings]);
        bytes
    }

    #[test]
    fn types_are_found_alone_and_inside_an_image() {
        let path = Path::new("image");
        let alone = sample(10);
        assert_eq!(find(path, &alone).unwrap(), alone);
        let types = sample(KERNEL_TYPES_BYTES_MIN);
        let image = [&[1; 77], BTF_HEAD.as_slice(), &[9; 40], &types, &[3; 5]].concat();
        assert_eq!(find(path, &image).unwrap(), types);
    }

    #[test]
    fn an_image_without_types_is_named_with_the_option_that_makes_them() {
        let error = find(Path::new("image"), &[1; 5000]).unwrap_err().to_string();
        assert!(error.contains("image") && error.contains("CONFIG_DEBUG_INFO_BTF"), "{error}");
    }
}
