//! A memory control group: what its members take, the kernel's share included, and a limit.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use tests::Result;

/// Where the hierarchies are mounted.
const MOUNT: &str = "/sys/fs/cgroup";

/// Which files a hierarchy has.
#[derive(Clone, Copy, Debug)]
enum Version {
    One,
    Two,
}

/// A group, removed with its owner.
#[derive(Debug)]
pub(crate) struct Group {
    path: PathBuf,
    version: Version,
}

/// What a group's members take, bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Memory of processes that no file stands behind.
    pub(crate) anonymous: u64,
    /// What the kernel took on their behalf.
    pub(crate) kernel: u64,
}

impl Usage {
    pub(crate) fn bytes(self) -> u64 {
        self.anonymous + self.kernel
    }
}

impl Group {
    /// Makes a group without members.
    ///
    /// # Errors
    /// If this machine has no control groups for memory, or none can be made.
    pub(crate) fn new(name: &str) -> Result<Group> {
        let (parent, version) = if Path::new(MOUNT).join("memory/memory.limit_in_bytes").is_file() {
            (PathBuf::from(MOUNT).join("memory"), Version::One)
        } else {
            (PathBuf::from(MOUNT), Version::Two)
        };
        if let Version::Two = version {
            fs::write(parent.join("cgroup.subtree_control"), "+memory")
                .map_err(|error| format!("no control groups for memory: {error}"))?;
        }
        let path = parent.join(format!("{name}-{}", std::process::id()));
        fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Group { path, version })
    }

    /// A command that joins the group and becomes the one that is appended to it.
    pub(crate) fn launcher(&self) -> Vec<OsString> {
        let script = r#"echo $$ > "$0" && exec "$@""#;
        let members = self.path.join("cgroup.procs").into_os_string();
        vec!["sh".into(), "-c".into(), script.into(), members]
    }

    /// Sets the limit, and begins anew to note the peak.
    pub(crate) fn limit(&self, bytes: u64) -> Result {
        match self.version {
            Version::One => {
                self.write("memory.swappiness", "0")?;
                self.write("memory.limit_in_bytes", &bytes.to_string())?;
                self.write("memory.max_usage_in_bytes", "0")
            }
            Version::Two => {
                self.write("memory.swap.max", "0")?;
                self.write("memory.max", &bytes.to_string())
            }
        }
    }

    /// What the members take now.
    pub(crate) fn usage(&self) -> Result<Usage> {
        Ok(match self.version {
            Version::One => Usage {
                anonymous: self.field("memory.stat", "rss")?,
                kernel: self.number("memory.kmem.usage_in_bytes")?,
            },
            Version::Two => Usage {
                anonymous: self.field("memory.stat", "anon")?,
                kernel: self.field("memory.stat", "kernel")?,
            },
        })
    }

    /// The peak of all, page cache included, bytes.
    pub(crate) fn peak(&self) -> Result<u64> {
        self.number(match self.version {
            Version::One => "memory.max_usage_in_bytes",
            Version::Two => "memory.peak",
        })
    }

    /// Has the kernel take back what it can: page cache, and its caches of names and inodes. How much
    /// that is remains to be seen in [`Group::usage`].
    ///
    /// # Errors
    /// If the kernel has no such call (before 5.19 with the second hierarchy).
    pub(crate) fn reclaim(&self) -> Result {
        match self.version {
            Version::One => self.write("memory.force_empty", "0"),
            // It refuses where there is less to take back than that, which is so.
            Version::Two => match fs::write(self.path.join("memory.reclaim"), "1G") {
                Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => {
                    Err(format!("memory.reclaim: {error}").into())
                }
                _ => Ok(()),
            },
        }
    }

    /// Members that were killed for want of memory.
    pub(crate) fn kills(&self) -> Result<u64> {
        match self.version {
            Version::One => self.field("memory.oom_control", "oom_kill"),
            Version::Two => self.field("memory.events", "oom_kill"),
        }
    }

    fn write(&self, file: &str, text: &str) -> Result {
        let path = self.path.join(file);
        fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()).into())
    }

    fn read(&self, file: &str) -> Result<String> {
        let path = self.path.join(file);
        fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()).into())
    }

    fn number(&self, file: &str) -> Result<u64> {
        Ok(self.read(file)?.trim().parse()?)
    }

    fn field(&self, file: &str, name: &str) -> Result<u64> {
        let text = self.read(file)?;
        let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(found.ok_or_else(|| format!("{file} has no {name}"))?.trim().parse()?)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its members are children of the test and have ended before.
        let _ = fs::remove_dir(&self.path);
    }
}
