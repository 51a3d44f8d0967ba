//! Turns the records of frames into SysFlow records.
//!
//! It keeps what one stream has said so far: clock mapping, containers and file numbers of the
//! current generation. Frames go in in order, records come out in the same order. Tables are
//! bounded by [`NAMES_MAX`]; a generation with more is refused as a whole, so that nothing is
//! attributed wrongly. It knows nothing of files and sockets.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use codec::{Clock, EndReason, FileId, Frame, Header as FrameHeader, op};
use sha1::{Digest, Sha1};

use crate::sysflow::{
    CONTAINER_TYPE_CUSTOM, CONTAINER_TYPES, Container, Endpoints, File, FileEvent, FileFlow,
    FileRef, Foid, Inode, K8S_ACTIONS, K8S_COMPONENTS, K8sEvent, NetworkEvent, NetworkFlow, Oid,
    Pod, Process, ProcessEvent, ProcessFlow, Record, Summary, Volume,
};

/// Most containers, processes and file numbers of one generation together. An agent begins a
/// new generation after 10,000 records by default; this is a hundred times as much.
const NAMES_MAX: usize = 1_000_000;

/// Container id of a record whose container number no record names.
const UNRESOLVED: &str = "unresolved";

/// SysFlow's short container id: so many characters of the whole.
const SHORT_ID_BYTES: usize = 12;

/// References that lead nowhere, by kind of the missing entity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unresolved {
    /// Events and flows whose process no record describes.
    pub(crate) processes: u64,
    /// Events and flows whose file no record names.
    pub(crate) files: u64,
    /// Processes and files whose container no record describes.
    pub(crate) containers: u64,
}

impl Unresolved {
    /// The counts by name.
    pub(crate) fn counts(&self) -> BTreeMap<&'static str, u64> {
        [("process", self.processes), ("file", self.files), ("container", self.containers)].into()
    }
}

#[derive(Clone, Copy)]
struct NamedFile {
    oid: Foid,
    inode: Inode,
}

/// What one stream has said so far.
#[derive(Default)]
pub(crate) struct Stream {
    /// Decides object ids, for the whole boot.
    fixed_offset_ns: Option<i64>,
    /// Decides event times, as last told.
    offset_ns: Option<i64>,
    generation: Option<u32>,
    containers: HashMap<u32, String>,
    files: HashMap<FileId, NamedFile>,
    /// SysFlow `restype` of files by path and container, where it is known.
    kinds: HashMap<Foid, u8>,
    processes: HashSet<Oid>,
    unresolved: Unresolved,
}

/// A generation holds more names than the tables take.
#[derive(Debug)]
pub(crate) struct TooManyNames;

impl std::fmt::Display for TooManyNames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "generation names more than {NAMES_MAX} files, processes and containers")
    }
}

impl std::error::Error for TooManyNames {}

impl Stream {
    /// A stream of a boot whose object ids use `fixed_offset_ns`, where it is known.
    pub(crate) fn new(fixed_offset_ns: Option<i64>) -> Self {
        Stream { fixed_offset_ns, offset_ns: fixed_offset_ns, ..Stream::default() }
    }

    /// Takes note of a frame's header. A new generation forgets the names of the one before,
    /// even where its first frame is missing.
    pub(crate) fn enter(&mut self, header: &FrameHeader<'_>) {
        if header.start.is_some() || self.generation != Some(header.generation) {
            self.forget_names();
            self.processes.clear();
        }
        self.generation = Some(header.generation);
        if let Some(Clock { offset_ns, .. }) = header.clock {
            self.offset_ns = Some(offset_ns);
            self.fixed_offset_ns.get_or_insert(offset_ns);
        }
    }

    /// Forgets which number is which file and container: frames are missing, and in them
    /// numbers may have been given anew.
    pub(crate) fn forget_names(&mut self) {
        self.containers.clear();
        self.files.clear();
        self.kinds.clear();
    }

