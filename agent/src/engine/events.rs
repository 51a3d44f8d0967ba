//! Events that SysFlow has no words for: what was to be changed of a file, and the use of great
//! privileges. Their values become arguments, as `codec/README.md` lists them.

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::io::Write as _;

use bpf::{Attribute, Named, Privilege, Socket, Walked};
use codec::{
    CLASSES, Class, FileEvent, FileId, NetworkEvent, ObjectState, Oid, Operation, Record, Subject,
    Term, file,
};

use super::records::{FileWords, bit};
use super::{Engine, object};
use crate::flow::open_flags;
use crate::names;

const S_IFMT: u64 = 0o170000;
const S_IFCHR: u64 = 0o020000;
const S_IFBLK: u64 = 0o060000;

impl Engine {
    /// A change of what a file system says of a file, or an open that was refused.
    pub(super) fn attribute(
        &mut self,
        event: &Attribute,
        operation: bpf::Operation,
        name: &Named<'_>,
        source: &[u8],
        text: &[u8],
    ) {
        let kind = Operation::ALL[operation as usize];
        let header = &event.path.header;
        let Some(oid) = self.subject(header, kind) else { return };
        if !matches!(kind, Operation::Mount | Operation::Umount) {
            let object = self.name_hash(name);
            if self.fold_event(header, oid, kind, Subject::Files, object) {
                return;
            }
        }
        let [first, second] = event.values;
        let mut args = Arguments::begin(&mut self.buffers.args);
        match kind {
            Operation::Chmod => args.number(format_args!("{:04o}", first & 0o7777)),
            Operation::Chown => {
                args.owner(&self.users.users, first as u32);
                args.owner(&self.users.groups, second as u32);
            }
            Operation::Resize => args.number(format_args!("{}", first.cast_signed())),
            Operation::Mknod => {
                args.number(format_args!("{:06o}", first & 0o177777));
                if matches!(first & S_IFMT, S_IFCHR | S_IFBLK) {
                    let (major, minor) = device(second);
                    args.number(format_args!("{major}:{minor}"));
                }
            }
            Operation::Mount => {
                args.text(source);
                args.text(text);
                args.hexadecimal(first);
            }
            Operation::Open => args.hexadecimal(open_flags(first as u32).into()),
            _ => args.hexadecimal(first),
        }
        let args = args.end();
        let mut masked = std::mem::take(&mut self.buffers.masked);
        masked.clear();
        self.privacy.arguments(b"", &args, &mut masked);
        self.buffers.args = args;
        self.write_processes(Class::Volume, oid, header.time_ns, ObjectState::Reup);
        let mut path = std::mem::take(&mut self.buffers.paths);
        path.clear();
        let file = if event.mode != 0 {
            let walked = walked_file(event, name);
            let (kind, flags) = object::file(event.mode, event.inode, &walked, &mut path);
            let (device, inode) = (event.device, event.inode);
            let words = FileWords { kind, path: &path, device, inode, flags };
            self.event_file(oid, words, header.time_ns, ObjectState::Reup)
        } else {
            let (restype, state) = match kind {
                Operation::Mknod => (object::kind(first as u16), ObjectState::Created),
                _ => (b'?', ObjectState::Reup),
            };
            names::named(name, &mut path);
            let flags = file::AS_NAMED | names::file_flags(name.base.flags);
            let words = FileWords { kind: restype, path: &path, device: 0, inode: 0, flags };
            self.event_file(oid, words, header.time_ns, state)
        };
        self.buffers.paths = path;
        let record = Record::FileEvent(FileEvent {
            process: oid,
            time_ns: header.time_ns,
            tid: header.tid,
            ops: bit(kind),
            file,
            ret: event.path.ret,
            new_file: None,
            args: &masked,
        });
        if self.write(&record, kind) {
            self.count(kind, Term::Stored, 1);
        }
        self.buffers.masked = masked;
    }

    /// bind, listen, or an accept that failed.
    pub(super) fn socket(&mut self, event: &Socket, operation: bpf::Operation, path: &Walked<'_>) {
        let kind = Operation::ALL[operation as usize];
        let header = &event.header;
        let Some(oid) = self.subject(header, kind) else { return };
        let is_network = event.family > object::AF_UNIX;
        let subject = if is_network { Subject::Network } else { Subject::Files };
        let object = self.hasher.hash_one((event.local, event.local_port, event.inode));
        if self.fold_event(header, oid, kind, subject, object) {
            return;
        }
        let class = if is_network { Class::Urgent } else { Class::Volume };
        self.write_processes(class, oid, header.time_ns, ObjectState::Reup);
        let record = if is_network {
            Record::NetworkEvent(NetworkEvent {
                process: oid,
                time_ns: header.time_ns,
                tid: header.tid,
                ops: bit(kind),
                source: object::address(event.family, &[0; 16]),
                source_port: 0,
                destination: object::address(event.family, &event.local),
                destination_port: event.local_port,
                protocol: event.protocol as u8,
                ret: event.ret,
            })
        } else {
            let mut words = std::mem::take(&mut self.buffers.paths);
            words.clear();
            let (restype, flags) = object::file(event.mode, event.inode, path, &mut words);
            let (device, inode) = (event.device, event.inode);
            let file = FileWords { kind: restype, path: &words, device, inode, flags };
            let file = self.event_file(oid, file, header.time_ns, ObjectState::Reup);
            self.buffers.paths = words;
            Record::FileEvent(FileEvent {
                process: oid,
                time_ns: header.time_ns,
                tid: header.tid,
                ops: bit(kind),
                file,
                ret: event.ret,
                new_file: None,
                args: &[],
            })
        };
        if self.write(&record, kind) {
            self.count(kind, Term::Stored, 1);
        }
    }

