//! The compactor: turns the frames of each generation into a `.sf` file.
//!
//! A file is a pure function of the frames held and of the boot's fixed clock offset: it is
//! written whole under a temporary name and renamed, again and again as frames arrive, so a
//! crash never tears one and nothing needs to be remembered. It ends at the first missing
//! frame; what follows waits, because a number may mean another file after a gap. One thread
//! does this for all agents; its list of generations to do is a set of at most
//! [`PENDING_MAX`]: beyond that it looks through the whole store instead.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use codec::Frame;
use log::Level;

use crate::convert::{self, Stream};
use crate::health::Health;
use crate::layout::{self, GenerationKey};
use crate::logger;
use crate::manifest::{FixedClock, Manifest, to_json, written_generations};
use crate::sf::{self, SfFile};
use crate::sysflow::{Header, Record, SCHEMA_VERSION};
use crate::usage::{self, Usage};

const PENDING_MAX: usize = 64 * 1024;

/// Most generations that are remembered as waiting, and as broken, to count them.
const REMEMBERED_MAX: usize = 64 * 1024;

/// A file in the making that is older than this belongs to nobody any more.
const ABANDONED_AFTER: Duration = Duration::from_secs(3600);

#[derive(Default)]
struct Pending {
    /// Generations to do, with the highest sequence held of each one's stream.
    generations: BTreeMap<GenerationKey, u64>,
    /// Look through the whole store.
    sweep: bool,
    /// Do what there is and end.
    finish: bool,
}

#[derive(Default)]
struct Shared {
    pending: Mutex<Pending>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The running compactor.
pub(crate) struct Compactor {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

impl Compactor {
    /// Starts the thread; it begins by looking through the store for what an earlier
    /// collector did not finish.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub(crate) fn start(root: &Path, usage: Arc<Usage>, health: Arc<Health>) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        shared.lock().sweep = true;
        let mut worker = Worker {
            root: root.to_owned(),
            usage,
            health,
            waiting: BTreeSet::new(),
            broken: BTreeSet::new(),
        };
        let thread = std::thread::Builder::new().name("compactor".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || worker.run(&shared)
        })?;
        Ok(Compactor { shared, thread })
    }

    /// Tells of generations with new frames.
    pub(crate) fn mark(&self, generations: BTreeMap<GenerationKey, u64>) {
        let mut pending = self.shared.lock();
        for (key, highest) in generations {
            if pending.generations.len() >= PENDING_MAX {
                pending.sweep = true;
                break;
            }
            let known = pending.generations.entry(key).or_default();
            *known = highest.max(*known);
        }
        self.shared.changed.notify_one();
    }

    /// Waits until all that is marked is done, and ends the thread.
    pub(crate) fn finish(self) {
        self.shared.lock().finish = true;
        self.shared.changed.notify_one();
        if self.thread.join().is_err() {
            log::error!("compactor ended early: .sf files are behind until the next start");
        }
    }
}

struct Worker {
    root: PathBuf,
    usage: Arc<Usage>,
    health: Arc<Health>,
    waiting: BTreeSet<GenerationKey>,
    broken: BTreeSet<GenerationKey>,
}

impl Worker {
    fn run(&mut self, shared: &Shared) {
        loop {
            let mut pending = shared.lock();
            while !pending.sweep && pending.generations.is_empty() && !pending.finish {
                pending = shared.changed.wait(pending).unwrap_or_else(PoisonError::into_inner);
            }
            if std::mem::take(&mut pending.sweep) {
                drop(pending);
                self.sweep();
            } else if let Some((key, highest)) = pending.generations.pop_first() {
                drop(pending);
                self.generation(&key, highest);
            } else {
                return;
            }
        }
    }

