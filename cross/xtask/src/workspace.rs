//! The tree and its three workspaces, and how cargo is called on them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::Instant;

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

    fn manifest(self) -> Result<toml::Table> {
        let path = self.folder().join("Cargo.toml");
        let text =
            std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(toml::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?)
    }

    /// The version of what it builds.
    ///
    /// # Errors
    /// If the manifest does not say it.
    pub fn version(self) -> Result<String> {
        let manifest = self.manifest()?;
        let package = match self {
            Workspace::Device => manifest.get("workspace").and_then(|all| all.get("package")),
            Workspace::Collector | Workspace::Tool => manifest.get("package"),
        };
        let version = package.and_then(|package| package.get("version")?.as_str());
        let missing = || format!("{}: Cargo.toml tells no version", self.name());
        Ok(version.ok_or_else(missing)?.to_string())
    }

    /// A call of cargo in this workspace. What `cargo run` has set for this tool itself is
    /// taken away, and rustup never fetches a toolchain on its own. Where code is judged, clang's
    /// warnings of the probes are errors.
    pub fn cargo(self, verb: &str) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        command.current_dir(self.folder()).arg(verb);
        command.env("CARGO_TARGET_DIR", self.target()).env("RUSTUP_AUTO_INSTALL", "0");
        if ["clippy", "doc", "test"].contains(&verb) {
            command.env("SYSFLOW_PROBES_STRICT", "1");
        }
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

/// The tree's files, tracked or new, from its root.
///
/// # Errors
/// If this is no checkout.
pub fn files() -> Result<Vec<PathBuf>> {
    let mut git = Command::new("git");
    git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    git.current_dir(root()).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = git.output().map_err(|e| format!("start git: {e}"))?;
    if !output.status.success() {
        let root = root();
        return Err(
            format!("{}: git cannot list its files: take a git checkout", root.display()).into()
        );
    }
    let names = output.stdout.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let files = names.map(|name| PathBuf::from(OsStr::from_bytes(name)));
    // A file that was deleted and not yet committed is listed all the same.
    Ok(files.filter(|file| root().join(file).exists()).collect())
}

/// Who keeps the packages, `NAME <ADDRESS>`: `workspace.package.authors` of Cargo.toml, unless
/// Debian's DEBFULLNAME and DEBEMAIL, with which a distributor names itself, say otherwise.
///
/// # Errors
/// If the manifest names nobody.
pub fn maintainer() -> Result<String> {
    let manifest = Workspace::Device.manifest()?;
    let package = manifest.get("workspace").and_then(|workspace| workspace.get("package"));
    let first = package.and_then(|package| package.get("authors")?.as_array()?.first()?.as_str());
    let own = first.ok_or("Cargo.toml: workspace.package.authors names nobody")?;
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    Ok(named(own, set("DEBFULLNAME"), set("DEBEMAIL")))
}

/// A maintainer, another name or address in place of its own. The address alone may be a whole
/// `NAME <ADDRESS>`.
fn named(own: &str, name: Option<String>, address: Option<String>) -> String {
    let own_parts = own.trim_end_matches('>').split_once(" <").unwrap_or((own, ""));
    let address = address.unwrap_or(own_parts.1.to_string());
    if name.is_none() && address.contains('<') {
        return address;
    }
    format!("{} <{address}>", name.unwrap_or(own_parts.0.to_string()))
}

/// Says what is done next, and how many seconds after the first word.
pub fn say(what: &str) {
    static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);
    println!("▸ {:>4} s  {what}", BEGUN.elapsed().as_secs());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distributor_names_itself() {
        let own = "Makers <makers@a.example>";
        let set = |text: &str| Some(text.to_string());
        assert_eq!(named(own, None, None), own);
        assert_eq!(named(own, set("Us"), set("us@b.example")), "Us <us@b.example>");
        assert_eq!(named(own, None, set("us@b.example")), "Makers <us@b.example>");
        assert_eq!(named(own, None, set("Us <us@b.example>")), "Us <us@b.example>");
        assert_eq!(named(own, set("Us"), None), "Us <makers@a.example>");
    }

    #[test]
    fn the_tree_tells_its_versions_and_its_maintainer() {
        for workspace in Workspace::ALL {
            assert!(workspace.version().unwrap().starts_with("0."), "{}", workspace.name());
        }
        assert!(maintainer().unwrap().contains('@'));
    }
}