    /// Whether times are Unix time; else no clock mapping is known and they are boot time.
    pub(crate) fn has_wall_clock(&self) -> bool {
        self.offset_ns.is_some()
    }

    /// References so far that led nowhere.
    pub(crate) fn unresolved(&self) -> Unresolved {
        self.unresolved
    }

    /// Unix time of a moment on the boot clock, by the newest mapping.
    pub(crate) fn wall(&self, boot_ns: u64) -> i64 {
        wall(boot_ns, self.offset_ns.unwrap_or(0))
    }

    fn oid(&self, oid: codec::Oid) -> Oid {
        Oid {
            create_ts: wall(oid.start_ns, self.fixed_offset_ns.unwrap_or(0)),
            hpid: oid.pid.into(),
        }
    }

    /// The process of an event or flow.
    fn subject(&mut self, oid: codec::Oid) -> Oid {
        let oid = self.oid(oid);
        if !self.processes.contains(&oid) {
            self.unresolved.processes += 1;
        }
        oid
    }

    fn container(&mut self, number: u32) -> Option<String> {
        if number == 0 {
            return None;
        }
        let id = self.containers.get(&number).cloned();
        if id.is_none() {
            self.unresolved.containers += 1;
        }
        Some(id.unwrap_or_else(|| UNRESOLVED.to_owned()))
    }

    fn file(&mut self, id: FileId) -> FileRef {
        match self.files.get(&id) {
            Some(file) => FileRef { oid: Some(file.oid), inode: Some(file.inode) },
            None => {
                self.unresolved.files += 1;
                FileRef::default()
            }
        }
    }

    /// Turns one record, after [`Stream::enter`] of its frame and all records before it.
    ///
    /// # Errors
    /// [`TooManyNames`].
    pub(crate) fn record(&mut self, record: &codec::Record<'_>) -> Result<Record, TooManyNames> {
        Ok(match record {
            codec::Record::Container(r) => Record::Container(self.note_container(r)?),
            codec::Record::Process(r) => Record::Process(self.note_process(r)?),
            codec::Record::File(r) => Record::File(self.note_file(r)?),
            codec::Record::ProcessEvent(r) => Record::ProcessEvent(ProcessEvent {
                process: self.subject(r.process),
                ts: self.wall(r.time_ns),
                tid: r.tid.into(),
                ops: r.ops,
                args: list(r.args),
                ret: r.ret,
            }),
            codec::Record::NetworkFlow(r) => Record::NetworkFlow(NetworkFlow {
                process: self.subject(r.process),
                ts: self.wall(r.time_ns),
                tid: r.tid.into(),
                ops: flow_ops(r.ops, r.end),
                end_ts: self.wall(r.end_ns),
                ends: Endpoints {
                    source: address(r.source),
                    source_port: r.source_port.into(),
                    destination: address(r.destination),
                    destination_port: r.destination_port.into(),
                    protocol: r.protocol.into(),
                },
                fd: r.fd,
                volume: volume(r.volume),
                end: Some(r.end),
                error: Some(r.error),
                flags: r.flags,
            }),
            codec::Record::FileFlow(r) => Record::FileFlow(FileFlow {
                process: self.subject(r.process),
                ts: self.wall(r.time_ns),
                tid: r.tid.into(),
                ops: flow_ops(r.ops, r.end),
                open_flags: r.open_flags.cast_signed(),
                end_ts: self.wall(r.end_ns),
                file: self.file(r.file),
                fd: r.fd,
                volume: volume(r.volume),
                end: Some(r.end),
            }),
            codec::Record::FileEvent(r) => Record::FileEvent(FileEvent {
                process: self.subject(r.process),
                ts: self.wall(r.time_ns),
                tid: r.tid.into(),
                ops: r.ops,
                file: self.file(r.file),
                ret: r.ret,
                new_file: r.new_file.map(|id| self.file(id)),
                args: list(r.args),
            }),
            codec::Record::NetworkEvent(r) => Record::NetworkEvent(NetworkEvent {
                process: self.subject(r.process),
                ts: self.wall(r.time_ns),
                tid: r.tid.into(),
                ops: r.ops,
                ends: Endpoints {
                    source: address(r.source),
                    source_port: r.source_port.into(),
                    destination: address(r.destination),
                    destination_port: r.destination_port.into(),
                    protocol: r.protocol.into(),
                },
                ret: r.ret,
            }),
            codec::Record::ProcessFlow(r) => Record::ProcessFlow(ProcessFlow {
                process: self.subject(r.process),
                ts: self.wall(r.time_ns),
                threads_cloned: signed(r.threads_cloned),
                ops: r.ops | cut(r.end),
                end_ts: self.wall(r.end_ns),
                threads_exited: signed(r.threads_exited),
                clone_errors: signed(r.clone_errors),
                end: Some(r.end),
            }),
            codec::Record::Pod(r) => Record::Pod(Pod {
                ts: self.wall(r.time_ns),
                id: text(r.id),
                name: text(r.name),
                node: text(r.node),
                namespace: text(r.namespace),
                restarts: signed(r.restarts),
                ..Pod::default()
            }),
            codec::Record::K8sEvent(r) => Record::K8sEvent(K8sEvent {
                // The last name of each list is "unknown".
                kind: r.kind.min(K8S_COMPONENTS.len() as u8 - 1),
                action: r.action.min(K8S_ACTIONS.len() as u8 - 1),
                ts: self.wall(r.time_ns),
                message: text(r.message),
            }),
            codec::Record::Summary(r) => Record::Summary(Summary {
                process: self.subject(r.process),
                ts: self.wall(r.time_ns),
                end_ts: self.wall(r.end_ns),
                subject: r.subject,
                session: r.session,
                ops: r.ops,
                records: r.records,
                objects: r.objects,
                processes: r.processes,
                volume: volume(r.volume),
                end: r.end,
            }),
        })
    }

