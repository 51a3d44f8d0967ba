//! `cargo xtask crates`: the list of crates that the Yocto recipe fetches, made of the device
//! workspace's lock file. BitBake fetches them before anything is compiled; cargo then works
//! without a network.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde::Deserialize;

use crate::Result;
use crate::workspace::{Workspace, root, say};

/// The source of crates, as lock files have it.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

#[derive(Deserialize)]
struct Lock {
    package: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    source: Option<String>,
    checksum: Option<String>,
}

/// The list.
pub fn file() -> PathBuf {
    root().join("yocto/meta-sysflow/recipes-sysflow/sysflow-agent/sysflow-agent-crates.inc")
}

/// What the list has to say.
///
/// # Errors
/// If the lock file cannot be read, or a crate comes from elsewhere than the registry or has no
/// checksum.
pub fn wanted() -> Result<String> {
    let path = Workspace::Device.folder().join("Cargo.lock");
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    of_lock(&text)
}

fn of_lock(text: &str) -> Result<String> {
    let lock: Lock = toml::from_str(text).map_err(|e| format!("Cargo.lock: {e}"))?;
    let mut places = String::new();
    let mut checksums = String::new();
    // Our own packages have no source.
    for package in lock.package.iter().filter(|package| package.source.is_some()) {
        let Package { name, version, source, checksum } = package;
        if source.as_deref() != Some(REGISTRY) {
            return Err(format!("{name} {version} is not of the registry: {source:?}").into());
        }
        let checksum =
            checksum.as_ref().ok_or_else(|| format!("{name} {version} has no checksum"))?;
        writeln!(places, "    crate://crates.io/{name}/{version};name={name}-{version} \\")?;
        writeln!(checksums, "SRC_URI[{name}-{version}.sha256sum] = \"{checksum}\"")?;
    }
    Ok(format!(
        "# Made by `cargo xtask crates` of Cargo.lock.\n\nSRC_URI += \" \\\n{places}\"\n\n{checksums}"
    ))
}

/// Writes the list.
///
/// # Errors
/// As [`wanted`]; and if it cannot be written.
pub fn run() -> Result {
    let (path, text) = (file(), wanted()?);
    say(&format!("{}: {} crates", path.display(), text.matches("crate://").count()));
    Ok(std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recipes_list_is_that_of_the_lock_file() {
        let held = std::fs::read_to_string(file()).unwrap();
        assert!(held == wanted().unwrap(), "{}: run `cargo xtask crates`", file().display());
        assert!(held.matches("crate://").count() > 50);
    }

    /// Whether all that an SPDX expression without brackets asks for is among these licences.
    fn is_met(expression: &str, by: &[&str]) -> bool {
        let mut choices = expression.split(" OR ");
        choices.any(|choice| choice.split(" AND ").all(|licence| by.contains(&licence)))
    }

    #[test]
    fn the_recipe_names_the_licences_of_what_is_linked() {
        let recipe = file().with_file_name("sysflow-agent_0.1.0.bb");
        let recipe = std::fs::read_to_string(recipe).unwrap();
        let (_, rest) = recipe.split_once("\nLICENSE = \"").unwrap();
        let named: Vec<&str> = rest.split('"').next().unwrap().split(" & ").collect();
        let mut command = Workspace::Device.cargo("tree");
        command.args([
            "--locked",
            "--prefix",
            "none",
            "--format",
            "{l}\t{p}",
            "--package",
            "agent",
        ]);
        command.args(["--edges", "normal,no-proc-macro", "--target", "aarch64-unknown-linux-gnu"]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8(output.stdout).unwrap();
        // A path behind the name is one of our own packages.
        let others = said.lines().filter(|line| !line.contains(" (/"));
        // What libbpf-sys compiles in: of its licences the one that asks for less.
        let others: Vec<&str> = others.chain(["BSD-2-Clause\tlibbpf"]).collect();
        assert!(others.len() > 50, "{said}");
        for line in others {
            let expression = line.split('\t').next().unwrap_or_default().replace('/', " OR ");
            assert!(
                is_met(&expression, &named),
                "LICENSE of the recipe lacks what {line} asks for"
            );
        }
        assert!(is_met("MIT AND ISC OR Zlib", &["ISC", "MIT"]));
        assert!(!is_met("MIT AND ISC OR Zlib", &["MIT"]));
    }

    #[test]
    fn own_packages_are_left_out_and_foreign_sources_refused() {
        let own = "[[package]]\nname = \"agent\"\nversion = \"0.1.0\"\n";
        let crate_of = |source: &str| {
            format!(
                "{own}[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nsource = {source:?}\n\
                 checksum = \"00\"\n"
            )
        };
        let list = of_lock(&crate_of(REGISTRY)).unwrap();
        assert!(list.contains("crate://crates.io/a/1.0.0;name=a-1.0.0 \\"), "{list}");
        assert!(list.contains("SRC_URI[a-1.0.0.sha256sum] = \"00\"") && !list.contains("agent"));
        let refused = of_lock(&crate_of("git+https://example.org/a")).unwrap_err();
        assert!(refused.to_string().contains("a 1.0.0 is not of the registry"), "{refused}");
    }
}
