//! Events as they come out of the ring: bytes in, borrowed views out. Pure; it knows neither
//! libbpf nor SysFlow. An event that is cut short or of an unknown kind gives `None`, and the
//! caller counts it.

use crate::kernel::{
    Attribute, Clone_, ClosedRange, Exec, ExecFailed, Exit, FlowEnd, FlowStart, Fork, Header,
    IoUring, Operation, PathEvent, Plain, Privilege, Setuid, Socket, SocketState,
};

/// `EVENT_COMPAT` of `event.h`: a 32-bit task on a 64-bit kernel.
pub const EVENT_COMPAT: u16 = 1;

/// Flags of walked paths (`PATH_*` of `event.h`).
pub mod path {
    /// The leading part is missing.
    pub const TRUNCATED: u8 = 1;
    /// No name leads there any more.
    pub const DELETED: u8 = 2;
    /// Not below the root of the mount namespace.
    pub const DETACHED: u8 = 4;
    /// The process's root is not the root of its mount namespace.
    pub const CHROOT: u8 = 8;
    /// Not below the process's root.
    pub const OUTSIDE: u8 = 16;
    /// There is no such directory, or the name could not be read.
    pub const UNKNOWN: u8 = 32;
    /// No path: the kind of a namespace, as `net`.
    pub const NAMESPACE: u8 = 64;
}

/// Flags of [`FlowStart`] (`FLOW_*` of `event.h`).
pub mod flow {
    /// The table was full: this one operation is all there is.
    pub const UNTRACKED: u8 = 1;
    /// The peer is what the program passed, not the socket's.
    pub const PEER_FROM_PROGRAM: u8 = 2;
    /// connect or setns on a flow that exists.
    pub const CONTINUED: u8 = 4;
    /// [`FlowEnd`](super::FlowEnd) by close.
    pub const CLOSED: u8 = 1;
    /// [`FlowEnd`](super::FlowEnd) by close_range, which is no operation of its own.
    pub const CLOSED_RANGE: u8 = 5;
    /// [`FlowEnd`](super::FlowEnd) by dup2 or dup3, which are no operations of their own.
    pub const CLOSED_DUP: u8 = 6;
    /// [`FlowEnd`](super::FlowEnd) by a close that was noticed when the descriptor's number was
    /// in use again; the call is counted elsewhere.
    pub const CLOSED_LATE: u8 = 7;
}

/// A path as the kernel side walked it: names, leaf first, a NUL after each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walked<'a> {
    /// The names.
    pub names: &'a [u8],
    /// Bits of [`path`].
    pub flags: u8,
}

impl Walked<'_> {
    /// Appends the path, root first, with a leading slash, through `append`.
    pub fn each_part<'s>(&'s self, mut append: impl FnMut(&'s [u8])) {
        let names = self.names.strip_suffix(&[0]).unwrap_or(self.names);
        if names.is_empty() {
            return;
        }
        for name in names.rsplit(|byte| *byte == 0) {
            append(name);
        }
    }
}

/// One or two names of a [`PathEvent`]: where it starts, and the program's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named<'a> {
    /// The directory that a relative name starts from, or the process's root.
    pub base: Walked<'a>,
    /// How much of `base`, at its end, leads to the process's root: `..` does not climb there.
    pub root_bytes: usize,
    /// The name as the program gave it.
    pub name: &'a [u8],
}

/// A program that a process began.
#[derive(Clone, Copy, Debug)]
pub struct Started<'a> {
    /// Numbers.
    pub exec: Exec,
    /// The executable; of a script its interpreter.
    pub exe: Walked<'a>,
    /// The working directory.
    pub cwd: Walked<'a>,
    /// argv from its first on, a NUL after each.
    pub args: &'a [u8],
    /// Name of the innermost control group.
    pub cgroup: &'a [u8],
    /// The script as it was named; empty where `exe` is no interpreter.
    pub script: &'a [u8],
    /// The beginning of the environment, a NUL after each variable.
    pub env: &'a [u8],
}

/// One observation from the kernel.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum Event<'a> {
    Fork(Fork),
    Exec(Started<'a>),
    Exit(Exit),
    Clone(Clone_),
    ExecFailed {
        failed: ExecFailed,
        path: &'a [u8],
    },
    Setuid(Setuid),
    FlowStart {
        start: FlowStart,
        operation: Operation,
        path: Walked<'a>,
    },
    FlowEnd(FlowEnd),
    Path {
        path: PathEvent,
        operation: Operation,
        first: Named<'a>,
        second: Option<Named<'a>>,
    },
    SocketState(SocketState),
    ClosedRange(ClosedRange),
    IoUring(IoUring),
    Attribute {
        attribute: Attribute,
        operation: Operation,
        name: Named<'a>,
        source: &'a [u8],
        text: &'a [u8],
    },
    Socket {
        socket: Socket,
        operation: Operation,
        path: Walked<'a>,
    },
    Privilege {
        privilege: Privilege,
        operation: Operation,
        path: Walked<'a>,
        text: &'a [u8],
    },
}