    fn generation(&mut self, key: &GenerationKey, highest: u64) {
        self.waiting.remove(key);
        self.broken.remove(key);
        match compact(&self.root, &self.usage, key, highest) {
            Ok(manifest) => {
                if manifest.waiting && self.waiting.len() < REMEMBERED_MAX {
                    self.waiting.insert(key.clone());
                }
                self.health.update(|counters| {
                    counters.sysflow.files_written += 1;
                    if manifest.complete {
                        for (name, count) in sf::all_reasons(&BTreeMap::new()) {
                            let more = manifest.left_out.get(name).copied().unwrap_or(count);
                            *counters.sysflow.left_out.entry(name).or_default() += more;
                        }
                    }
                });
            }
            Err(error) => {
                logger::seldom(
                    Level::Error,
                    "no .sf file",
                    format_args!("{key}: no .sf file: {error}"),
                );
                if self.broken.len() < REMEMBERED_MAX {
                    self.broken.insert(key.clone());
                }
            }
        }
        let (waiting, broken) = (self.waiting.len(), self.broken.len());
        self.health.update(|counters| {
            counters.sysflow.generations_waiting = waiting;
            counters.sysflow.generations_broken = broken;
        });
    }

    /// Does every generation whose file is missing or may lack frames.
    fn sweep(&mut self) {
        for agent in folders(&self.root) {
            let Some(id) = name_of(&agent).filter(|id| layout::is_agent_id(id)) else { continue };
            self.usage.forget_unbounded(&id);
            let sysflow = agent.join(layout::SYSFLOW);
            remove_abandoned(&sysflow);
            remove_abandoned(&agent.join(layout::CERTIFICATES));
            let done = written_generations(&sysflow);
            for boot in folders(&agent) {
                let Some(boot_id) = name_of(&boot).and_then(|name| layout::parse_uuid(&name))
                else {
                    continue;
                };
                for run in folders(&boot) {
                    let Some(tag) = name_of(&run).and_then(|name| layout::unhex(&name)) else {
                        continue;
                    };
                    for stream in folders(&run) {
                        let Some(class) = name_of(&stream).and_then(|name| name.parse().ok())
                        else {
                            continue;
                        };
                        remove_abandoned(&stream);
                        let (generations, highest) = look_through(&stream);
                        for generation in generations {
                            let key = GenerationKey {
                                agent: id.clone(),
                                boot: boot_id,
                                run: tag,
                                class,
                                generation,
                            };
                            let done = done.get(&(layout::hex(&tag), class, generation));
                            if done.is_none_or(|done| done.is_behind(&stream)) {
                                self.generation(&key, highest);
                            }
                        }
                    }
                }
            }
        }
    }
}

fn name_of(path: &Path) -> Option<String> {
    path.file_name()?.to_str().map(str::to_owned)
}

/// The folders in a folder, in order of name. One that cannot be read is logged, not passed
/// over in silence.
fn folders(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    match fs::read_dir(path) {
        Ok(entries) => {
            found.extend(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()))
        }
        Err(error) => log::error!("{}: {error}", path.display()),
    }
    found.sort_unstable();
    found
}

/// The generations whose start is held in a stream's folder, and the highest sequence.
fn look_through(stream: &Path) -> (BTreeSet<u32>, u64) {
    let (mut generations, mut highest) = (BTreeSet::new(), 0);
    for entry in fs::read_dir(stream).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        generations.extend(layout::parse_start_name(&name));
        highest = highest.max(layout::parse_frame_name(&name).unwrap_or(0));
    }
    (generations, highest)
}

/// Removes files in the making that a killed collector left behind.
fn remove_abandoned(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let is_old = |changed| {
            SystemTime::now().duration_since(changed).is_ok_and(|age| age > ABANDONED_AFTER)
        };
        if entry.file_name().as_encoded_bytes().starts_with(b".")
            && entry.metadata().and_then(|metadata| metadata.modified()).is_ok_and(is_old)
            && let Err(error) = fs::remove_file(entry.path())
        {
            log::warn!("{}: cannot be removed: {error}", entry.path().display());
        }
    }
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// A frame of the stream, checked; none if it is not held.
fn read_frame<'b>(path: &Path, buffer: &'b mut Vec<u8>) -> io::Result<Option<Frame<'b>>> {
    match fs::read(path) {
        Ok(bytes) => *buffer = bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    }
    match Frame::decode(buffer) {
        Ok((frame, [])) => Ok(Some(frame)),
        Ok(_) => Err(invalid(format!("{}: bytes after the frame", path.display()))),
        Err(error) => Err(invalid(format!("{}: {error}", path.display()))),
    }
}

