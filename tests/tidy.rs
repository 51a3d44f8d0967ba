//! The rules of the tree, held against the tree: who may know whom, where `unsafe` may stand,
//! licences of kernel code, sizes, and links that lead somewhere.

// A tree that cannot be read is a fault like any other: the test stops there.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Our packages that each package may depend on.
const MAY_KNOW: [(&str, &[&str]); 6] = [
    ("codec", &[]),
    ("bpf", &[]),
    ("agent", &["bpf", "codec"]),
    ("collector", &["codec"]),
    ("tests", &["codec"]),
    ("cross/xtask", &[]),
];
/// Our packages, as `use` lines name them.
const OURS: [&str; 6] = ["agent", "bpf", "codec", "collector", "tests", "xtask"];
/// What may not be mentioned at the start of a path in a package: of the standard library, or
/// another's crates.
const MUST_NOT_USE: [(&str, &[&str]); 5] = [
    ("codec", &["std"]),
    ("bpf", &["ureq", "rustls", "std::net"]),
    ("agent/src/entity", &["std::fs", "std::net", "std::time", "std::sync::mpsc"]),
    ("agent/src/flow", &["std::fs", "std::net", "std::time", "std::sync::mpsc"]),
    ("agent/src/batch", &["std::fs", "std::net", "std::time", "std::sync::mpsc"]),
];
/// Longest source file, lines.
const LINES_MAX: usize = 600;
/// Folders that hold no source of ours.
const FOREIGN: [&str; 4] = ["target", ".git", "samples", "generated"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// All files of the tree with one of these endings, as paths from its root.
fn files(endings: &[&str]) -> Vec<PathBuf> {
    let root = root();
    let (mut found, mut folders) = (Vec::new(), vec![root.clone()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let ending = path.extension().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && !FOREIGN.contains(&name.as_str()) {
                folders.push(path);
            } else if path.is_file() && endings.contains(&ending.as_str()) {
                found.push(path.strip_prefix(&root).unwrap().to_path_buf());
            }
        }
    }
    found.sort_unstable();
    found
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Lines that are not comments, with their numbers.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(n, line)| (n + 1, line.trim()))
        .filter(|(_, line)| !line.starts_with("//"))
}

fn assert_none(what: &str, faults: &[String]) {
    assert!(faults.is_empty(), "{what}:\n{}", faults.join("\n"));
}

/// The package that a file belongs to.
fn package(path: &Path) -> Option<&'static str> {
    MAY_KNOW.iter().map(|(package, _)| *package).find(|package| path.starts_with(package))
}

#[test]
fn packages_depend_only_on_whom_they_may_know() {
    let mut faults = Vec::new();
    for (package, may_know) in MAY_KNOW {
        let manifest = Path::new(package).join("Cargo.toml");
        if !root().join(&manifest).exists() {
            continue;
        }
        for line in read(&manifest).lines() {
            let Some((name, rest)) = line.split_once('=') else { continue };
            let is_ours = OURS.contains(&name.trim()) && rest.contains("path");
            if is_ours && !may_know.contains(&name.trim()) {
                faults.push(format!("{}: {line}", manifest.display()));
            }
        }
    }
    assert_none("dependencies that the design forbids", &faults);
}

#[test]
fn files_use_only_whom_their_package_may_know() {
    let mut faults = Vec::new();
    for path in files(&["rs"]) {
        let Some(package) = package(&path) else { continue };
        let name = package.rsplit('/').next().unwrap();
        let may_know = MAY_KNOW.iter().find(|(p, _)| *p == package).unwrap().1;
        for (n, line) in code(&read(&path)) {
            let Some(used) = line.trim_start_matches("pub ").strip_prefix("use ") else {
                continue;
            };
            let first = used.split([':', ';', ' ']).next().unwrap();
            if OURS.contains(&first) && first != name && !may_know.contains(&first) {
                // A module of a package may have the name of another package.
                let module = format!("{package}/src/{first}");
                let is_module =
                    root().join(format!("{module}.rs")).exists() || root().join(module).is_dir();
                if !is_module {
                    faults.push(format!("{}:{n}: {line}", path.display()));
                }
            }
        }
    }
    assert_none("`use` lines that the design forbids", &faults);
}

