//! A guest's initial file system: a cpio archive in the "newc" form, which kernels unpack
//! themselves. Only what guests have: folders, symbolic links, and files that belong to the superuser.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tests::Result;

/// File type bits.
const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
/// Parts of an archive begin at multiples of this, bytes.
const ALIGNMENT: usize = 4;

/// An archive in the making.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    /// Adds everything below a folder of the host.
    pub(crate) fn add_tree(&mut self, folder: &Path) -> Result {
        self.add_folder_contents(folder, "")
    }

    fn add_folder_contents(&mut self, folder: &Path, prefix: &str) -> Result {
        let mut entries = std::fs::read_dir(folder)?.collect::<std::io::Result<Vec<_>>>()?;
        entries.sort_unstable_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                self.add_folder(&name);
                self.add_folder_contents(&entry.path(), &format!("{name}/"))?;
            } else if metadata.is_symlink() {
                let target = std::fs::read_link(entry.path())?;
                self.add(&name, LINK | 0o777, (0, 0), target.as_os_str().as_bytes());
            } else {
                let mode = metadata.permissions().mode() & 0o777;
                self.add_file(&name, mode, &std::fs::read(entry.path())?);
            }
        }
        Ok(())
    }

    /// Adds a folder; those above it come first.
    pub(crate) fn add_folder(&mut self, name: &str) {
        self.add(name, FOLDER | 0o755, (0, 0), &[]);
    }

    /// Adds a file with these permissions.
    pub(crate) fn add_file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.add(name, FILE | mode, (0, 0), content);
    }

    /// Adds the console, which the first program writes to before it has mounted anything.
    pub(crate) fn add_console(&mut self) {
        self.add_folder("dev");
        self.add("dev/console", CHARACTER_DEVICE | 0o600, (5, 1), &[]);
    }

    /// The whole archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn add(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.inode += 1;
        let length = content.len() as u32;
        let name_length = name.len() as u32 + 1;
        let (owner, links, time, file_device) = ([0, 0], 1, 0, [0, 0]);
        let fields = [
            self.inode,
            mode,
            owner[0],
            owner[1],
            links,
            time,
            length,
            file_device[0],
            file_device[1],
            device.0,
            device.1,
            name_length,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }
}
