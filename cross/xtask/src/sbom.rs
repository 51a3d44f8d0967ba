//! What a program is made of, as a CycloneDX document, and beside a build as notices, too. The
//! crates that a standard library built here is made of have no checksum: they are those of its
//! own lock file, not of ours.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::parts::{self, Part, Program};
use crate::targets::Target;
use crate::workspace::Workspace;
use crate::{Result, build, notices, zig};

/// Writes the list of an agent, and its parts' notices, beside the program that was built for
/// `target`, and returns their paths.
///
/// # Errors
/// If the agent does not build, or as [`document`].
pub fn beside_agent(target: &Target) -> Result<[PathBuf; 2]> {
    let built = build::agent(target)?;
    let zig = if target.is_static() { Some(zig::libraries()?) } else { None };
    let program = Program {
        workspace: Workspace::Device,
        name: "sysflow-agent",
        file: &built.path,
        crates: &built.crates,
        zig: zig.as_deref(),
    };
    let parts = parts::of(&program)?;
    let list = document(&program, &parts, time().as_deref())?;
    let write = |ending: &str, text: String| -> Result<PathBuf> {
        let path = built.path.with_extension(ending);
        std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(path)
    };
    Ok([
        write("cdx.json", serde_json::to_string_pretty(&list)? + "\n")?,
        write("third-party.txt", notices::of(program.name, &parts)?)?,
    ])
}

/// The time that what is made here bears: `SOURCE_DATE_EPOCH`, or that of the last commit.
pub fn time() -> Option<String> {
    std::env::var("SOURCE_DATE_EPOCH").ok().or_else(build::commit_time)
}

/// The document of a program with these parts. The time is that of `SOURCE_DATE_EPOCH`'s form,
/// Unix seconds.
///
/// # Errors
/// If the time is none, or the workspace tells no version.
pub fn document(program: &Program<'_>, parts: &[Part], time: Option<&str>) -> Result<Value> {
    let Program { workspace, name, .. } = *program;
    let components: Vec<Value> = parts.iter().map(component).collect();
    let mut metadata = json!({
        "component": {
            "type": "application", "bom-ref": name, "name": name, "version": workspace.version()?,
            "licenses": [{"expression": parts::licence(workspace)}],
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
        "dependencies": [{"ref": name, "dependsOn": all}],
        "components": components,
    }))
}

fn component(part: &Part) -> Value {
    let Part { name, version, .. } = part;
    let kind = if part.is_crate { "cargo" } else { "generic" };
    let mut purl = format!("pkg:{kind}/{name}");
    if let Some(version) = version {
        purl = format!("{purl}@{version}");
    }
    let mut component = json!({"type": "library", "bom-ref": purl, "name": name, "purl": purl});
    if let Some(version) = version {
        component["version"] = json!(version);
    }
    if let Some(checksum) = &part.checksum {
        component["hashes"] = json!([{"alg": "SHA-256", "content": checksum}]);
    }
    if let Some(licence) = &part.licence {
        component["licenses"] = json!([{"expression": licence}]);
    }
    component
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::parts::{Crates, example};

    fn of(workspace: Workspace, crates: &Crates, zig: Option<&Path>, file: &Path) -> Value {
        let program = Program { workspace, name: "program", file, crates, zig };
        let parts = parts::of(&program).unwrap();
        document(&program, &parts, Some("1700000000")).unwrap()
    }

    fn names(document: &Value) -> Vec<&str> {
        let components = document["components"].as_array().unwrap();
        components.iter().map(|component| component["name"].as_str().unwrap()).collect()
    }

    #[test]
    fn a_document_names_what_is_linked_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let (zig, file) = example::zig_and_program(folder.path(), false);
        let crates = example::crates(Workspace::Device, &["libbpf-sys", "log"]);
        let whole = of(Workspace::Device, &crates, Some(&zig), &file);
        let libraries = ["libbpf-sys", "libbpf", "elfutils-libelf", "zlib", "log", "rust-std"];
        assert_eq!(names(&whole), [libraries.as_slice(), &["musl", "zig-runtime"]].concat());
        // With a C library of the device's, the others are in it all the same.
        assert_eq!(names(&of(Workspace::Device, &crates, None, &file)), libraries);
        assert_eq!(whole["metadata"]["timestamp"], "2023-11-14T22:13:20Z");
        let own = &whole["metadata"]["component"]["licenses"][0]["expression"];
        assert_eq!(own, "Apache-2.0 AND (GPL-2.0-only OR BSD-2-Clause)");
        for component in whole["components"].as_array().unwrap() {
            assert!(component["licenses"][0]["expression"].is_string(), "{component}");
            assert!(component["version"].as_str().unwrap().contains('.'), "{component}");
            let is_crate = component["purl"].as_str().unwrap().starts_with("pkg:cargo/");
            let checksum = component["hashes"][0]["content"].as_str().unwrap_or_default();
            assert_eq!(checksum.len() == 64, is_crate, "{component}");
        }
    }

    #[test]
    fn the_collectors_crates_are_those_of_its_own_lock_file() {
        let folder = tempfile::tempdir().unwrap();
        let (zig, file) = example::zig_and_program(folder.path(), true);
        let crates = example::crates(Workspace::Collector, &["hyper"]);
        let document = of(Workspace::Collector, &crates, Some(&zig), &file);
        assert_eq!(names(&document), ["hyper", "rust-std", "musl", "zig-runtime", "libunwind"]);
        let components = &document["components"];
        let version = crates.keys().next().map(|(_, version)| version.as_str());
        assert_eq!(components[0]["version"].as_str(), version);
        assert_eq!(components[0]["hashes"][0]["alg"], "SHA-256");
        assert_eq!(components[2]["purl"], "pkg:generic/musl@1.2.5");
        // Nothing tells which it is.
        assert_eq!(
            (&components[4]["version"], &components[4]["purl"]),
            (&Value::Null, &json!("pkg:generic/libunwind"))
        );
        let own = &document["metadata"]["component"]["licenses"][0]["expression"];
        assert_eq!(own, "Apache-2.0");
    }

    #[test]
    fn a_crate_of_the_standard_library_has_no_checksum() {
        let folder = tempfile::tempdir().unwrap();
        let crates = example::made_up(folder.path(), "log", "license = \"MIT/Apache-2.0\"\n");
        let document = of(Workspace::Device, &crates, None, folder.path());
        let crate_of = &document["components"][0];
        assert_eq!((&crate_of["version"], &crate_of["hashes"]), (&json!("0.0.1"), &Value::Null));
        assert_eq!(crate_of["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert_eq!(document["dependencies"][0]["dependsOn"].as_array().unwrap().len(), 2);
    }
}
