//! Finds frames and `.sf` files below paths, and reads them in order.
//!
//! A path is a `.sf` file, a file of frames, or a folder of either at any depth (so a store,
//! or a part of it, too). Where a folder holds frames they are read and its `.sf` files, which
//! are made of them and say less, are not. Frames are put in order by their headers: streams
//! by the moment that they begin, frames by sequence; file names do not matter. In memory is
//! one entry a frame and one frame's bytes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use codec::{FRAME_BYTES_MAX, Frame};

use crate::account::Account;
use crate::avro;
use crate::convert::Stream;
use crate::layout;
use crate::manifest::FixedClock;
use crate::sysflow::{Header, Record, SCHEMA_VERSION};

/// Deepest folder that is looked into; a store has four levels.
const DEPTH_MAX: usize = 16;

/// Where a record was carried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) agent: String,
    pub(crate) boot: String,
    pub(crate) run: String,
    pub(crate) class: u8,
    pub(crate) generation: u32,
    pub(crate) sequence: u64,
    /// Whether times are Unix time; else no clock mapping was found and they are boot time.
    pub(crate) has_wall_clock: bool,
}

/// Takes what is found, in order.
pub(crate) trait Sink {
    /// What takes frames' headers, before the frames' records, and all that is missing.
    fn account(&mut self) -> &mut Account;
    /// A `.sf` file, or a stream of frames, begins.
    ///
    /// # Errors
    /// Those of the output.
    fn source(&mut self) -> io::Result<()> {
        Ok(())
    }
    /// A record; records of `.sf` files have no origin.
    ///
    /// # Errors
    /// Those of the output.
    fn record(&mut self, record: Record, origin: Option<&Origin>) -> io::Result<()>;
}

struct Located {
    path: Rc<Path>,
    at: u64,
    length: usize,
    bytes_hash: u64,
}

struct FrameStream {
    run: [u8; 8],
    class: u8,
    frames: BTreeMap<u64, Located>,
    agent: String,
    boot: Option<[u8; 16]>,
    /// When the stream's first frame says that it begins: Unix time where known.
    begins_ns: i64,
    fixed_offset_ns: Option<i64>,
}

enum Source {
    Sf(PathBuf),
    Frames,
}

/// Where a stream lies in a store, its run tag, and its class.
type StreamId = (PathBuf, [u8; 8], u8);

#[derive(Default)]
struct Found {
    sources: Vec<Source>,
    streams: HashMap<StreamId, FrameStream>,
    clocks: HashMap<PathBuf, Option<i64>>,
    /// Folders of agents in a store.
    agents: BTreeSet<PathBuf>,
    unreadable: Vec<(PathBuf, String)>,
}

/// Reads all that `paths` lead to into `sink`.
///
/// # Errors
/// Those of `sink`, and of a path that cannot be opened at all. What is damaged inside goes
/// to [`Account::unreadable`].
pub(crate) fn read(paths: &[PathBuf], sink: &mut dyn Sink) -> io::Result<()> {
    let mut found = Found::default();
    for path in paths {
        found.path(path)?;
    }
    for (path, why) in &found.unreadable {
        sink.account().unreadable(path, why);
    }
    for agent in &found.agents {
        sink.account().certificates(agent)?;
    }
    share_names(&mut found.streams);
    let mut streams: Vec<FrameStream> = found.streams.into_values().collect();
    streams.sort_by_key(|stream| (stream.begins_ns, stream.run, stream.class));
    share_offsets(&mut streams);
    let mut streams = streams.into_iter();
    for source in found.sources {
        match source {
            Source::Sf(path) => read_sf(&path, sink)?,
            Source::Frames => streams.by_ref().try_for_each(|stream| stream.read(sink))?,
        }
    }
    Ok(())
}

/// Gives a stream whose generations' first frames are all missing the names of agent and boot that
/// another stream of the run has.
fn share_names(streams: &mut HashMap<StreamId, FrameStream>) {
    let mut named = HashMap::new();
    for ((home, run, _), stream) in &*streams {
        if let Some(boot) = stream.boot {
            named.insert((home.clone(), *run), (stream.agent.clone(), boot));
        }
    }
    for ((home, run, _), stream) in streams {
        if stream.boot.is_none()
            && let Some((agent, boot)) = named.get(&(home.clone(), *run))
        {
            stream.agent.clone_from(agent);
            stream.boot = Some(*boot);
        }
    }
}

