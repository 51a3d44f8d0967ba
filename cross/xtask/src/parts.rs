//! What a program is made of: exactly the crates that cargo compiled for its target, the C
//! libraries that are linked with them, Rust's standard library, and what zig puts under a static
//! program. The list (`sbom`) and the licences' texts (`notices`) are both made of this and of
//! nothing else.
//!
//! Not told apart are the crates inside of a standard library that came ready with the toolchain:
//! no file of it says which they are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::workspace::Workspace;
use crate::{Result, zig};

/// A crate's name and version.
pub type Crate = (String, String);

/// Crates, and the folders of their source.
pub type Crates = BTreeMap<Crate, PathBuf>;

/// How files with licences and notices begin, in lower case.
const TEXTS: [&str; 6] = ["licence", "license", "copying", "copyright", "notice", "unlicense"];
/// What the names of programs that speak of licences end in.
const CODE: [&str; 8] = ["rs", "c", "h", "py", "sh", "toml", "json", "yml"];
/// How far below a crate's folder such files are looked for.
const DEPTH_MAX: u32 = 4;
/// What a program says that has LLVM's libunwind in it.
const UNWINDER: &[u8] = b"libunwind: ";

/// A program that was built.
#[derive(Clone, Copy, Debug)]
pub struct Program<'p> {
    /// Whose crates it has, and whose lock file knows their checksums.
    pub workspace: Workspace,
    /// Its name.
    pub name: &'p str,
    /// Where it is.
    pub file: &'p Path,
    /// The crates of registries that it is linked of.
    pub crates: &'p Crates,
    /// Where zig has its libraries, if they are in it: in a static program.
    pub zig: Option<&'p Path>,
}

/// A part of a program that others wrote.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// Its version; none, if nothing tells it.
    pub version: Option<String>,
    /// Whether it is a crate of a registry.
    pub is_crate: bool,
    /// Its licence, as SPDX has it.
    pub licence: Option<String>,
    /// SHA-256 of what the registry has.
    pub checksum: Option<String>,
    /// Who wrote it and where it is kept, as far as it says.
    pub origin: Vec<String>,
    /// Files with its licences and notices.
    pub texts: Vec<PathBuf>,
}

impl Part {
    fn library(name: &str, version: Option<String>, licence: &str, texts: Vec<PathBuf>) -> Part {
        Part {
            name: name.to_string(),
            version,
            is_crate: false,
            licence: Some(licence.to_string()),
            checksum: None,
            origin: Vec::new(),
            texts,
        }
    }
}

/// What a program of this workspace is under, others' parts apart: the agent holds the probes.
pub fn licence(workspace: Workspace) -> &'static str {
    match workspace {
        Workspace::Device => "Apache-2.0 AND (GPL-2.0-only OR BSD-2-Clause)",
        Workspace::Collector | Workspace::Tool => "Apache-2.0",
    }
}

/// The parts of a program: crates by name, C libraries behind the crate that brings them, then
/// what is under all of them.
///
/// # Errors
/// If a file cannot be read, or a library is not as expected.
pub fn of(program: &Program<'_>) -> Result<Vec<Part>> {
    let checksums = checksums(program.workspace)?;
    let mut parts = Vec::new();
    for (id, folder) in program.crates {
        let is_libbpf = id.0 == "libbpf-sys";
        // It brings whole trees of others, whose parts follow.
        let depth_max = if is_libbpf { 0 } else { DEPTH_MAX };
        parts.push(of_crate(id, folder, checksums.get(id).cloned(), depth_max)?);
        if is_libbpf {
            parts.extend(libraries(folder)?);
        }
    }
    parts.push(standard_library()?);
    if let Some(zig) = program.zig {
        let holds = read(program.file)?;
        parts.extend(under(zig, &holds)?);
    }
    Ok(parts)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    Ok(std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?)
}

fn read_text(path: &Path) -> Result<String> {
    Ok(std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?)
}

fn of_crate(id: &Crate, folder: &Path, checksum: Option<String>, depth_max: u32) -> Result<Part> {
    let path = folder.join("Cargo.toml");
    let manifest: toml::Table =
        toml::from_str(&read_text(&path)?).map_err(|e| format!("{}: {e}", path.display()))?;
    let package = manifest.get("package");
    let field = |key: &str| package.and_then(|package| package.get(key));
    let text = |key: &str| field(key).and_then(toml::Value::as_str).map(str::to_string);
    let authors = field("authors").and_then(toml::Value::as_array);
    let authors = authors.into_iter().flatten().filter_map(toml::Value::as_str);
    let mut texts = Vec::new();
    find_texts(folder, depth_max, &mut texts)?;
    if let Some(named) = text("license-file").map(|name| folder.join(name))
        && named.is_file()
        && !texts.contains(&named)
    {
        texts.push(named);
    }
    texts.sort();
    Ok(Part {
        name: id.0.clone(),
        version: Some(id.1.clone()),
        is_crate: true,
        // The slash is the form of long ago.
        licence: text("license").map(|licence| licence.replace('/', " OR ")),
        checksum,
        origin: authors.map(str::to_string).chain(text("repository")).collect(),
        texts,
    })
}

