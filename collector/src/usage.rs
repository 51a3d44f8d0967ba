//! How much of the store each agent takes, and the bound of it (`store.bytes_per_agent_max`).
//!
//! Counted is what lies in the agent's folder, frames, `.sf` files and folders, each rounded up to
//! [`BLOCK_BYTES`]: small files take a disk as well as large ones. The count is in a small file in
//! that folder, not in memory, so that a start costs nothing and receivers over one directory share
//! it. It is raised before frames are written: a crash leaves it too high, never too low. Files are
//! looked through only where there is no count, and where it says that the bound is reached: what
//! was removed by hand is found then. Several receivers that one agent writes to in the same moment
//! can pass the bound, by what they take meanwhile.
//!
//! Without a bound nothing is counted, and counts of before are removed: they would be old.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::body::Refusal;
use crate::layout;
use crate::manifest::to_json;

/// What a file system gives out at a time, as a rule, bytes.
const BLOCK_BYTES: u64 = 4096;
/// Agents whose counts are changed at the same time.
const LOCKS: usize = 256;
/// Files are not looked through again before so many times the time that it took have passed, ...
const REST: u32 = 20;
/// ... nor before this.
const REST_MIN: Duration = Duration::from_secs(1);

/// What is known of one agent.
#[derive(Debug, Serialize, Deserialize)]
struct Count {
    /// Bytes in its folder.
    bytes: u64,
    /// When the files were looked through last, Unix time, ms, ...
    counted_unix_ms: u64,
    /// ... and how long that took, ms.
    took_ms: u64,
}

/// The counts, and their bound.
#[derive(Debug)]
pub(crate) struct Usage {
    root: PathBuf,
    bytes_max: Option<u64>,
    /// One for all agents whose names have the same hash: a count is read, changed and written
    /// under it.
    locks: [Mutex<()>; LOCKS],
}

/// What `length` bytes take on the disk.
pub(crate) fn rounded(length: u64) -> u64 {
    length.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES)
}

/// What these files take together; one that is not there takes nothing.
pub(crate) fn size_of(files: &[&Path]) -> u64 {
    files.iter().filter_map(|file| fs::metadata(file).ok()).map(|file| rounded(file.len())).sum()
}

impl Usage {
    /// Of the store in `root`; none is no bound.
    pub(crate) fn new(root: &Path, bytes_max: Option<u64>) -> Usage {
        Usage { root: root.into(), bytes_max, locks: [const { Mutex::new(()) }; LOCKS] }
    }

    /// Sets room aside for new frames, given by their lengths, and for the folders that they need,
    /// given by those of their streams below the store's.
    ///
    /// # Errors
    /// [`Refusal::Full`] where there is none, [`Refusal::Unavailable`] where the count cannot be
    /// written. Nothing is set aside then.
    pub(crate) fn reserve(
        &self,
        agent: &str,
        lengths: impl Iterator<Item = usize>,
        streams: impl Iterator<Item = PathBuf>,
    ) -> Result<(), Refusal> {
        let Some(bytes_max) = self.bytes_max else { return Ok(()) };
        let frames: u64 = lengths.map(|length| rounded(length as u64)).sum();
        if frames == 0 {
            return Ok(());
        }
        let mut missing: Vec<PathBuf> = Vec::new();
        let folder = self.root.join(agent);
        for stream in streams.map(|stream| self.root.join(stream)) {
            let below = stream.ancestors().take_while(|path| *path != folder);
            missing.extend(below.filter(|path| !path.exists()).map(Path::to_owned));
        }
        missing.sort_unstable();
        missing.dedup();
        let bytes = frames + missing.len() as u64 * BLOCK_BYTES;
        let _lock = self.lock(agent);
        let mut count = self.count(agent).map_err(Refusal::Unavailable)?;
        if count.bytes.saturating_add(bytes) > bytes_max && count.is_to_be_renewed() {
            count = self.look_through(agent).map_err(Refusal::Unavailable)?;
        }
        if count.bytes.saturating_add(bytes) > bytes_max {
            // Kept, so that the next look waits.
            self.write(agent, &count).map_err(Refusal::Unavailable)?;
            return Err(Refusal::Full(full(agent, count.bytes, bytes_max)));
        }
        count.bytes += bytes;
        self.write(agent, &count).map_err(Refusal::Unavailable)
    }