/// Gives the streams of one boot the offset of the first: object ids have to agree.
fn share_offsets(streams: &mut [FrameStream]) {
    let mut offsets = HashMap::new();
    for stream in streams {
        if let (Some(boot), Some(offset)) = (stream.boot, stream.fixed_offset_ns) {
            let first = *offsets.entry((stream.agent.clone(), boot)).or_insert(offset);
            stream.fixed_offset_ns = Some(first);
        }
    }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

impl Found {
    fn path(&mut self, path: &Path) -> io::Result<()> {
        let metadata = fs::metadata(path).map_err(|error| named(path, &error))?;
        if !metadata.is_dir() {
            return self.file(path);
        }
        let mut files = Vec::new();
        list(path, DEPTH_MAX, &mut files).map_err(|error| named(path, &error))?;
        files.sort_unstable();
        let is = |ending: &str| {
            let ending = ending.to_owned();
            move |path: &&PathBuf| path.extension().is_some_and(|found| *found == *ending)
        };
        let mut chosen: Vec<_> = files.iter().filter(is("frame")).collect();
        if chosen.is_empty() {
            chosen = files.iter().filter(is("sf")).collect();
        }
        if chosen.is_empty() {
            let text = format!("{}: holds no .frame and no .sf file", path.display());
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        chosen.into_iter().try_for_each(|file| self.file(file))
    }

    fn file(&mut self, path: &Path) -> io::Result<()> {
        // A pipe would be waited for, a terminal asked.
        if !fs::metadata(path).map_err(|error| named(path, &error))?.is_file() {
            let text = format!("{}: is no regular file and no folder", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let mut magic = Vec::new();
        let file = File::open(path).map_err(|error| named(path, &error))?;
        (&file).take(3).read_to_end(&mut magic).map_err(|error| named(path, &error))?;
        if magic == *b"Obj" {
            self.sources.push(Source::Sf(path.to_owned()));
            return Ok(());
        }
        if !self.sources.iter().any(|source| matches!(source, Source::Frames)) {
            self.sources.push(Source::Frames);
        }
        if let Err(error) = self.frames(path) {
            self.unreadable.push((path.to_owned(), error.to_string()));
        }
        Ok(())
    }

    /// Takes note of the frames in a file: one, or several back to back.
    fn frames(&mut self, path: &Path) -> io::Result<()> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        let shared: Rc<Path> = path.into();
        let (mut at, mut buffer) = (0, Vec::new());
        while at < length {
            file.seek(SeekFrom::Start(at))?;
            buffer.clear();
            (&file).take(FRAME_BYTES_MAX as u64).read_to_end(&mut buffer)?;
            let (frame, _) = Frame::decode(&buffer)
                .map_err(|error| io::Error::other(format!("at byte {at}: {error}")))?;
            self.note(&shared, at, &frame)?;
            at += frame.bytes.len() as u64;
        }
        if length == 0 {
            return Err(io::Error::other("is empty"));
        }
        Ok(())
    }

    fn note(&mut self, path: &Rc<Path>, at: u64, frame: &Frame<'_>) -> io::Result<()> {
        let header = &frame.header;
        let key = header.key;
        let stored = self.stored_offset(path)?;
        // In a store a stream belongs to the agent that sent it, whatever run it names.
        let home = match stored {
            Some(_) => path.ancestors().nth(3).unwrap_or(path).to_owned(),
            None => PathBuf::new(),
        };
        let id = (home, key.run_tag, key.class);
        let stream = self.streams.entry(id).or_insert_with(|| FrameStream {
            run: key.run_tag,
            class: key.class,
            frames: BTreeMap::new(),
            agent: String::new(),
            boot: None,
            begins_ns: i64::MAX,
            fixed_offset_ns: stored,
        });
        let located = Located {
            path: Rc::clone(path),
            at,
            length: frame.bytes.len(),
            bytes_hash: hash(frame.bytes),
        };
        if let Some(known) = stream.frames.get(&key.sequence) {
            if known.bytes_hash == located.bytes_hash && known.length == located.length {
                return Ok(());
            }
            let known = known.path.display();
            return Err(io::Error::other(format!(
                "{} is also in {known} with other bytes",
                crate::body::name(&key)
            )));
        }
        if let Some(start) = &header.start {
            stream.agent = start.agent_id.to_owned();
            stream.boot = Some(start.boot_id);
        }
        // The mapping of the lowest sequence that has one is the first that was told.
        if let Some(clock) = header.clock {
            let is_first = stream.frames.keys().next().is_none_or(|first| key.sequence < *first);
            if stored.is_none() && (is_first || stream.fixed_offset_ns.is_none()) {
                stream.fixed_offset_ns = Some(clock.offset_ns);
            }
        }
        stream.frames.insert(key.sequence, located);
        let offset = stream.fixed_offset_ns.unwrap_or(0);
        let begins = Stream::new(Some(offset)).wall(header.first_ns);
        stream.begins_ns = stream.begins_ns.min(begins);
        Ok(())
    }

    /// The boot's fixed offset where the frame lies in a store:
    /// `<boot>/<run>/<class>/<frame>`.
    fn stored_offset(&mut self, path: &Path) -> io::Result<Option<i64>> {
        let Some(boot) = path.ancestors().nth(3) else { return Ok(None) };
        if let Some(offset) = self.clocks.get(boot) {
            return Ok(*offset);
        }
        let offset = FixedClock::load(boot)?.map(|clock| clock.offset_ns);
        self.clocks.insert(boot.to_owned(), offset);
        if offset.is_some() {
            // A path like ".." names no agent.
            let boot = fs::canonicalize(boot)?;
            self.agents.extend(boot.parent().map(Path::to_owned));
        }
        Ok(offset)
    }
}

/// Tells equal frames from different ones; all of them are checked by their CRC as well.
fn hash(bytes: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hasher};
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// All files below a folder whose names do not begin with a dot.
fn list(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if kind.is_file() {
            files.push(entry.path());
        } else if kind.is_dir() && depth > 0 {
            list(&entry.path(), depth - 1, files)?;
        }
    }
    Ok(())
}

fn read_sf(path: &Path, sink: &mut dyn Sink) -> io::Result<()> {
    sink.source()?;
    let file = File::open(path).map_err(|error| named(path, &error))?;
    let reader = match avro::Reader::new(file) {
        Ok(reader) => reader,
        Err(error) => {
            sink.account().unreadable(path, &error.to_string());
            return Ok(());
        }
    };
    for record in reader {
        match record {
            Ok(record) => sink.record(record, None)?,
            Err(error) => {
                sink.account().unreadable(path, &error.to_string());
                break;
            }
        }
    }
    Ok(())
}

impl FrameStream {
    fn read(self, sink: &mut dyn Sink) -> io::Result<()> {
        sink.source()?;
        let mut stream = Stream::new(self.fixed_offset_ns);
        let mut origin = Origin {
            agent: self.agent,
            boot: self.boot.map(layout::uuid).unwrap_or_default(),
            run: layout::hex(&self.run),
            class: self.class,
            generation: 0,
            sequence: 0,
            has_wall_clock: stream.has_wall_clock(),
        };
        let mut next = 0;
        let mut generation = None;
        let mut buffer = Vec::new();
        for (sequence, located) in self.frames {
            if sequence > next {
                sink.account().missing(&origin, next, sequence - 1);
                stream.forget_names();
            }
            next = sequence.saturating_add(1);
            let path = &located.path;
            located.load(&mut buffer).map_err(|error| named(path, &error))?;
            let (frame, _) = match Frame::decode(&buffer) {
                Ok(frame) => frame,
                Err(error) => {
                    sink.account().unreadable(path, &error.to_string());
                    stream.forget_names();
                    continue;
                }
            };
            stream.enter(&frame.header);
            origin.generation = frame.header.generation;
            origin.sequence = sequence;
            sink.account().frame(&origin, &frame);
            if generation != Some(origin.generation) {
                generation = Some(origin.generation);
                let header = Header {
                    version: SCHEMA_VERSION,
                    exporter: origin.agent.clone(),
                    ip: "NA".to_owned(),
                    filename: path.display().to_string(),
                };
                sink.record(Record::Header(header), Some(&origin))?;
            }
            for record in frame.records() {
                let converted = record
                    .map_err(|error| error.to_string())
                    .and_then(|record| stream.record(&record).map_err(|error| error.to_string()));
                match converted {
                    Ok(record) => sink.record(record, Some(&origin))?,
                    Err(why) => {
                        sink.account().unreadable(path, &why);
                        stream.forget_names();
                    }
                }
            }
        }
        sink.account().unresolved(stream.unresolved());
        Ok(())
    }
}

impl Located {
    fn load(&self, buffer: &mut Vec<u8>) -> io::Result<()> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.at))?;
        buffer.clear();
        file.take(self.length as u64).read_to_end(buffer)?;
        Ok(())
    }
}