    /// A change or a use of privileges.
    pub(super) fn privilege(
        &mut self,
        event: &Privilege,
        operation: bpf::Operation,
        path: &Walked<'_>,
        text: &[u8],
    ) {
        let kind = Operation::ALL[operation as usize];
        let Some(oid) = self.subject(&event.header, kind) else { return };
        let [first, second, third] = event.values;
        let (header, time_ns) = (&event.header, event.header.time_ns);
        // What has changed something is told by itself, whatever a session does.
        let changed = match kind {
            Operation::Setgid => self.note_owner(oid, time_ns, second as u32, third as u32),
            Operation::Memfd => false,
            _ => event.ret >= 0,
        };
        let exe = self.exe_hash(oid);
        if !changed && self.fold_event(header, oid, kind, Subject::Processes, exe) {
            return;
        }
        let mut args = Arguments::begin(&mut self.buffers.args);
        match kind {
            Operation::Setgid => args.owner(&self.users.groups, first as u32),
            Operation::Capset => event.values.iter().for_each(|value| args.hexadecimal(*value)),
            Operation::Ptrace => {
                args.text(request(first));
                args.number(format_args!("{second}"));
            }
            Operation::LoadModule => {
                if path.names.is_empty() {
                    args.text(b"");
                } else {
                    let mut name = std::mem::take(&mut self.buffers.paths);
                    name.clear();
                    names::walked(path, &mut name);
                    args.text(&name);
                    self.buffers.paths = name;
                }
                args.text(text);
                if path.names.is_empty() {
                    args.number(format_args!("{first}"));
                } else {
                    args.hexadecimal(first);
                }
            }
            Operation::LoadBpf => {
                args.number(format_args!("{first}"));
                args.text(text);
            }
            Operation::UnloadModule | Operation::Memfd => {
                args.text(text);
                args.hexadecimal(first);
            }
            _ => args.hexadecimal(first),
        }
        let args = args.end();
        self.process_event(oid, &event.header, kind, &args, event.ret);
        self.buffers.args = args;
    }

    /// Notes and tells who a process is now.
    /// Returns whether that is another than before.
    pub(super) fn note_owner(&mut self, oid: Oid, time_ns: u64, uid: u32, gid: u32) -> bool {
        let Some(process) = self.processes.get_mut(oid) else { return true };
        if (process.uid, process.gid) == (uid, gid) {
            return false;
        }
        process.uid = uid;
        process.gid = gid;
        process.written = [None; CLASSES];
        self.write_processes(Class::Urgent, oid, time_ns, ObjectState::Modified);
        true
    }

    fn event_file(
        &mut self,
        oid: Oid,
        words: FileWords<'_>,
        time_ns: u64,
        state: ObjectState,
    ) -> FileId {
        let container = self.container_of(Class::Volume, oid);
        self.file(words, container, time_ns, state)
    }
}

/// The path of a call by descriptor. A socket's dentry has no name to tell it by.
fn walked_file<'a>(event: &Attribute, name: &Named<'a>) -> Walked<'a> {
    match object::kind(event.mode) {
        b'u' => Walked { names: &[], ..name.base },
        _ => name.base,
    }
}

/// Arguments that are put together, a NUL after each, in a buffer of the engine.
pub(super) struct Arguments(Vec<u8>);

impl Arguments {
    /// Takes the buffer, to be put back after [`Arguments::end`].
    pub(super) fn begin(buffer: &mut Vec<u8>) -> Arguments {
        let mut out = std::mem::take(buffer);
        out.clear();
        Arguments(out)
    }

    pub(super) fn end(self) -> Vec<u8> {
        self.0
    }

    /// Appends a text, without the NULs in it.
    pub(super) fn text(&mut self, text: &[u8]) {
        self.0.extend(text.iter().filter(|byte| **byte != 0));
        self.0.push(0);
    }

    fn number(&mut self, number: std::fmt::Arguments<'_>) {
        // Writing to memory does not fail.
        let _ = self.0.write_fmt(number);
        self.0.push(0);
    }

    fn hexadecimal(&mut self, number: u64) {
        self.number(format_args!("{number:#x}"));
    }

    /// Appends a user's or group's name, or its number where it has none; nothing for "as it is".
    pub(super) fn owner(&mut self, names: &HashMap<u32, Vec<u8>>, id: u32) {
        match names.get(&id) {
            Some(name) => self.text(name),
            None if id == u32::MAX => self.text(b""),
            None => self.number(format_args!("{id}")),
        }
    }
}

/// Major and minor of a device number as user space encodes it.
fn device(number: u64) -> (u64, u64) {
    (number >> 8 & 0xfff, number & 0xff | number >> 12 & 0xf_ff00)
}

/// The requests of ptrace that are recorded, by name.
fn request(number: u64) -> &'static [u8] {
    match number {
        0 => b"TRACEME",
        4 => b"POKETEXT",
        5 => b"POKEDATA",
        16 => b"ATTACH",
        _ => b"SEIZE",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_told_as_major_and_minor() {
        assert_eq!(device(0x0103), (1, 3));
        assert_eq!(device(0x1234_56ff | 0xff), (1110, 74751));
    }

    #[test]
    fn owners_have_names_numbers_or_stay_as_they_are() {
        let names = HashMap::from([(0, b"root".to_vec())]);
        let mut args = Arguments::begin(&mut Vec::new());
        [0, 7, u32::MAX].into_iter().for_each(|id| args.owner(&names, id));
        assert_eq!(args.end(), b"root\x007\0\0");
    }
}