/// Whether a file of this name holds a licence or a notice.
fn is_text(name: &str) -> bool {
    let name = name.to_lowercase();
    let ending = name.rsplit_once('.').map(|(_, ending)| ending).unwrap_or_default();
    TEXTS.iter().any(|start| name.starts_with(start)) && !CODE.contains(&ending)
}

fn find_texts(folder: &Path, depth: u32, found: &mut Vec<PathBuf>) -> Result {
    let entries = std::fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() && depth > 0 {
            find_texts(&path, depth - 1, found)?;
        } else if kind.is_file() && is_text(&entry.file_name().to_string_lossy()) {
            found.push(path);
        }
    }
    Ok(())
}

/// The version behind `start` in a text, without quotes and brackets.
fn version_behind(text: &str, start: &str) -> Result<String> {
    let rest = text.split_once(start).map(|(_, rest)| rest).unwrap_or_default();
    let is_of_version = |c: char| c.is_ascii_digit() || c == '.';
    let word = rest.trim_start_matches(['"', '[', ',', ' ']);
    let end = word.find(|c| !is_of_version(c)).unwrap_or(word.len());
    let found = word.get(..end).unwrap_or_default().to_string();
    if found.is_empty() { Err(format!("no version behind {start:?}").into()) } else { Ok(found) }
}

/// The C libraries that libbpf-sys brings: agents are built with all of them in it.
fn libraries(folder: &Path) -> Result<Vec<Part>> {
    let read = |file: &str| read_text(&folder.join(file));
    let numbers = read("libbpf/src/libbpf_version.h")?;
    let major = version_behind(&numbers, "LIBBPF_MAJOR_VERSION")?;
    let minor = version_behind(&numbers, "LIBBPF_MINOR_VERSION")?;
    let elfutils = version_behind(&read("elfutils/configure.ac")?, "AC_INIT([elfutils]")?;
    let zlib = version_behind(&read("zlib/zlib.h")?, "define ZLIB_VERSION")?;
    let libraries = [
        ("libbpf", format!("{major}.{minor}"), "LGPL-2.1-only OR BSD-2-Clause", "libbpf"),
        ("elfutils-libelf", elfutils, "GPL-2.0-or-later OR LGPL-3.0-or-later", "elfutils"),
        ("zlib", zlib, "Zlib", "zlib"),
    ];
    let mut parts = Vec::new();
    for (name, version, licence, place) in libraries {
        let mut texts = Vec::new();
        find_texts(&folder.join(place), 0, &mut texts)?;
        texts.sort();
        parts.push(Part::library(name, Some(version), licence, texts));
    }
    Ok(parts)
}

/// The one that the compiler has, or that is built of its source; with it goes compiler_builtins.
fn standard_library() -> Result<Part> {
    let ask = |word: &str| -> Result<String> {
        let mut command = Command::new("rustc");
        command.args(word.split(' ')).current_dir(crate::workspace::root());
        let output = command.output().map_err(|e| format!("start rustc: {e}"))?;
        Ok(String::from_utf8(output.stdout)?.trim().to_string())
    };
    let said = ask("--version")?;
    let version = said.split(' ').nth(1).ok_or_else(|| format!("rustc --version says {said:?}"))?;
    // Distributions have them elsewhere.
    let folder = Path::new(&ask("--print sysroot")?).join("share/doc/rust/licenses");
    let texts = ["MIT.txt", "Apache-2.0.txt", "LLVM-exception.txt"].map(|name| folder.join(name));
    let mut part = Part::library(
        "rust-std",
        Some(version.to_string()),
        "(MIT OR Apache-2.0) AND MIT AND Apache-2.0 WITH LLVM-exception",
        texts.into_iter().filter(|path| path.is_file()).collect(),
    );
    part.origin = ["The Rust Project contributors", "https://github.com/rust-lang/rust"]
        .map(String::from)
        .into();
    Ok(part)
}