/// Writes the `.sf` file of one generation and its manifest, where the agent has room for more.
fn compact(root: &Path, usage: &Usage, key: &GenerationKey, highest: u64) -> io::Result<Manifest> {
    let stream_directory = root.join(key.stream_directory());
    let boot_directory = root.join(layout::boot_directory(&key.agent, key.boot));
    let sysflow = root.join(&key.agent).join(layout::SYSFLOW);
    usage.has_room(&key.agent)?;
    fs::create_dir_all(&sysflow)?;

    let mut buffer = Vec::new();
    let start_path = stream_directory.join(layout::start_name(key.generation));
    let first = read_frame(&start_path, &mut buffer)?
        .ok_or_else(|| invalid(format!("{} is missing", start_path.display())))?;
    let (Some(start), Some(mapping)) = (&first.header.start, first.header.clock) else {
        return Err(invalid(format!("{} is no generation start", start_path.display())));
    };
    let clock_path = boot_directory.join(layout::CLOCK);
    let known = usage::size_of(&[&clock_path]);
    let clock = match FixedClock::load(&boot_directory)? {
        Some(clock) => clock,
        None => {
            let clock = FixedClock { offset_ns: mapping.offset_ns };
            sf::write_whole(&clock_path, &to_json(&clock)?)?;
            clock
        }
    };
    let start_s = convert::generation_start_s(&first, clock.offset_ns);
    let path = sysflow.join(key.file_stem(start_s) + ".sf");
    let beside = path.with_extension("json");
    let before = known + usage::size_of(&[&path, &beside]);
    let first_sequence = first.header.key.sequence;
    let mut manifest = Manifest {
        agent: key.agent.clone(),
        boot: layout::uuid(key.boot),
        run: layout::hex(&key.run),
        class: key.class,
        generation: key.generation,
        agent_version: start.agent_version.to_owned(),
        kernel: start.kernel.to_owned(),
        machine: start.machine.to_owned(),
        frames: [first_sequence, first_sequence],
        complete: false,
        waiting: false,
        records: 0,
        left_out: BTreeMap::new(),
        unresolved: BTreeMap::new(),
    };

    let mut out = SfFile::create(&path, &key.to_string())?;
    out.push(&Record::Header(Header {
        version: SCHEMA_VERSION,
        exporter: key.agent.clone(),
        ip: "NA".to_owned(),
        filename: name_of(&path).unwrap_or_default(),
    }))?;
    let mut stream = Stream::new(Some(clock.offset_ns));
    let mut sequence = first_sequence;
    loop {
        let frame_path = stream_directory.join(layout::frame_name(sequence));
        let Some(frame) = read_frame(&frame_path, &mut buffer)? else {
            manifest.waiting = sequence < highest;
            break;
        };
        if frame.header.generation != key.generation {
            manifest.complete = true;
            break;
        }
        stream.enter(&frame.header);
        for record in frame.records() {
            let record =
                record.map_err(|error| invalid(format!("{}: {error}", frame_path.display())))?;
            out.push(&stream.record(&record).map_err(io::Error::other)?)?;
        }
        manifest.frames = [first_sequence, sequence];
        sequence += 1;
    }
    let tally = out.finish()?;
    manifest.records = tally.written;
    let owned = |(name, count): (&str, u64)| (name.to_owned(), count);
    manifest.left_out = sf::all_reasons(&tally.left_out).into_iter().map(owned).collect();
    manifest.unresolved = stream.unresolved().counts().into_iter().map(owned).collect();
    sf::write_whole(&beside, &to_json(&manifest)?)?;
    usage.changed(&key.agent, before, usage::size_of(&[&clock_path, &path, &beside]));
    Ok(manifest)
}
