//! Events that SysFlow has no words for: what was to be changed of a file, and the use of great
//! privileges. Their values become arguments, as `codec/README.md` lists them.

use std::collections::HashMap;

use bpf::{Attribute, Named, Privilege, Socket, Walked};
use codec::{FileEvent, FileId, NetworkEvent, ObjectState, Oid, Operation, Record, Term, file};

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
        let [first, second] = event.values;
        let flags = || format!("{first:#x}").into_bytes();
        let mut args = match kind {
            Operation::Chmod => args(&[format!("{:04o}", first & 0o7777).as_bytes()]),
            Operation::Chown => args(&[
                &owner(&self.users.users, first as u32),
                &owner(&self.users.groups, second as u32),
            ]),
            Operation::Resize => args(&[first.cast_signed().to_string().as_bytes()]),
            Operation::Mknod => {
                let mode = format!("{:06o}", first & 0o177777);
                match first & S_IFMT {
                    S_IFCHR | S_IFBLK => args(&[mode.as_bytes(), device(second).as_bytes()]),
                    _ => args(&[mode.as_bytes()]),
                }
            }
            Operation::Mount => args(&[source, text, &flags()]),
            Operation::Open => args(&[format!("{:#x}", open_flags(first as u32)).as_bytes()]),
            _ => args(&[&flags()]),
        };
        self.privacy.arguments(b"", &mut args);
        self.write_processes(oid, header.time_ns, ObjectState::Reup);
        let file = if event.mode != 0 {
            let path = walked_file(event, name);
            let (kind, path, flags) = object::file(event.mode, event.inode, &path);
            let (device, inode) = (event.device, event.inode);
            let words = FileWords { kind, path: &path, device, inode, flags };
            self.event_file(oid, words, header.time_ns, ObjectState::Reup)
        } else {
            let (restype, state) = match kind {
                Operation::Mknod => (object::kind(first as u16), ObjectState::Created),
                _ => (b'?', ObjectState::Reup),
            };
            let path = names::named(name);
            let flags = file::AS_NAMED | names::file_flags(name.base.flags);
            let words = FileWords { kind: restype, path: &path, device: 0, inode: 0, flags };
            self.event_file(oid, words, header.time_ns, state)
        };
        let record = Record::FileEvent(FileEvent {
            process: oid,
            time_ns: header.time_ns,
            tid: header.tid,
            ops: bit(kind),
            file,
            ret: event.path.ret,
            new_file: None,
            args: &args,
        });
        if self.write(&record, kind) {
            self.count(kind, Term::Stored, 1);
        }
    }

    /// bind, listen, or an accept that failed.
    pub(super) fn socket(&mut self, event: &Socket, operation: bpf::Operation, path: &Walked<'_>) {
        let kind = Operation::ALL[operation as usize];
        let header = &event.header;
        let Some(oid) = self.subject(header, kind) else { return };
        self.write_processes(oid, header.time_ns, ObjectState::Reup);
        let record = if event.family > object::AF_UNIX {
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
            let (restype, path, flags) = object::file(event.mode, event.inode, path);
            let (device, inode) = (event.device, event.inode);
            let words = FileWords { kind: restype, path: &path, device, inode, flags };
            let file = self.event_file(oid, words, header.time_ns, ObjectState::Reup);
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
        let hex = |value: u64| format!("{value:#x}").into_bytes();
        let number = |value: u64| value.to_string().into_bytes();
        let args = match kind {
            Operation::Setgid => {
                self.note_owner(oid, event.header.time_ns, second as u32, third as u32);
                args(&[&owner(&self.users.groups, first as u32)])
            }
            Operation::Capset => args(&[&hex(first), &hex(second), &hex(third)]),
            Operation::Ptrace => args(&[request(first), &number(second)]),
            Operation::LoadModule if path.names.is_empty() => args(&[b"", text, &number(first)]),
            Operation::LoadModule => args(&[&names::walked(path), text, &hex(first)]),
            Operation::LoadBpf => args(&[&number(first), text]),
            Operation::UnloadModule | Operation::Memfd => args(&[text, &hex(first)]),
            _ => args(&[&hex(first)]),
        };
        self.process_event(oid, &event.header, kind, &args, event.ret);
    }

    /// Notes and tells who a process is now.
    pub(super) fn note_owner(&mut self, oid: Oid, time_ns: u64, uid: u32, gid: u32) {
        if let Some(process) = self.processes.get_mut(oid) {
            process.uid = uid;
            process.gid = gid;
            process.written = None;
        }
        self.write_processes(oid, time_ns, ObjectState::Modified);
    }

    fn event_file(
        &mut self,
        oid: Oid,
        words: FileWords<'_>,
        time_ns: u64,
        state: ObjectState,
    ) -> FileId {
        let container = self.container_of(oid);
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

/// Texts with a NUL after each.
pub(super) fn args(texts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::with_capacity(texts.iter().map(|text| text.len() + 1).sum());
    for text in texts {
        out.extend(text.iter().filter(|byte| **byte != 0));
        out.push(0);
    }
    out
}

/// A user's or group's name, or its number where it has none; nothing for "as it is".
pub(super) fn owner(names: &HashMap<u32, Vec<u8>>, id: u32) -> Vec<u8> {
    match names.get(&id) {
        Some(name) => name.clone(),
        None if id == u32::MAX => Vec::new(),
        None => id.to_string().into_bytes(),
    }
}

/// A device number as user space encodes it, in words.
fn device(number: u64) -> String {
    let major = number >> 8 & 0xfff;
    let minor = number & 0xff | number >> 12 & 0xf_ff00;
    format!("{major}:{minor}")
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
        assert_eq!(device(0x0103), "1:3");
        assert_eq!(device(0x1234_56ff | 0xff), "1110:74751");
    }

    #[test]
    fn owners_have_names_numbers_or_stay_as_they_are() {
        let names = HashMap::from([(0, b"root".to_vec())]);
        assert_eq!(owner(&names, 0), b"root");
        assert_eq!(owner(&names, 7), b"7");
        assert_eq!(owner(&names, u32::MAX), b"");
    }
}
