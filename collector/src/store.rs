//! The store of raw frames: one file a frame, created if absent, durable before it is
//! acknowledged.
//!
//! A body comes in that `body` has checked; what comes out says for each stream how far it is
//! held without a gap. Nothing of a body is stored before all of its frames have been held
//! against the store. Several receivers may work on one directory: the file system's refusal
//! to link over an existing name decides, and a stream is listed again when its folder was
//! changed by somebody else. In memory are ranges only, for at most [`STREAMS_MAX`] streams an
//! agent and [`AGENTS_MAX`] agents; beyond that, older ones are read anew from the disk.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rustls::pki_types::CertificateDer;

use crate::body::{self, Checked, Refusal};
use crate::certificates;
use crate::frame_files::{held_start, link_if_absent, list, write_durable};
use crate::layout::{self, GenerationKey};
use crate::ranges::Ranges;
use crate::usage::Usage;

const STREAMS_MAX: usize = 1024;
const AGENTS_MAX: usize = 16 * 1024;

/// Most holes that one answer names; the agent fills the first and learns of the next.
const HOLES_MAX: usize = 64;

/// How far a stream is held.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct StreamState {
    pub(crate) run: [u8; 8],
    pub(crate) class: u8,
    /// Frames held without a gap from sequence 0.
    pub(crate) contiguous: u64,
    /// Missing inclusive ranges below the highest sequence held.
    pub(crate) holes: Vec<[u64; 2]>,
}

/// What became of a body.
#[derive(Debug)]
pub(crate) struct Stored {
    /// The streams that the body touched.
    pub(crate) streams: Vec<StreamState>,
    /// Frames that were not held before.
    pub(crate) new: u64,
    /// Frames that were held before.
    pub(crate) duplicates: u64,
    /// Generations with new frames, and the highest sequence held of each one's stream.
    pub(crate) generations: BTreeMap<GenerationKey, u64>,
}

/// A stream's frames as they are known to be on disk.
struct Stream {
    directory: PathBuf,
    held: Ranges,
    /// Whether the names of the folder and of those above it are durable.
    rooted: bool,
    /// When the folder changed last, as far as is known here.
    changed: Option<SystemTime>,
}

/// Boot, run and class.
type StreamName = ([u8; 16], [u8; 8], u8);

/// What is known of one agent. Its lock makes uploads of one agent take turns.
#[derive(Default)]
struct Agent {
    boots: HashMap<[u8; 8], [u8; 16]>,
    streams: HashMap<StreamName, Stream>,
}

/// The store.
pub(crate) struct Store {
    root: PathBuf,
    agents: Mutex<HashMap<String, Arc<Mutex<Agent>>>>,
    usage: Arc<Usage>,
    /// Makes names of files in the making differ, also from another receiver's.
    serial: AtomicU64,
    salt: u64,
}

/// A frame of a body with its place in the store.
struct Placed<'a, 'b> {
    frame: &'b Checked<'a>,
    stream: StreamName,
    key: GenerationKey,
    held: bool,
}

