//! The tree and its three workspaces, and how cargo is called on them.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;

/// One of the three workspaces, each with a lock file of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workspace {
    /// What runs on a gateway, and the end-to-end tests.
    Device,
    /// The central receiver.
    Collector,
    /// This tool.
    Tool,
}

impl Workspace {
    /// All of them.
    pub const ALL: [Workspace; 3] = [Workspace::Device, Workspace::Collector, Workspace::Tool];

    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Workspace::Device => "device",
            Workspace::Collector => "collector",
            Workspace::Tool => "xtask",
        }
    }

    /// Its folder.
    pub fn folder(self) -> PathBuf {
        match self {
            Workspace::Device => root(),
            Workspace::Collector => root().join("collector"),
            Workspace::Tool => root().join("cross/xtask"),
        }
    }

    /// Where cargo puts what it builds: below `CARGO_TARGET_DIR` if that is set.
    pub fn target(self) -> PathBuf {
        let folder = self.folder();
        match std::env::var_os("CARGO_TARGET_DIR") {
            Some(target) => root().join(target),
            None => folder.join("target"),
        }
    }

    /// The path of a binary that was built with `profile`.
    pub fn binary(self, profile: &str, name: &str) -> PathBuf {
        let folder = if profile == "dev" { "debug" } else { profile };
        self.target().join(folder).join(name)
    }

    /// A call of cargo in this workspace. What `cargo run` has set for this tool itself is
    /// taken away, and rustup never fetches a toolchain on its own.
    pub fn cargo(self, verb: &str) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        command.current_dir(self.folder()).arg(verb);
        command.env("CARGO_TARGET_DIR", self.target()).env("RUSTUP_AUTO_INSTALL", "0");
        for (key, _) in std::env::vars_os() {
            let text = key.to_string_lossy();
            if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST") {
                command.env_remove(&key);
            }
        }
        command
    }
}

/// The root of the tree.
pub fn root() -> PathBuf {
    let tool = Path::new(env!("CARGO_MANIFEST_DIR"));
    tool.ancestors().nth(2).unwrap_or(tool).to_path_buf()
}

/// The version of what runs on a device.
///
/// # Errors
/// If the manifest of the device's workspace does not say it.
pub fn device_version() -> Result<String> {
    let text = std::fs::read_to_string(root().join("Cargo.toml"))?;
    let manifest: toml::Table = toml::from_str(&text)?;
    let package = manifest.get("workspace").and_then(|workspace| workspace.get("package"));
    let version = package.and_then(|package| package.get("version")?.as_str());
    Ok(version.ok_or("Cargo.toml: no workspace.package.version")?.to_string())
}

/// Says what is done next.
pub fn say(what: &str) {
    println!("▸ {what}");
}

/// Runs a command to its end.
///
/// # Errors
/// If it cannot be started or ends with anything but 0: names the command.
pub fn run(command: &mut Command) -> Result {
    let shown = show(command);
    let status = command.status().map_err(|e| format!("start {shown}: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("{shown}: {status}").into()) }
}

/// A command as a person would type it.
pub fn show(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    if let Some(name) = Path::new(&words.concat()).file_name() {
        words = vec![name.to_string_lossy().into_owned()];
    }
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ")
}