/// What zig puts under a static program that holds these bytes: cargo-zigbuild leaves out the C
/// library that Rust would bring.
fn under(zig: &Path, program: &[u8]) -> Result<Vec<Part>> {
    let musl = zig.join("lib/libc/musl");
    let version = version_behind(&read_text(&musl.join("src/internal/version.h"))?, "VERSION")?;
    let texts = vec![musl.join("COPYRIGHT")];
    let mut parts = vec![Part::library("musl", Some(version), "MIT", texts)];
    // Functions of C and those that compilers call.
    let texts = vec![zig.join("LICENSE")];
    parts.push(Part::library("zig-runtime", Some(zig::version().to_string()), "MIT", texts));
    if program.windows(UNWINDER.len()).any(|bytes| bytes == UNWINDER) {
        let texts = vec![zig.join("lib/libunwind/LICENSE.TXT")];
        // No file tells which of LLVM's versions zig has.
        parts.push(Part::library("libunwind", None, "Apache-2.0 WITH LLVM-exception", texts));
    }
    Ok(parts)
}

fn checksums(workspace: Workspace) -> Result<BTreeMap<Crate, String>> {
    let lock: toml::Table = toml::from_str(&read_text(&workspace.folder().join("Cargo.lock"))?)?;
    let packages = lock.get("package").and_then(toml::Value::as_array);
    let checksum = |package: &toml::Value| {
        let text = |key: &str| package.get(key)?.as_str().map(str::to_string);
        Some(((text("name")?, text("version")?), text("checksum")?))
    };
    Ok(packages.into_iter().flatten().filter_map(checksum).collect())
}

/// What tests of the list and of the notices are made of.
#[cfg(test)]
pub(crate) mod example {
    use std::process::Stdio;

    use serde_json::Value;

    use super::{Crates, Path, PathBuf, Workspace};

    /// The crates of these names that a workspace's lock file has.
    pub(crate) fn crates(workspace: Workspace, names: &[&str]) -> Crates {
        let mut command = workspace.cargo("metadata");
        command.args(["--format-version", "1", "--locked"]).stderr(Stdio::inherit());
        let output = command.output().unwrap();
        assert!(output.status.success(), "cargo metadata: {}", output.status);
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        let entry = |package: &Value| {
            let text = |key: &str| package[key].as_str().map(str::to_string);
            let folder = PathBuf::from(text("manifest_path")?).parent()?.to_path_buf();
            Some(((text("name")?, text("version")?), folder))
        };
        let all = said["packages"].as_array().unwrap().iter().filter_map(entry);
        let found: Crates = all.filter(|((name, _), _)| names.contains(&name.as_str())).collect();
        assert!(found.len() >= names.len(), "{found:?}");
        found
    }

    /// A crate of no registry.
    pub(crate) fn made_up(folder: &Path, name: &str, manifest: &str) -> Crates {
        let folder = folder.join(name);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("Cargo.toml"), format!("[package]\n{manifest}")).unwrap();
        Crates::from([((name.to_string(), "0.0.1".to_string()), folder)])
    }

    /// Zig's libraries, and a program that has an unwinder or not.
    pub(crate) fn zig_and_program(folder: &Path, has_unwinder: bool) -> (PathBuf, PathBuf) {
        let zig = folder.join("zig");
        for (file, text) in [
            ("LICENSE", "zig may be used"),
            ("lib/libunwind/LICENSE.TXT", "the unwinder may be used"),
            ("lib/libc/musl/COPYRIGHT", "musl may be used"),
            ("lib/libc/musl/src/internal/version.h", "#define VERSION \"1.2.5\"\n"),
        ] {
            let path = zig.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let program = folder.join("program");
        let says: &[u8] = if has_unwinder { b"\0libunwind: %s\0" } else { b"\0unwind\0" };
        std::fs::write(&program, says).unwrap();
        (zig, program)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::root;

    #[test]
    fn the_probes_licence_is_told_alike_wherever_it_is_told() {
        let manifest: toml::Table =
            toml::from_str(&read_text(&root().join("bpf/Cargo.toml")).unwrap()).unwrap();
        assert_eq!(manifest["package"]["license"].as_str(), Some(licence(Workspace::Device)));
        let recipe =
            root().join("yocto/meta-sysflow/recipes-sysflow/sysflow-agent/sysflow-agent_0.1.0.bb");
        let bitbakes = licence(Workspace::Device).replace("AND", "&").replace("OR", "|");
        // Behind it those of the parts, which `crates` knows.
        let line = format!("\nLICENSE = \"{bitbakes} & ");
        assert!(read_text(&recipe).unwrap().contains(&line), "{line}");
    }

    #[test]
    fn licences_are_told_from_programs_that_speak_of_them() {
        for name in ["LICENSE", "license-mit", "COPYING-GPLV2", "LICENSE.BSD-2-Clause", "Notice.md"]
        {
            assert!(is_text(name), "{name}");
        }
        for name in ["license.rs", "copyright.py", "README.md", "my-license"] {
            assert!(!is_text(name), "{name}");
        }
    }
}
