//! What a program is made of, as a CycloneDX document: exactly the crates that cargo compiled for
//! its target, with the checksums of the lock file, the C libraries that are linked with them, and
//! Rust's standard library. The crates that a standard library built here is made of have neither
//! checksum nor licence: they are those of its own lock file, not of ours.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::targets::Target;
use crate::workspace::{Workspace, show};
use crate::{Result, build};

/// What `cargo metadata` says of a crate.
struct Known {
    licence: Option<String>,
    folder: PathBuf,
}

type Crate = (String, String);

/// Writes the list of an agent beside the program that was built for `target`, and returns its path.
///
/// # Errors
/// If the agent does not build, or as [`document`].
pub fn beside_agent(target: &Target) -> Result<PathBuf> {
    let built = build::agent(target)?;
    let time = time();
    let document = document(
        Workspace::Device,
        "sysflow-agent",
        &built.crates,
        target.is_static(),
        time.as_deref(),
    )?;
    let path = built.path.with_extension("cdx.json");
    std::fs::write(&path, serde_json::to_string_pretty(&document)? + "\n")?;
    Ok(path)
}

/// The time that what is made here bears: `SOURCE_DATE_EPOCH`, or that of the last commit.
pub fn time() -> Option<String> {
    std::env::var("SOURCE_DATE_EPOCH").ok().or_else(build::commit_time)
}