impl<'a> Event<'a> {
    /// What every event begins with.
    pub fn header(&self) -> &Header {
        match self {
            Event::Fork(event) => &event.header,
            Event::Exec(started) => &started.exec.header,
            Event::Exit(event) => &event.header,
            Event::Clone(event) => &event.header,
            Event::ExecFailed { failed, .. } => &failed.header,
            Event::Setuid(event) => &event.header,
            Event::FlowStart { start, .. } => &start.header,
            Event::FlowEnd(event) => &event.header,
            Event::Path { path, .. } => &path.header,
            Event::SocketState(event) => &event.header,
            Event::ClosedRange(event) => &event.header,
            Event::IoUring(event) => &event.header,
            Event::Attribute { attribute, .. } => &attribute.path.header,
            Event::Privilege { privilege, .. } => &privilege.header,
            Event::Socket { socket, .. } => &socket.header,
        }
    }

    /// Decodes one ring record.
    pub fn decode(bytes: &'a [u8]) -> Option<Event<'a>> {
        let (header, _) = Header::read(bytes)?;
        Some(match header.kind {
            1 => Event::Fork(Fork::read(bytes)?.0),
            2 => {
                let (exec, text) = Exec::read(bytes)?;
                let (exe, text) = text.split_at_checked(exec.exe_bytes.into())?;
                let (cwd, text) = text.split_at_checked(exec.cwd_bytes.into())?;
                let (args, text) = text.split_at_checked(exec.args_bytes.into())?;
                let (cgroup, text) = text.split_at_checked(exec.cgroup_bytes.into())?;
                let (script, text) = text.split_at_checked(exec.script_bytes.into())?;
                let (env, _) = text.split_at_checked(exec.env_bytes.into())?;
                Event::Exec(Started {
                    exe: Walked { names: exe, flags: exec.exe_flags },
                    cwd: Walked { names: cwd, flags: exec.cwd_flags },
                    args,
                    cgroup,
                    script,
                    env,
                    exec,
                })
            }
            3 => Event::Exit(Exit::read(bytes)?.0),
            4 => Event::Clone(Clone_::read(bytes)?.0),
            5 => {
                let (failed, text) = ExecFailed::read(bytes)?;
                Event::ExecFailed { path: text.get(..failed.path_bytes.into())?, failed }
            }
            6 => Event::Setuid(Setuid::read(bytes)?.0),
            7 => {
                let (start, text) = FlowStart::read(bytes)?;
                let names = text.get(..start.path_bytes.into())?;
                Event::FlowStart {
                    operation: Operation::from_number(start.operation)?,
                    path: Walked { names, flags: start.path_flags },
                    start,
                }
            }
            8 => Event::FlowEnd(FlowEnd::read(bytes)?.0),
            9 => {
                let (path, text) = PathEvent::read(bytes)?;
                let (named, _) = names(&path, text)?;
                Event::Path {
                    operation: Operation::from_number(path.operation)?,
                    first: named[0]?,
                    second: named[1],
                    path,
                }
            }
            10 => Event::SocketState(SocketState::read(bytes)?.0),
            11 => Event::ClosedRange(ClosedRange::read(bytes)?.0),
            12 => Event::IoUring(IoUring::read(bytes)?.0),
            13 => {
                let (attribute, text) = Attribute::read(bytes)?;
                let (named, text) = names(&attribute.path, text)?;
                Event::Attribute {
                    operation: Operation::from_number(attribute.path.operation)?,
                    name: named[0]?,
                    source: named[1].map_or(&[], |source| source.name),
                    text: text.get(..attribute.text_bytes.into())?,
                    attribute,
                }
            }
            14 => {
                let (privilege, text) = Privilege::read(bytes)?;
                let (path, text) = text.split_at_checked(privilege.path_bytes.into())?;
                Event::Privilege {
                    operation: Operation::from_number(privilege.operation)?,
                    path: Walked { names: path, flags: privilege.path_flags },
                    text: text.get(..privilege.text_bytes.into())?,
                    privilege,
                }
            }
            15 => {
                let (socket, text) = Socket::read(bytes)?;
                let names = text.get(..socket.path_bytes.into())?;
                Event::Socket {
                    operation: Operation::from_number(socket.operation)?,
                    path: Walked { names, flags: 0 },
                    socket,
                }
            }
            _ => return None,
        })
    }
}

/// The one or two names of an event, and what follows them.
fn names<'a>(path: &PathEvent, mut text: &'a [u8]) -> Option<([Option<Named<'a>>; 2], &'a [u8])> {
    let mut named = [None; 2];
    for (index, named) in named.iter_mut().enumerate().take(path.names.min(2).into()) {
        let (base, rest) = text.split_at_checked(path.base_bytes[index].into())?;
        let (name, rest) = rest.split_at_checked(path.name_bytes[index].into())?;
        text = rest;
        let base = Walked { names: base, flags: path.base_flags[index] };
        let root_bytes = path.root_bytes[index].into();
        *named = Some(Named { base, root_bytes, name });
    }
    Some((named, text))
}