    /// Whether anything more may be made of an agent's frames.
    ///
    /// # Errors
    /// If not, or if the count cannot be read.
    pub(crate) fn has_room(&self, agent: &str) -> io::Result<()> {
        let Some(bytes_max) = self.bytes_max else { return Ok(()) };
        let _lock = self.lock(agent);
        let mut count = self.count(agent)?;
        if count.bytes >= bytes_max && count.is_to_be_renewed() {
            count = self.look_through(agent)?;
            self.write(agent, &count)?;
        }
        if count.bytes < bytes_max {
            return Ok(());
        }
        Err(io::Error::new(ErrorKind::StorageFull, full(agent, count.bytes, bytes_max)))
    }

    /// Files of the agent that took `before` bytes now take `after`.
    pub(crate) fn changed(&self, agent: &str, before: u64, after: u64) {
        if self.bytes_max.is_none() || before == after {
            return;
        }
        let _lock = self.lock(agent);
        let changed = self.count(agent).and_then(|mut count| {
            count.bytes = (count.bytes + after).saturating_sub(before);
            self.write(agent, &count)
        });
        if let Err(error) = changed {
            // It is looked through anew when it is needed next.
            log::warn!("{}: {error}", self.path(agent).display());
            let _ = fs::remove_file(self.path(agent));
        }
    }

    /// Removes a count that nobody keeps.
    pub(crate) fn forget_unbounded(&self, agent: &str) {
        if self.bytes_max.is_none()
            && let Err(error) = fs::remove_file(self.path(agent))
            && error.kind() != ErrorKind::NotFound
        {
            log::warn!("{}: cannot be removed: {error}", self.path(agent).display());
        }
    }

    fn lock(&self, agent: &str) -> MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        agent.hash(&mut hasher);
        let [first, rest @ ..] = &self.locks;
        let at = hasher.finish() as usize % LOCKS;
        let lock = if at == 0 { first } else { rest.get(at - 1).unwrap_or(first) };
        // Nothing is guarded but files, which are replaced whole.
        lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, agent: &str) -> PathBuf {
        self.root.join(agent).join(layout::USAGE)
    }

    /// What is known; looked through where nothing is.
    fn count(&self, agent: &str) -> io::Result<Count> {
        let known = fs::read(self.path(agent)).ok();
        match known.and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
            Some(count) => Ok(count),
            None => self.look_through(agent),
        }
    }

    fn look_through(&self, agent: &str) -> io::Result<Count> {
        let begun = Instant::now();
        let bytes = folder_bytes(&self.root.join(agent))?;
        let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(Count { bytes, counted_unix_ms: unix_ms(), took_ms })
    }

    /// Not made durable: what a power cut brings back is older by moments, and counted anew where
    /// it cannot be read.
    fn write(&self, agent: &str, count: &Count) -> io::Result<()> {
        let path = self.path(agent);
        let making =
            path.with_file_name(format!(".{}.{}.making", layout::USAGE, std::process::id()));
        fs::create_dir_all(self.root.join(agent))?;
        fs::write(&making, to_json(count)?)?;
        fs::rename(&making, &path)
    }
}

impl Count {
    /// Whether it is time to look through the files again. A clock that went back makes it so.
    fn is_to_be_renewed(&self) -> bool {
        let rest = Duration::from_millis(self.took_ms).saturating_mul(REST).max(REST_MIN);
        unix_ms()
            .checked_sub(self.counted_unix_ms)
            .is_none_or(|past_ms| u128::from(past_ms) >= rest.as_millis())
    }
}