#[test]
fn pure_parts_touch_no_file_socket_or_clock() {
    let mut faults = Vec::new();
    for path in files(&["rs"]) {
        let shown = path.display().to_string();
        let is_test = ["tests/", "benches/", "fuzz/", "build.rs", "_tests.rs", "/tests.rs"]
            .iter()
            .any(|part| shown.contains(part));
        if is_test {
            continue;
        }
        let text = read(&path);
        // Unit tests stand at the end of a file and may use what they like.
        let shipped = text.split("#[cfg(test)]").next().unwrap();
        for (folder, forbidden) in MUST_NOT_USE {
            let concerns =
                shown.starts_with(&format!("{folder}/")) || shown == format!("{folder}.rs");
            if !concerns {
                continue;
            }
            for (n, line) in code(shipped) {
                let words: BTreeSet<&str> =
                    line.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').collect();
                let hit = forbidden.iter().find(|word| {
                    words.iter().any(|w| w == *word || w.starts_with(&format!("{word}::")))
                });
                if let Some(word) = hit {
                    faults.push(format!("{shown}:{n}: {word} in {line:?}"));
                }
            }
        }
    }
    assert_none("what a pure part must not use", &faults);
}

#[test]
fn unsafe_stands_only_in_bpf() {
    let mut faults = Vec::new();
    for path in files(&["rs"]) {
        if path.starts_with("bpf") {
            continue;
        }
        for (n, line) in code(&read(&path)) {
            let is_unsafe = ["fn", "impl", "trait", "extern"]
                .iter()
                .map(|item| format!("unsafe {item} "))
                .chain([["unsafe", " {"].concat()])
                .any(|words| line.contains(&words));
            if is_unsafe && !path.ends_with("tidy.rs") {
                faults.push(format!("{}:{n}: {line}", path.display()));
            }
        }
    }
    assert_none("unsafe outside bpf", &faults);
}

#[test]
fn kernel_code_names_its_licences() {
    let expected = "SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause";
    let faults: Vec<String> = files(&["c", "h"])
        .into_iter()
        .filter(|path| path.starts_with("bpf"))
        .filter(|path| !read(path).lines().next().unwrap_or_default().contains(expected))
        .map(|path| format!("{}: first line lacks {expected:?}", path.display()))
        .collect();
    assert_none("kernel code without its licences", &faults);
}

#[test]
fn files_have_one_subject_and_no_trailing_blanks() {
    let mut faults = Vec::new();
    let endings = ["rs", "c", "h", "toml", "md", "sh", "bb", "bbappend", "inc", "conf", "service"];
    for path in files(&endings) {
        let text = read(&path);
        let is_source = ["rs", "c", "h"].iter().any(|e| path.extension().unwrap() == *e);
        let lines = text.lines().count();
        if is_source && lines > LINES_MAX {
            faults.push(format!("{}: {lines} lines, at most {LINES_MAX}", path.display()));
        }
        for (n, line) in text.lines().enumerate() {
            if line.ends_with([' ', '\t']) {
                faults.push(format!("{}:{}: ends in blanks", path.display(), n + 1));
            }
        }
        if !text.is_empty() && !text.ends_with('\n') {
            faults.push(format!("{}: its last line has no end", path.display()));
        }
    }
    assert_none("untidy files", &faults);
}

#[test]
fn links_in_pages_lead_to_files() {
    let mut faults = Vec::new();
    for path in files(&["md"]) {
        let folder = root().join(path.parent().unwrap());
        for (n, line) in read(&path).lines().enumerate() {
            for part in line.split("](").skip(1) {
                let target = part.split([')', '#', ' ']).next().unwrap();
                let is_outside = target.is_empty() || target.contains("://");
                if !is_outside && !folder.join(target).exists() {
                    faults.push(format!("{}:{}: {target}", path.display(), n + 1));
                }
            }
        }
    }
    assert_none("links that lead nowhere", &faults);
}
