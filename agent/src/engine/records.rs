//! How the engine writes: each record behind the entities that it refers to, each entity once in
//! a generation.

use std::hash::BuildHasher;

use bpf::{Header, Named};
use codec::{
    Class, Container, File, FileEvent, FileId, ObjectState, Oid, Operation, ProcessEvent, Record,
    Subject, Term, file, op,
};

use super::{CONTAINERS_MAX, Engine};
use crate::names;

/// SysFlow's `CT_CUSTOM`: the control group tells the container's id, not its runtime.
const CONTAINER_KIND_CUSTOM: u8 = 5;

impl Engine {
    pub(super) fn file_event(
        &mut self,
        header: &Header,
        ret: i32,
        operation: bpf::Operation,
        first: &Named<'_>,
        second: Option<&Named<'_>>,
    ) {
        let kind = Operation::ALL[operation as usize];
        let ops = bit(kind);
        let Some(oid) = self.subject(header, kind) else { return };
        let object = self.name_hash(first);
        if self.fold_event(header, oid, kind, Subject::Files, object) {
            return;
        }
        self.write_processes(Class::Volume, oid, header.time_ns, ObjectState::Reup);
        let container = self.container_of(Class::Volume, oid);
        let restype = if ops & (op::MKDIR | op::RMDIR) != 0 { b'd' } else { b'?' };
        let name = |engine: &mut Engine, named: &Named<'_>, is_content: bool, state| {
            let mut path = std::mem::take(&mut engine.buffers.paths);
            path.clear();
            if is_content {
                path.extend_from_slice(named.name);
            } else {
                names::named(named, &mut path);
            }
            let flags = file::AS_NAMED | names::file_flags(named.base.flags);
            let file = engine.file(
                FileWords { kind: restype, path: &path, device: 0, inode: 0, flags },
                container,
                header.time_ns,
                state,
            );
            engine.buffers.paths = path;
            file
        };
        let created = if ops & (op::MKDIR | op::RMDIR | op::UNLINK) != 0 {
            ObjectState::Created
        } else {
            ObjectState::Reup
        };
        let file = name(self, first, ops == op::SYMLINK, created);
        let new_file = second.map(|second| name(self, second, false, ObjectState::Created));
        let record = Record::FileEvent(FileEvent {
            process: oid,
            time_ns: header.time_ns,
            tid: header.tid,
            ops,
            file,
            ret,
            new_file,
            args: &[],
        });
        if self.write(&record, kind) {
            self.count(kind, Term::Stored, 1);
        }
    }

    pub(super) fn process_event(
        &mut self,
        oid: Oid,
        header: &Header,
        kind: Operation,
        args: &[u8],
        ret: i32,
    ) {
        self.write_processes(Class::Urgent, oid, header.time_ns, ObjectState::Reup);
        let mut masked = std::mem::take(&mut self.buffers.masked);
        masked.clear();
        self.privacy.arguments(b"", args, &mut masked);
        let record = Record::ProcessEvent(ProcessEvent {
            process: oid,
            time_ns: header.time_ns,
            tid: header.tid,
            ops: bit(kind),
            args: &masked,
            ret,
        });
        if self.write(&record, kind) {
            self.count(kind, Term::Stored, 1);
        }
        self.buffers.masked = masked;
    }

    /// Writes an event or a flow into the stream of its class.
    pub(super) fn write(&mut self, record: &Record<'_>, kind: Operation) -> bool {
        let written = self.batch.push(Class::of(record).unwrap_or(Class::Volume), record);
        if !written {
            self.count(kind, Term::LostEncoding, 1);
        }
        written
    }

    /// Writes an entity into the stream of a class. It is no operation, but a record all the same.
    fn write_entity(&mut self, class: Class, record: &Record<'_>) {
        if !self.batch.push(class, record) {
            self.batch.books.add_lost_records(Term::LostEncoding, 1);
        }
    }

    /// Writes into the stream of a class the process and those of its ancestors that the present
    /// generation does not have yet, root first. `state` is the process's own; the others are
    /// re-emitted.
    pub(super) fn write_processes(
        &mut self,
        class: Class,
        oid: Oid,
        now_ns: u64,
        state: ObjectState,
    ) {
        let generation = self.batch.generation(class);
        loop {
            let chain = self.processes.unwritten(oid, class, generation);
            for next in &chain {
                let state = if *next == oid { state } else { ObjectState::Reup };
                self.write_process(class, *next, now_ns, state, generation);
            }
            // A long chain comes in parts, of which each is written once.
            if chain.is_empty() || chain.last() == Some(&oid) {
                break;
            }
        }
    }

    fn write_process(
        &mut self,
        class: Class,
        oid: Oid,
        now_ns: u64,
        state: ObjectState,
        generation: u32,
    ) {
        let container = self.container_of(class, oid);
        let Some(process) = self.processes.get_mut(oid) else { return };
        process.written[class as usize] = Some(generation);
        let process = *process;
        let mut buffer = std::mem::take(&mut self.buffers.entity);
        let words = self.processes.words(&process, &mut buffer);
        let user = self.users.users.get(&process.uid).map_or(&[][..], Vec::as_slice);
        let group = self.users.groups.get(&process.gid).map_or(&[][..], Vec::as_slice);
        let record = process.record(&words, state, now_ns, container, user, group);
        if !self.batch.push(class, &Record::Process(record)) {
            self.batch.books.add_lost_records(Term::LostEncoding, 1);
        }
        self.buffers.entity = buffer;
    }

    /// Numbers of files and containers hold for one generation.
    fn begin_numbers(&mut self, class: Class) {
        let generation = self.batch.generation(class);
        let containers = &mut self.containers[class as usize];
        if std::mem::replace(&mut containers.generation, generation) == generation {
            return;
        }
        containers.numbers.clear();
        containers.told = 0;
        if class == Class::Volume {
            self.files.clear();
            self.files_told = 0;
        }
    }

    /// The number of the process's container in the present generation of a class, written if it
    /// is new.
    pub(super) fn container_of(&mut self, class: Class, oid: Oid) -> u32 {
        let mut buffer = std::mem::take(&mut self.buffers.entity);
        let id = self.processes.container(oid, &mut buffer);
        let number = if id.is_empty() { 0 } else { self.container(class, id) };
        self.buffers.entity = buffer;
        number
    }

    fn container(&mut self, class: Class, id: &[u8]) -> u32 {
        self.begin_numbers(class);
        let key = self.hasher.hash_one(id);
        let containers = &mut self.containers[class as usize];
        if let Some(number) = containers.numbers.get(&key) {
            return *number;
        }
        containers.told += 1;
        let number = containers.told;
        if containers.numbers.len() < CONTAINERS_MAX {
            containers.numbers.insert(key, number);
        }
        let record = Record::Container(Container {
            id: number,
            full_id: id,
            name: &[],
            image: &[],
            image_id: &[],
            kind: CONTAINER_KIND_CUSTOM,
            privileged: false,
            pod_id: &[],
        });
        self.write_entity(class, &record);
        number
    }

    /// The number of a file in the present generation of volumes, the only records that refer to
    /// files, written if it is new.
    pub(super) fn file(
        &mut self,
        words: FileWords<'_>,
        container: u32,
        now_ns: u64,
        state: ObjectState,
    ) -> FileId {
        self.begin_numbers(Class::Volume);
        let key = self.hasher.hash_one((
            words.kind,
            words.path,
            container,
            words.device,
            words.inode,
            words.flags,
        ));
        if let Some(id) = self.files.get(&key) {
            return *id;
        }
        let id = FileId(self.files_told);
        self.files_told += 1;
        if self.files.len() < self.files_max {
            self.files.insert(key, id);
        }
        let record = Record::File(File {
            state,
            id,
            time_ns: now_ns,
            kind: words.kind,
            path: words.path,
            container,
            device: words.device,
            inode: words.inode,
            flags: words.flags,
        });
        self.write_entity(Class::Volume, &record);
        id
    }
}

