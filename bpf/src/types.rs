//! Where the types of the running kernel (BTF) come from, by which the probes find their way
//! in its memory: a file that the configuration names, else the file of this kernel's release
//! below `/usr/lib/sysflow/btf`, else the kernel itself. A file is preferred because it holds only what
//! the probes ask for: a kernel's own types are megabytes, and reading them is the agent's
//! memory peak.

use std::fmt;
use std::path::{Path, PathBuf};

/// Folder of files named `<kernel release>.btf`.
const FOLDER: &str = "/usr/lib/sysflow/btf";
/// The kernel's own types.
pub(crate) const KERNEL: &str = "/sys/kernel/btf/vmlinux";

/// Where the types come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Types {
    /// A file that the configuration names.
    Named(PathBuf),
    /// A file of this kernel's release.
    Installed(PathBuf),
    /// The kernel itself.
    Kernel,
    /// There are none.
    Nowhere {
        /// The file that would have been taken.
        wanted: PathBuf,
    },
}

impl Types {
    /// Looks for the types: first `named`, which is not asked whether it exists.
    pub fn find(named: Option<&Path>) -> Types {
        // Linux has this file wherever it has /proc.
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Types::find_in(named, Path::new(FOLDER), release.trim(), Path::new(KERNEL).exists())
    }

    fn find_in(named: Option<&Path>, folder: &Path, release: &str, kernel_has: bool) -> Types {
        let file = folder.join(format!("{release}.btf"));
        match named {
            Some(path) => Types::Named(path.to_path_buf()),
            None if !release.is_empty() && file.is_file() => Types::Installed(file),
            None if kernel_has => Types::Kernel,
            None => Types::Nowhere { wanted: file },
        }
    }

    /// The file, where it is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Types::Named(path) | Types::Installed(path) => Some(path),
            Types::Kernel | Types::Nowhere { .. } => None,
        }
    }
}

impl fmt::Display for Types {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Types::Named(path) => write!(f, "{} (kernel.btf names it)", path.display()),
            Types::Installed(path) => path.display().fmt(f),
            Types::Kernel => write!(f, "{KERNEL} (the running kernel's own)"),
            Types::Nowhere { wanted } => {
                write!(f, "none: neither {KERNEL} nor {}", wanted.display())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_types_are_taken() {
        let folder = std::env::temp_dir().join(format!("sysflow-types-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let file = folder.join("6.1.0.btf");
        std::fs::write(&file, "").unwrap();
        let found = |named, release, kernel| Types::find_in(named, &folder, release, kernel);
        let named = Path::new("/elsewhere");
        assert_eq!(found(Some(named), "6.1.0", true), Types::Named(named.into()));
        assert_eq!(found(None, "6.1.0", true), Types::Installed(file.clone()));
        assert_eq!(found(None, "6.1.1", true), Types::Kernel);
        let wanted = folder.join("6.1.1.btf");
        assert_eq!(found(None, "6.1.1", false), Types::Nowhere { wanted });
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