    /// Whether one more name may be noted, if it is not known already.
    fn has_room(&self, known: bool) -> Result<(), TooManyNames> {
        let names = self.containers.len() + self.files.len() + self.processes.len();
        // One number may be given to one path after the other.
        let full = self.kinds.len() >= NAMES_MAX || (names >= NAMES_MAX && !known);
        if full { Err(TooManyNames) } else { Ok(()) }
    }

    fn note_container(&mut self, r: &codec::Container<'_>) -> Result<Container, TooManyNames> {
        let full_id = text(r.full_id);
        let id: String = full_id.chars().take(SHORT_ID_BYTES).collect();
        self.has_room(self.containers.contains_key(&r.id))?;
        self.containers.insert(r.id, id.clone());
        let known = usize::from(r.kind) < CONTAINER_TYPES.len();
        Ok(Container {
            id,
            name: text(r.name),
            image: text(r.image),
            image_id: text(r.image_id),
            kind: if known { r.kind } else { CONTAINER_TYPE_CUSTOM },
            privileged: r.privileged,
            pod_id: (!r.pod_id.is_empty()).then(|| text(r.pod_id)),
            full_id,
        })
    }

    fn note_process(&mut self, r: &codec::Process<'_>) -> Result<Process, TooManyNames> {
        let oid = self.oid(r.oid);
        self.has_room(self.processes.contains(&oid))?;
        self.processes.insert(oid);
        Ok(Process {
            state: state(r.state),
            oid,
            parent: r.parent.map(|oid| self.oid(oid)),
            ts: self.wall(r.time_ns),
            exe: text(r.exe),
            args: list(r.args).join(" "),
            uid: r.uid.cast_signed(),
            user: text(r.user),
            gid: r.gid.cast_signed(),
            group: text(r.group),
            tty: r.tty,
            container_id: self.container(r.container),
            entry: r.entry,
            cwd: text(r.cwd),
            env: list(r.env),
            flags: r.flags,
            argv: std::iter::once(argv0(r)).chain(list(r.args)).collect(),
            script: text(r.script),
            mount_namespace: r.mount_namespace,
        })
    }