fn full(agent: &str, bytes: u64, bytes_max: u64) -> String {
    format!(
        "agent {agent:?} has {bytes} of the {bytes_max} bytes that store.bytes_per_agent_max gives \
         one: remove old boots of it from the store, or raise that"
    )
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// What the folder of an agent takes: its files, a second name of one not counted, and the folders
/// below it.
fn folder_bytes(folder: &Path) -> io::Result<u64> {
    let mut bytes = BLOCK_BYTES;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            // Removed meanwhile, or never there.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            // What is in the making is counted when it is made, or was before.
            let is_made = !name.starts_with('.');
            if layout::parse_start_name(&name).is_some() || name == layout::USAGE || !is_made {
                continue;
            }
            match entry.metadata() {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                metadata => {
                    let metadata = metadata?;
                    if metadata.is_dir() {
                        folders.push(entry.path());
                        bytes += BLOCK_BYTES;
                    } else {
                        bytes += rounded(metadata.len());
                    }
                }
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn reserve(usage: &Usage, agent: &str, lengths: &[usize]) -> Result<(), Refusal> {
        let stream = Path::new(agent).join("boot/run/0");
        usage.reserve(agent, lengths.iter().copied(), [stream].into_iter())
    }

    fn bytes(usage: &Usage, agent: &str) -> u64 {
        usage.count(agent).unwrap().bytes
    }

    #[test]
    fn what_is_counted_ahead_is_what_lies_there_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        let usage = Usage::new(folder.path(), Some(MIB));
        let stream = folder.path().join("a/boot/run/0");
        reserve(&usage, "a", &[1, 4096, 4097]).unwrap();
        fs::create_dir_all(&stream).unwrap();
        for (name, length) in [("x.frame", 1), ("y.frame", 4096), ("z.frame", 4097)] {
            fs::write(stream.join(name), vec![0; length]).unwrap();
        }
        // A second name takes nothing.
        fs::hard_link(stream.join("x.frame"), stream.join(layout::start_name(0))).unwrap();
        let counted = bytes(&usage, "a");
        assert_eq!(counted, (4 + 4) * BLOCK_BYTES);
        assert_eq!(folder_bytes(&folder.path().join("a")).unwrap(), counted);
        // The folders are there now.
        reserve(&usage, "a", &[1]).unwrap();
        assert_eq!(bytes(&usage, "a"), counted + BLOCK_BYTES);
        usage.changed("a", 3 * BLOCK_BYTES, 2 * BLOCK_BYTES);
        assert_eq!(bytes(&usage, "a"), counted);
    }

    #[test]
    fn one_that_is_full_is_named_and_the_others_are_not_kept_out() {
        let folder = tempfile::tempdir().unwrap();
        let usage = Usage::new(folder.path(), Some(MIB));
        let large = vec![0; MIB as usize];
        fs::create_dir(folder.path().join("a")).unwrap();
        fs::write(folder.path().join("a/old.sf"), &large).unwrap();
        let refused = |agent| match reserve(&usage, agent, &[1]) {
            Err(Refusal::Full(text)) => Some(text),
            other => other.map(|()| None).unwrap(),
        };
        let text = refused("a").unwrap();
        assert!(text.contains("\"a\"") && text.contains("store.bytes_per_agent_max"), "{text}");
        assert!(usage.has_room("a").is_err());
        assert_eq!(refused("b"), None);
        assert!(usage.has_room("b").is_ok());
        // Repeats take nothing, and are answered.
        assert!(reserve(&usage, "a", &[]).is_ok());
        // What is removed by hand is found, at once where the time of the last look is not
        // believed, and else after a rest.
        fs::remove_file(folder.path().join("a/old.sf")).unwrap();
        let mut count = usage.count("a").unwrap();
        count.counted_unix_ms = unix_ms() + 3_600_000;
        usage.write("a", &count).unwrap();
        assert_eq!(refused("a"), None);
        let rested = |took_ms, ago_ms| {
            let counted_unix_ms = unix_ms() - ago_ms;
            Count { bytes: 0, counted_unix_ms, took_ms }.is_to_be_renewed()
        };
        assert!(rested(10_000, 210_000) && !rested(10_000, 100_000));
        assert!(rested(0, 2_000) && !rested(3_600_000, 0));
    }

    #[test]
    fn a_damaged_count_is_made_anew_and_without_a_bound_there_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let usage = Usage::new(folder.path(), Some(MIB));
        reserve(&usage, "a", &[1]).unwrap();
        fs::write(usage.path("a"), "{").unwrap();
        assert_eq!(bytes(&usage, "a"), BLOCK_BYTES);
        let free = Usage::new(folder.path(), None);
        free.forget_unbounded("a");
        free.forget_unbounded("never-seen");
        assert!(!usage.path("a").exists());
        reserve(&free, "a", &[usize::MAX]).unwrap();
        free.changed("a", 0, MIB);
        assert!(free.has_room("a").is_ok() && !usage.path("a").exists());
    }
}