impl Store {
    /// Opens the store in `root`, which is made if it is missing; one agent may take as much of it
    /// as `usage` says.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn open(root: &Path, usage: Arc<Usage>) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        let root = root.canonicalize()?;
        if let Some(parent) = root.parent() {
            File::open(parent)?.sync_all()?;
        }
        Ok(Store {
            root,
            agents: Mutex::default(),
            usage,
            serial: AtomicU64::new(0),
            salt: RandomState::new().build_hasher().finish(),
        })
    }

    /// Keeps the frames of a body that `agent` sent. When it returns they are durable.
    ///
    /// # Errors
    /// A [`Refusal`]; then nothing of the body was stored, except where the disk failed on
    /// the way ([`Refusal::Unavailable`]): then the agent sends again what is not acknowledged.
    pub(crate) fn put(&self, agent: &str, frames: &[Checked<'_>]) -> Result<Stored, Refusal> {
        let shared = self.agent(agent);
        let mut known = lock(&shared);
        if known.streams.len() > STREAMS_MAX {
            *known = Agent::default();
        }
        let placed = self.place(agent, &mut known, frames)?;
        let new = || placed.iter().filter(|place| !place.held);
        self.usage.reserve(
            agent,
            new().map(|place| place.frame.bytes.len()),
            new()
                .map(|place| place.stream)
                .collect::<BTreeSet<StreamName>>()
                .into_iter()
                .map(|(boot, run, class)| layout::stream_directory(agent, boot, run, class)),
        )?;
        self.write(&mut known, &placed).map_err(|error| {
            // What is in memory may now be behind the disk.
            known.streams.clear();
            match error {
                WriteError::Taken(key) => taken(&key),
                WriteError::Io(error) => Refusal::Unavailable(error),
            }
        })
    }

    /// Keeps the certificate that an agent sends frames with. When it returns it is durable. One that
    /// has no room is not kept: nor have new frames any then.
    ///
    /// # Errors
    /// [`Refusal::Unavailable`] if it cannot be written.
    pub(crate) fn keep_certificate(
        &self,
        agent: &str,
        chain: &[CertificateDer<'_>],
    ) -> Result<(), Refusal> {
        let folder = Path::new(agent).join(layout::CERTIFICATES);
        let directory = self.root.join(&folder);
        let file = directory.join(certificates::file_name(chain));
        if file.try_exists().map_err(Refusal::Unavailable)? {
            return Ok(());
        }
        let text = certificates::to_pem(chain);
        match self.usage.reserve(agent, [text.len()].into_iter(), [folder].into_iter()) {
            Err(Refusal::Full(_)) => return Ok(()),
            reserved => reserved?,
        }
        let keep = || {
            self.create_directories(&directory)?;
            self.make(&directory, &file, text.as_bytes())?;
            File::open(&directory)?.sync_all()
        };
        keep().map_err(Refusal::Unavailable)
    }

    /// Agents that have sent frames since the start.
    pub(crate) fn agents(&self) -> usize {
        lock(&self.agents).len()
    }

    fn agent(&self, id: &str) -> Arc<Mutex<Agent>> {
        let mut agents = lock(&self.agents);
        if agents.len() >= AGENTS_MAX {
            agents.retain(|_, agent| Arc::strong_count(agent) > 1);
        }
        Arc::clone(agents.entry(id.to_owned()).or_default())
    }

    /// Finds each frame's place and holds it against what is there. Nothing is written.
    fn place<'a, 'b>(
        &self,
        agent: &str,
        known: &mut Agent,
        frames: &'b [Checked<'a>],
    ) -> Result<Vec<Placed<'a, 'b>>, Refusal> {
        let mut placed: Vec<Placed<'a, 'b>> = Vec::with_capacity(frames.len());
        let mut starts: HashMap<GenerationKey, u64> = HashMap::new();
        let mut seen: HashMap<(StreamName, u64), &[u8]> = HashMap::new();
        let mut told: HashMap<[u8; 8], [u8; 16]> = HashMap::new();
        for frame in frames {
            let id = frame.key;
            let boot = self.boot(agent, known, &mut told, frame)?;
            let key = GenerationKey {
                agent: agent.to_owned(),
                boot,
                run: id.run_tag,
                class: id.class,
                generation: frame.generation,
            };
            let stream = (boot, id.run_tag, id.class);
            let state = self.stream(known, &key).map_err(Refusal::Unavailable)?;
            let start = match starts.get(&key) {
                Some(sequence) => Some(*sequence),
                None => {
                    held_start(&state.directory, frame.generation).map_err(Refusal::Unavailable)?
                }
            };
            match (start, frame.starts_in) {
                (Some(sequence), Some(_)) if sequence != id.sequence => {
                    return Err(Refusal::Malformed(format!(
                        "{}: generation {} begins here and at frame {sequence}: begin a new one",
                        body::name(&id),
                        frame.generation
                    )));
                }
                (None, None) => {
                    return Err(Refusal::GenerationLost(format!(
                        "{}: the start of generation {} is not held: begin a new generation",
                        body::name(&id),
                        frame.generation
                    )));
                }
                (None, Some(_)) => {
                    starts.insert(key.clone(), id.sequence);
                }
                _ => {}
            }
            let held = match seen.insert((stream, id.sequence), frame.bytes) {
                Some(bytes) if bytes == frame.bytes => true,
                Some(_) => return Err(taken(&id)),
                None => is_held(&state.directory, frame)?,
            };
            placed.push(Placed { frame, stream, key, held });
        }
        Ok(placed)
    }

    /// The boot of a frame's run: told by a generation start, before or now.
    fn boot(
        &self,
        agent: &str,
        known: &mut Agent,
        body: &mut HashMap<[u8; 8], [u8; 16]>,
        frame: &Checked<'_>,
    ) -> Result<[u8; 16], Refusal> {
        let id = frame.key;
        let told = frame.starts_in;
        let boot = match known.boots.get(&id.run_tag).or_else(|| body.get(&id.run_tag)) {
            Some(boot) => Some(*boot),
            None => {
                let found = self.find_boot(agent, id.run_tag).map_err(Refusal::Unavailable)?;
                known.boots.extend(found.map(|boot| (id.run_tag, boot)));
                found
            }
        };
        match (boot, told) {
            (Some(boot), Some(told)) if boot != told => Err(Refusal::Malformed(format!(
                "{}: boot is {}, but the run began in boot {}: begin a new run",
                body::name(&id),
                layout::uuid(told),
                layout::uuid(boot)
            ))),
            (Some(boot), _) | (None, Some(boot)) => {
                body.insert(id.run_tag, boot);
                Ok(boot)
            }
            (None, None) => Err(Refusal::GenerationLost(format!(
                "{}: nothing is held of this run: begin a new generation",
                body::name(&id)
            ))),
        }
    }

    /// Looks for a run below the boots of an agent.
    fn find_boot(&self, agent: &str, run: [u8; 8]) -> io::Result<Option<[u8; 16]>> {
        let entries = match fs::read_dir(self.root.join(agent)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            entries => entries?,
        };
        let run = layout::hex(&run);
        for entry in entries {
            let entry = entry?;
            if let Some(boot) = entry.file_name().to_str().and_then(layout::parse_uuid)
                && entry.path().join(&run).is_dir()
            {
                return Ok(Some(boot));
            }
        }
        Ok(None)
    }

    /// The stream's state, read from the disk where it is not known or no longer true.
    fn stream<'k>(&self, known: &'k mut Agent, key: &GenerationKey) -> io::Result<&'k mut Stream> {
        let stream =
            known.streams.entry((key.boot, key.run, key.class)).or_insert_with(|| Stream {
                directory: self.root.join(key.stream_directory()),
                held: Ranges::default(),
                rooted: false,
                changed: None,
            });
        let changed = match fs::metadata(&stream.directory) {
            Ok(metadata) => Some(metadata.modified()?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        // Removed by hand.
        stream.rooted &= changed.is_some();
        if changed != stream.changed {
            stream.held = list(&stream.directory)?;
            stream.changed = changed;
        }
        Ok(stream)
    }

    fn write(&self, known: &mut Agent, placed: &[Placed<'_, '_>]) -> Result<Stored, WriteError> {
        let mut stored =
            Stored { streams: Vec::new(), new: 0, duplicates: 0, generations: BTreeMap::new() };
        let mut touched: BTreeSet<StreamName> = BTreeSet::new();
        for place in placed {
            let Some(stream) = known.streams.get_mut(&place.stream) else { continue };
            touched.insert(place.stream);
            if !stream.rooted {
                self.create_directories(&stream.directory)?;
                stream.rooted = true;
            }
            let id = place.frame.key;
            let file = stream.directory.join(layout::frame_name(id.sequence));
            if place.held || !self.write_new(&stream.directory, &file, place.frame)? {
                stored.duplicates += 1;
            } else {
                stored.new += 1;
                stored.generations.insert(place.key.clone(), 0);
            }
            if place.frame.starts_in.is_some() {
                let start = layout::start_name(place.frame.generation);
                link_if_absent(&file, &stream.directory.join(start))?;
            }
            stream.held.insert(id.sequence);
        }
        for name in &touched {
            known.boots.insert(name.1, name.0);
            let Some(stream) = known.streams.get_mut(name) else { continue };
            // Also for repeats: an earlier receiver may have stopped before this.
            File::open(&stream.directory)?.sync_all()?;
            stream.changed = Some(fs::metadata(&stream.directory)?.modified()?);
            stored.streams.push(StreamState {
                run: name.1,
                class: name.2,
                contiguous: stream.held.contiguous(),
                holes: stream.held.holes().take(HOLES_MAX).collect(),
            });
            for (key, highest) in &mut stored.generations {
                if (key.boot, key.run, key.class) == *name {
                    *highest = stream.held.highest().unwrap_or(0);
                }
            }
        }
        Ok(stored)
    }

    /// Makes the folders down to `directory` and makes their names durable.
    fn create_directories(&self, directory: &Path) -> io::Result<()> {
        fs::create_dir_all(directory)?;
        for above in directory.ancestors().skip(1).take_while(|path| path.starts_with(&self.root)) {
            File::open(above)?.sync_all()?;
        }
        Ok(())
    }

    /// Writes a frame under its name; `false` if another receiver was faster with the same.
    fn write_new(
        &self,
        directory: &Path,
        file: &Path,
        frame: &Checked<'_>,
    ) -> Result<bool, WriteError> {
        let new = self.make(directory, file, frame.bytes)?;
        if !new && fs::read(file)? != frame.bytes {
            return Err(WriteError::Taken(frame.key));
        }
        Ok(new)
    }

    /// Makes a file, whole or not at all; `false` if there is one of its name.
    fn make(&self, directory: &Path, file: &Path, bytes: &[u8]) -> io::Result<bool> {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let making = directory.join(format!(".{:016x}-{serial}.making", self.salt));
        let written = write_durable(&making, bytes).and_then(|()| link_if_absent(&making, file));
        let removed = fs::remove_file(&making);
        let new = written?;
        removed?;
        Ok(new)
    }
}

enum WriteError {
    Taken(codec::StreamKey),
    Io(io::Error),
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        WriteError::Io(error)
    }
}

fn taken(id: &codec::StreamKey) -> Refusal {
    let name = body::name(id);
    Refusal::Conflict(format!("{name} is held with other bytes: begin a new run"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a lock guards here is rebuilt from the disk, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the frame is held; an error if other bytes are.
fn is_held(directory: &Path, frame: &Checked<'_>) -> Result<bool, Refusal> {
    match fs::read(directory.join(layout::frame_name(frame.key.sequence))) {
        Ok(bytes) if bytes == frame.bytes => Ok(true),
        Ok(_) => Err(taken(&frame.key)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Refusal::Unavailable(error)),
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