    fn note_file(&mut self, r: &codec::File<'_>) -> Result<File, TooManyNames> {
        self.has_room(self.files.contains_key(&r.id))?;
        let container_id = self.container(r.container);
        let oid = foid(container_id.as_deref().unwrap_or_default(), r.path);
        let inode = Inode { device: r.device, number: r.inode, flags: r.flags };
        self.files.insert(r.id, NamedFile { oid, inode });
        // Readers know a file by its path, so what an event does by name, without knowing the
        // file's type, must not hide the type that is known.
        let restype = match r.kind {
            b'?' => self.kinds.get(&oid).copied().unwrap_or(b'?'),
            kind => {
                self.kinds.insert(oid, kind);
                kind
            }
        };
        Ok(File {
            state: state(r.state),
            oid,
            ts: self.wall(r.time_ns),
            restype: restype.into(),
            path: text(r.path),
            container_id,
        })
    }
}

/// The moment that a generation's file is named after, Unix time, s: its first frame's oldest
/// record.
pub(crate) fn generation_start_s(frame: &Frame<'_>, fixed_offset_ns: i64) -> i64 {
    wall(frame.header.first_ns, fixed_offset_ns).max(0) / 1_000_000_000
}

/// SysFlow's file identity: SHA-1 of the container's short id (empty for the host) and the
/// path, in this order, without a separator.
pub(crate) fn foid(container: &str, path: &[u8]) -> Foid {
    Sha1::new().chain_update(container).chain_update(path).finalize().into()
}

fn wall(boot_ns: u64, offset_ns: i64) -> i64 {
    let wall = i128::from(boot_ns) + i128::from(offset_ns);
    wall.clamp(i64::MIN.into(), i64::MAX.into()) as i64
}

fn state(state: codec::ObjectState) -> u8 {
    match state {
        codec::ObjectState::Created => 0,
        codec::ObjectState::Modified => 1,
        codec::ObjectState::Reup => 2,
    }
}

/// argv\[0\] as the program got it.
fn argv0(r: &codec::Process<'_>) -> String {
    match r.argv0 {
        b"" => text(r.exe.rsplit(|byte| *byte == b'/').next().unwrap_or_default()),
        b"/" => text(r.exe),
        other => text(other),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Texts that each end in a NUL.
fn list(bytes: &[u8]) -> Vec<String> {
    if bytes.is_empty() {
        return Vec::new();
    }
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    bytes.split(|byte| *byte == 0).map(text).collect()
}

fn address(address: codec::Address) -> IpAddr {
    match address {
        codec::Address::V4(octets) => IpAddr::V4(Ipv4Addr::from(octets)),
        codec::Address::V6(octets) => {
            let address = Ipv6Addr::from(octets);
            address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4)
        }
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn volume(volume: codec::Volume) -> Volume {
    Volume {
        read_ops: signed(volume.read_ops),
        write_ops: signed(volume.write_ops),
        read_bytes: signed(volume.read_bytes),
        write_bytes: signed(volume.write_bytes),
    }
}

/// SysFlow says TRUNCATE of a flow that was cut and of one whose own close was not seen.
fn flow_ops(ops: u64, end: EndReason) -> u64 {
    let unclosed = end == EndReason::EndDetected && ops & op::CLOSE == 0;
    ops | if unclosed { op::TRUNCATE } else { cut(end) }
}

fn cut(end: EndReason) -> u64 {
    match end {
        EndReason::ForcedEnd | EndReason::LackOfResources => op::TRUNCATE,
        EndReason::Unknown
        | EndReason::IdleTimeout
        | EndReason::ActiveTimeout
        | EndReason::EndDetected => 0,
    }
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