/// The document of a workspace's program `program`, linked of `crates`. `is_static` tells that
/// libelf and zlib are in an agent, too. The time is that of `SOURCE_DATE_EPOCH`'s form, Unix
/// seconds.
///
/// # Errors
/// If cargo does not tell of the crates, or a library is not as expected.
pub fn document(
    workspace: Workspace,
    program: &str,
    crates: &BTreeSet<Crate>,
    is_static: bool,
    time: Option<&str>,
) -> Result<Value> {
    let known = metadata(workspace)?;
    let checksums = checksums(workspace)?;
    let version = workspace.version()?;
    let mut components = Vec::new();
    for id in crates {
        let (name, version) = id;
        let purl = format!("pkg:cargo/{name}@{version}");
        let mut component = json!({
            "type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl,
        });
        if let Some(checksum) = checksums.get(id) {
            component["hashes"] = json!([{"alg": "SHA-256", "content": checksum}]);
        }
        let about = known.get(id);
        if let Some(licence) = about.and_then(|about| about.licence.as_ref()) {
            // The form of long ago.
            component["licenses"] = json!([{"expression": licence.replace('/', " OR ")}]);
        }
        components.push(component);
        if name == "libbpf-sys"
            && let Some(about) = about
        {
            components.extend(libraries(&about.folder, is_static)?);
        }
    }
    components.push(standard_library()?);
    let mut metadata = json!({
        "component": {
            "type": "application", "bom-ref": program, "name": program, "version": version,
            "licenses": [{"expression": "Apache-2.0"}],
        },
    });
    if let Some(seconds) = time {
        let moment = time::OffsetDateTime::from_unix_timestamp(seconds.parse()?)?;
        let (year, month, day) = moment.to_calendar_date();
        let (hour, minute, second) = moment.to_hms();
        let month = u8::from(month);
        metadata["timestamp"] =
            json!(format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"));
    }
    let all: Vec<&Value> = components.iter().map(|component| &component["bom-ref"]).collect();
    Ok(json!({
        "bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "metadata": metadata,
        "dependencies": [{"ref": program, "dependsOn": all}],
        "components": components,
    }))
}

/// The C libraries that libbpf-sys brings: libbpf always, the others in a static program.
fn libraries(folder: &Path, is_static: bool) -> Result<Vec<Value>> {
    let read = |file: &str| -> Result<String> {
        let path = folder.join(file);
        Ok(std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?)
    };
    // The word behind a text, without quotes and brackets.
    let behind = |text: &str, start: &str| -> Result<String> {
        let rest = text.split_once(start).map(|(_, rest)| rest).unwrap_or_default();
        let is_of_version = |c: char| c.is_ascii_digit() || c == '.';
        let word = rest.trim_start_matches(['"', '[', ',', ' ']);
        let end = word.find(|c| !is_of_version(c)).unwrap_or(word.len());
        let found = word.get(..end).unwrap_or_default().to_string();
        if found.is_empty() {
            Err(format!("no version behind {start:?}").into())
        } else {
            Ok(found)
        }
    };
    let numbers = read("libbpf/src/libbpf_version.h")?;
    let major = behind(&numbers, "LIBBPF_MAJOR_VERSION")?;
    let minor = behind(&numbers, "LIBBPF_MINOR_VERSION")?;
    let mut found = vec![("libbpf", format!("{major}.{minor}"), "LGPL-2.1-only OR BSD-2-Clause")];
    if is_static {
        let elfutils = behind(&read("elfutils/configure.ac")?, "AC_INIT([elfutils]")?;
        found.push(("elfutils-libelf", elfutils, "GPL-2.0-or-later OR LGPL-3.0-or-later"));
        found.push(("zlib", behind(&read("zlib/zlib.h")?, "define ZLIB_VERSION")?, "Zlib"));
    }
    let component = |(name, version, licence): (&str, String, &str)| {
        let purl = format!("pkg:generic/{name}@{version}");
        json!({
            "type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl,
            "licenses": [{"expression": licence}],
        })
    };
    Ok(found.into_iter().map(component).collect())
}

/// The one that the compiler has, or that is built of its source.
fn standard_library() -> Result<Value> {
    let mut command = Command::new("rustc");
    let output = command.arg("--version").output().map_err(|e| format!("start rustc: {e}"))?;
    let said = String::from_utf8(output.stdout)?;
    let version = said.split(' ').nth(1).ok_or_else(|| format!("rustc --version says {said:?}"))?;
    let purl = format!("pkg:generic/rust-std@{version}");
    Ok(json!({
        "type": "library", "bom-ref": purl, "name": "rust-std", "version": version, "purl": purl,
        "licenses": [{"expression": "MIT OR Apache-2.0"}],
    }))
}

fn metadata(workspace: Workspace) -> Result<BTreeMap<Crate, Known>> {
    let mut command = workspace.cargo("metadata");
    command.args(["--format-version", "1", "--locked"]).stderr(Stdio::inherit());
    let output = command.output().map_err(|e| format!("start {}: {e}", show(&command)))?;
    if !output.status.success() {
        return Err(format!("{}: {}", show(&command), output.status).into());
    }
    let said: Value = serde_json::from_slice(&output.stdout)?;
    let packages = said["packages"].as_array().ok_or("cargo metadata names no packages")?;
    let known = |package: &Value| {
        let text = |key: &str| package[key].as_str().map(str::to_string);
        let folder = PathBuf::from(text("manifest_path")?).parent()?.to_path_buf();
        Some(((text("name")?, text("version")?), Known { licence: text("license"), folder }))
    };
    Ok(packages.iter().filter_map(known).collect())
}

fn checksums(workspace: Workspace) -> Result<BTreeMap<Crate, String>> {
    let path = workspace.folder().join("Cargo.lock");
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let lock: toml::Table = toml::from_str(&text)?;
    let packages = lock.get("package").and_then(toml::Value::as_array);
    let checksum = |package: &toml::Value| {
        let text = |key: &str| package.get(key)?.as_str().map(str::to_string);
        Some(((text("name")?, text("version")?), text("checksum")?))
    };
    Ok(packages.into_iter().flatten().filter_map(checksum).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(workspace: Workspace, name: &str) -> Crate {
        let all = checksums(workspace).unwrap();
        all.into_keys().find(|(found, _)| found == name).unwrap()
    }

    #[test]
    fn a_document_names_what_is_linked_and_nothing_else() {
        let crates = ["libbpf-sys", "log"].map(|name| held(Workspace::Device, name));
        let crates = BTreeSet::from(crates);
        let of = |is_static| {
            let time = Some("1700000000");
            document(Workspace::Device, "sysflow-agent", &crates, is_static, time).unwrap()
        };
        let names = |document: &Value| -> Vec<String> {
            let components = document["components"].as_array().unwrap();
            components.iter().map(|c| c["name"].as_str().unwrap().to_string()).collect()
        };
        let whole = of(true);
        assert_eq!(
            names(&whole),
            ["libbpf-sys", "libbpf", "elfutils-libelf", "zlib", "log", "rust-std"]
        );
        assert_eq!(names(&of(false)), ["libbpf-sys", "libbpf", "log", "rust-std"]);
        assert_eq!(whole["metadata"]["timestamp"], "2023-11-14T22:13:20Z");
        for component in whole["components"].as_array().unwrap() {
            assert!(component["licenses"][0]["expression"].is_string(), "{component}");
            let is_crate = component["purl"].as_str().unwrap().starts_with("pkg:cargo/");
            let checksum = component["hashes"][0]["content"].as_str().unwrap_or_default();
            assert_eq!(checksum.len() == 64, is_crate, "{component}");
        }
    }

    #[test]
    fn the_collectors_crates_are_those_of_its_own_lock_file() {
        let hyper = held(Workspace::Collector, "hyper");
        let crates = BTreeSet::from([hyper.clone()]);
        let document =
            document(Workspace::Collector, "sysflow-collector", &crates, true, None).unwrap();
        assert_eq!(document["components"][0]["version"], hyper.1);
        assert_eq!(document["components"][0]["hashes"][0]["alg"], "SHA-256");
        assert_eq!(document["components"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn a_crate_of_the_standard_library_has_no_checksum() {
        let crates = BTreeSet::from([("log".to_string(), "0.0.1".to_string())]);
        let document = document(Workspace::Device, "sysflow-agent", &crates, true, None).unwrap();
        let crate_of = &document["components"][0];
        assert_eq!((&crate_of["version"], &crate_of["hashes"]), (&json!("0.0.1"), &Value::Null));
        assert_eq!(document["dependencies"][0]["dependsOn"].as_array().unwrap().len(), 2);
    }
}