#[derive(Clone, Copy)]
pub(super) struct FileWords<'a> {
    pub(super) kind: u8,
    pub(super) path: &'a [u8],
    pub(super) device: u32,
    pub(super) inode: u64,
    pub(super) flags: u32,
}

/// The bit of an event or flow that tells of an operation of this kind.
pub(super) fn bit(kind: Operation) -> u64 {
    match kind {
        Operation::Clone => op::CLONE,
        Operation::Exec => op::EXEC,
        Operation::Exit => op::EXIT,
        Operation::Setuid => op::SETUID,
        Operation::Open => op::OPEN,
        Operation::Close => op::CLOSE,
        Operation::Read | Operation::Receive => op::READ_RECV,
        Operation::Write | Operation::Send => op::WRITE_SEND,
        Operation::Connect | Operation::SocketState => op::CONNECT,
        Operation::Accept => op::ACCEPT,
        Operation::Shutdown => op::SHUTDOWN,
        Operation::Mkdir => op::MKDIR,
        Operation::Rmdir => op::RMDIR,
        Operation::Unlink => op::UNLINK,
        Operation::Rename => op::RENAME,
        Operation::Link => op::LINK,
        Operation::Symlink => op::SYMLINK,
        Operation::Mmap => op::MMAP,
        Operation::Setns => op::SETNS,
        // Told by a mark on its process.
        Operation::IoUring => 0,
        Operation::Chmod => op::CHMOD,
        Operation::Chown => op::CHOWN,
        Operation::Mount => op::MOUNT,
        Operation::Umount => op::UMOUNT,
        Operation::Resize => op::RESIZE,
        Operation::Mknod => op::MKNOD,
        Operation::Setgid => op::SETGID,
        Operation::Capset => op::CAPSET,
        Operation::Ptrace => op::PTRACE,
        Operation::LoadModule => op::LOAD_MODULE,
        Operation::UnloadModule => op::UNLOAD_MODULE,
        Operation::LoadBpf => op::LOAD_BPF,
        Operation::Unshare => op::UNSHARE,
        Operation::Memfd => op::MEMFD,
        Operation::Bind => op::BIND,
        Operation::Listen => op::LISTEN,
    }
}
