//! What a flow is with: the kernel's words for a file or a socket in SysFlow's.

use bpf::{FlowStart, Walked, flow as kernel_flow, path};
use codec::{Address, file, network as network_flag};

use crate::flow::Object;
use crate::names;

pub(super) const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
/// File types of the inode's mode that have a letter of their own; all others are `f`.
const RESTYPE: [(u16, u8); 3] = [(0o040000, b'd'), (0o010000, b'p'), (0o140000, b'u')];

/// The object of a flow that begins.
pub(super) fn of(start: &FlowStart, operation: bpf::Operation, path: &Walked<'_>) -> Object {
    if start.family > AF_UNIX {
        return network(start, operation);
    }
    // A namespace has a name of its own, or where it is mounted a path.
    let is_namespace = path.flags & path::NAMESPACE != 0 || path.flags & path::DETACHED == 0;
    let (kind, path, flags) = if operation == bpf::Operation::Setns && !is_namespace {
        // A namespace is also entered by a process's descriptor, which is no file.
        (b'?', format!("pidfd:[{}]", start.inode).into_bytes(), file::DETACHED)
    } else {
        file(start.mode, start.inode, path)
    };
    Object::File { kind, path, device: start.device, inode: start.inode, flags }
}

/// The `restype` of files of this mode.
pub(super) fn kind(mode: u16) -> u8 {
    let kind = RESTYPE.into_iter().find(|(kind, _)| mode & 0o170000 == *kind);
    kind.map_or(b'f', |(_, letter)| letter)
}

/// A file, pipe or unix socket of this mode: its `restype`, its path or name, and bits of
/// [`mod@file`].
pub(super) fn file(mode: u16, inode: u64, path: &Walked<'_>) -> (u8, Vec<u8>, u32) {
    let kind = kind(mode);
    let (name, flags) = match kind {
        b'u' if path.names.is_empty() => (format!("socket:[{inode}]").into_bytes(), file::DETACHED),
        b'u' => {
            let name = unix_name(path.names);
            // A relative name is the program's word at bind; where it stood then is not known.
            let is_whole = name.starts_with(b"/") || name.starts_with(b"@");
            (name, if is_whole { 0 } else { file::PATH_TRUNCATED })
        }
        b'p' if path.flags & path::DETACHED != 0 => {
            (format!("pipe:[{inode}]").into_bytes(), file::DETACHED)
        }
        _ if path.flags & path::NAMESPACE != 0 => {
            let kind = path.names.strip_suffix(&[0]).unwrap_or(path.names);
            let name = [kind, format!(":[{inode}]").as_bytes()].concat();
            (name, file::DETACHED)
        }
        _ => (names::walked(path), names::file_flags(path.flags)),
    };
    (kind, name, flags)
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

/// A unix socket's name: an abstract one begins with a NUL, which is written as `@`; a path
/// ends at its NUL.
fn unix_name(bytes: &[u8]) -> Vec<u8> {
    match bytes.split_first() {
        Some((0, rest)) => [b"@", rest].concat(),
        _ => bytes.split(|b| *b == 0).next().unwrap_or_default().to_vec(),
    }
}
