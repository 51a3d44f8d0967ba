//! What a flow is with: the kernel's words for a file or a socket in SysFlow's.

use std::io::Write as _;

use bpf::{FlowStart, Walked, flow as kernel_flow, path};
use codec::{Address, file, network as network_flag};

use crate::flow::Object;
use crate::names;
use crate::texts::Text;

pub(super) const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
/// File types of the inode's mode that have a letter of their own; all others are `f`.
const RESTYPE: [(u16, u8); 3] = [(0o040000, b'd'), (0o010000, b'p'), (0o140000, b'u')];

/// The object of a flow that begins; the path or name of a file is appended to `out`, and has its
/// place in the pool still to be found.
pub(super) fn of(
    start: &FlowStart,
    operation: bpf::Operation,
    path: &Walked<'_>,
    out: &mut Vec<u8>,
) -> Object {
    if start.family > AF_UNIX {
        return network(start, operation);
    }
    // A namespace has a name of its own, or where it is mounted a path.
    let is_namespace = path.flags & path::NAMESPACE != 0 || path.flags & path::DETACHED == 0;
    let (kind, flags) = if operation == bpf::Operation::Setns && !is_namespace {
        // A namespace is also entered by a process's descriptor, which is no file.
        numbered(out, b"pidfd", start.inode);
        (b'?', file::DETACHED)
    } else {
        file(start.mode, start.inode, path, out)
    };
    let (device, inode) = (start.device, start.inode);
    Object::File { kind, path: Text::EMPTY, device, inode, flags }
}

/// Appends the name of a thing without a path: its kind and number.
fn numbered(out: &mut Vec<u8>, kind: &[u8], inode: u64) {
    out.extend_from_slice(kind);
    // Writing to memory does not fail.
    let _ = write!(out, ":[{inode}]");
}

/// The `restype` of files of this mode.
pub(super) fn kind(mode: u16) -> u8 {
    let kind = RESTYPE.into_iter().find(|(kind, _)| mode & 0o170000 == *kind);
    kind.map_or(b'f', |(_, letter)| letter)
}

/// A file, pipe or unix socket of this mode: its `restype` and bits of [`mod@file`]; its path or
/// name is appended to `out`.
pub(super) fn file(mode: u16, inode: u64, path: &Walked<'_>, out: &mut Vec<u8>) -> (u8, u32) {
    let kind = kind(mode);
    let flags = match kind {
        b'u' if path.names.is_empty() => {
            numbered(out, b"socket", inode);
            file::DETACHED
        }
        b'u' => {
            let start = out.len();
            unix_name(path.names, out);
            // A relative name is the program's word at bind; where it stood then is not known.
            let is_whole = matches!(out.get(start), Some(b'/' | b'@'));
            if is_whole { 0 } else { file::PATH_TRUNCATED }
        }
        b'p' if path.flags & path::DETACHED != 0 => {
            numbered(out, b"pipe", inode);
            file::DETACHED
        }
        _ if path.flags & path::NAMESPACE != 0 => {
            numbered(out, path.names.strip_suffix(&[0]).unwrap_or(path.names), inode);
            file::DETACHED
        }
        _ => {
            names::walked(path, out);
            names::file_flags(path.flags)
        }
    };
    (kind, flags)
}

fn network(start: &FlowStart, operation: bpf::Operation) -> Object {
    let local = (address(start.family, &start.local), start.local_port);
    let remote = (address(start.family, &start.remote), start.remote_port);
    let (is_client, assumed) = match operation {
        bpf::Operation::Connect | bpf::Operation::SocketState => (true, false),
        bpf::Operation::Accept => (false, false),
        // Who speaks first on a datagram socket is taken for the client.
        bpf::Operation::Send | bpf::Operation::Write if start.key.peer_family != 0 => (true, true),
        bpf::Operation::Receive | bpf::Operation::Read if start.key.peer_family != 0 => {
            (false, true)
        }
        _ => (local.1 >= remote.1, true),
    };
    let mut flags = 0;
    if assumed {
        flags |= network_flag::ROLE_ASSUMED;
    }
    if start.flags & kernel_flow::PEER_FROM_PROGRAM != 0 {
        flags |= network_flag::PEER_FROM_PROGRAM;
    }
    let (source, destination) = if is_client { (local, remote) } else { (remote, local) };
    Object::Network { source, destination, protocol: start.protocol as u8, flags }
}

/// An address as the kernel side passes it.
pub(super) fn address(family: u16, bytes: &[u8; 16]) -> Address {
    match (family, bytes) {
        (AF_INET, [a, b, c, d, ..]) => Address::V4([*a, *b, *c, *d]),
        _ => Address::V6(*bytes),
    }
}

/// Appends a unix socket's name: an abstract one begins with a NUL, which is written as `@`; a
/// path ends at its NUL.
fn unix_name(bytes: &[u8], out: &mut Vec<u8>) {
    match bytes.split_first() {
        Some((0, rest)) => {
            out.push(b'@');
            out.extend_from_slice(rest);
        }
        _ => out.extend_from_slice(bytes.split(|b| *b == 0).next().unwrap_or_default()),
    }
}
