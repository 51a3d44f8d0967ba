//! Processes as the agent knows them: identity, attributes, and the words that tell of them.
//! [`Processes`] is the table of all. Pure: no clock, no file.

mod table;

use codec::{CLASSES, ObjectState, Oid, Process as Record, process};

use crate::texts::Text;
pub use table::{ANCESTORS_MAX, Processes};

/// procfs tells starts in ticks of 10 ms.
pub const START_TICK_NS: u64 = 10_000_000;

/// Threads of a process that came and went since the last record of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Threads {
    /// First of them, boot clock, ns.
    pub since_ns: u64,
    /// Started.
    pub cloned: u64,
    /// Ended.
    pub exited: u64,
    /// Failed to start.
    pub errors: u64,
}

/// What is told of a process in words: each as `T`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Words<T> {
    /// Absolute path of the executable.
    pub exe: T,
    /// argv\[1..\], a NUL after each.
    pub args: T,
    /// Working directory when last looked up.
    pub cwd: T,
    /// Its container's full id, empty for the host.
    pub container: T,
    /// argv\[0\] as [`codec::Process::argv0`] shortens it.
    pub argv0: T,
    /// The script that `exe` interprets, if any.
    pub script: T,
    /// Allowed variables, `K=V`, a NUL after each.
    pub env: T,
}

impl<T: Copy> Words<T> {
    /// Makes something else of each.
    fn map<U>(self, mut make: impl FnMut(T) -> U) -> Words<U> {
        Words {
            exe: make(self.exe),
            args: make(self.args),
            cwd: make(self.cwd),
            container: make(self.container),
            argv0: make(self.argv0),
            script: make(self.script),
            env: make(self.env),
        }
    }
}

impl Words<Vec<u8>> {
    /// Borrowed.
    pub fn slices(&self) -> Words<&[u8]> {
        Words {
            exe: &self.exe,
            args: &self.args,
            cwd: &self.cwd,
            container: &self.container,
            argv0: &self.argv0,
            script: &self.script,
            env: &self.env,
        }
    }
}

/// argv\[0\] as [`codec::Process::argv0`] shortens it, and the arguments after it, of an `argv`
/// with a NUL after each.
pub fn split_arguments<'a>(exe: &[u8], argv: &'a [u8]) -> (&'a [u8], &'a [u8]) {
    let (first, rest) = match argv.iter().position(|byte| *byte == 0) {
        Some(end) => (&argv[..end], &argv[end + 1..]),
        None => (argv, &[][..]),
    };
    let last_part = exe.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let argv0: &[u8] = if first == last_part {
        b""
    } else if first == exe {
        b"/"
    } else {
        first
    };
    (argv0, rest)
}

/// A process as the agent knows it.
#[derive(Clone, Copy, Debug)]
pub struct Process {
    /// Identity.
    pub oid: Oid,
    /// Parent at creation.
    pub parent: Option<Oid>,
    /// Real user.
    pub uid: u32,
    /// Real group.
    pub gid: u32,
    /// Whether it has a controlling terminal.
    pub tty: bool,
    /// Whether it is pid 1 of its namespace.
    pub entry: bool,
    /// Bits of [`codec::process`].
    pub flags: u32,
    /// Inode number of its mount namespace, 0 if unknown.
    pub mount_namespace: u32,
    /// By class, the generation in which it was last written.
    pub written: [Option<u32>; CLASSES],
    /// When it ended, boot clock, ns.
    pub ended_ns: Option<u64>,
    /// Threads not yet told.
    pub threads: Threads,
    /// Flows of it that go on.
    pub flows: u32,
    /// Whether it has done something since it was last looked at as one that could go.
    active: bool,
    /// Its words, in the pool of the table.
    words: Words<Text>,
}

impl Process {
    /// A process of which nothing but its identity is known.
    pub fn unknown(oid: Oid) -> Process {
        Process {
            oid,
            parent: None,
            uid: u32::MAX,
            gid: u32::MAX,
            tty: false,
            entry: false,
            flags: process::INCOMPLETE,
            mount_namespace: 0,
            written: [None; CLASSES],
            ended_ns: None,
            threads: Threads::default(),
            flows: 0,
            active: true,
            words: Words {
                exe: Text::EMPTY,
                args: Text::EMPTY,
                cwd: Text::EMPTY,
                container: Text::EMPTY,
                argv0: Text::EMPTY,
                script: Text::EMPTY,
                env: Text::EMPTY,
            },
        }
    }

    /// The entity record.
    pub fn record<'a>(
        &self,
        words: &Words<&'a [u8]>,
        state: ObjectState,
        time_ns: u64,
        container: u32,
        user: &'a [u8],
        group: &'a [u8],
    ) -> Record<'a> {
        Record {
            state,
            oid: self.oid,
            parent: self.parent,
            time_ns,
            exe: words.exe,
            args: words.args,
            uid: self.uid,
            gid: self.gid,
            user,
            group,
            tty: self.tty,
            container,
            entry: self.entry,
            cwd: words.cwd,
            env: words.env,
            flags: self.flags,
            argv0: words.argv0,
            script: words.script,
            mount_namespace: self.mount_namespace,
        }
    }
}
