//! `event.h` as Rust types: the same members in the same order. Tests hold members,
//! offsets and sizes against the BTF of the built object, and the enumerations against the
//! header's text.

/// Kinds of operations (`enum operation`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Operation {
    Clone,
    Exec,
    Exit,
    Setuid,
    Open,
    Close,
    Read,
    Write,
    Receive,
    Send,
    Connect,
    Accept,
    Shutdown,
    Mkdir,
    Rmdir,
    Unlink,
    Rename,
    Link,
    Symlink,
    SocketState,
    Mmap,
    Setns,
    IoUring,
    Chmod,
    Chown,
    Mount,
    Umount,
    Resize,
    Mknod,
    Setgid,
    Capset,
    Ptrace,
    LoadModule,
    UnloadModule,
    LoadBpf,
    Unshare,
    Memfd,
    Bind,
    Listen,
}

impl Operation {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Operation; 39] = [
        Operation::Clone,
        Operation::Exec,
        Operation::Exit,
        Operation::Setuid,
        Operation::Open,
        Operation::Close,
        Operation::Read,
        Operation::Write,
        Operation::Receive,
        Operation::Send,
        Operation::Connect,
        Operation::Accept,
        Operation::Shutdown,
        Operation::Mkdir,
        Operation::Rmdir,
        Operation::Unlink,
        Operation::Rename,
        Operation::Link,
        Operation::Symlink,
        Operation::SocketState,
        Operation::Mmap,
        Operation::Setns,
        Operation::IoUring,
        Operation::Chmod,
        Operation::Chown,
        Operation::Mount,
        Operation::Umount,
        Operation::Resize,
        Operation::Mknod,
        Operation::Setgid,
        Operation::Capset,
        Operation::Ptrace,
        Operation::LoadModule,
        Operation::UnloadModule,
        Operation::LoadBpf,
        Operation::Unshare,
        Operation::Memfd,
        Operation::Bind,
        Operation::Listen,
    ];

    pub(crate) fn from_number(number: u8) -> Option<Operation> {
        Operation::ALL.get(number as usize).copied()
    }
}

/// Layouts of arguments (`enum call`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, dead_code, reason = "each architecture's table uses a part")]
pub(crate) enum Call {
    None,
    Open,
    OpenAt,
    OpenAt2,
    OpenByHandle,
    Creat,
    Close,
    CloseRange,
    Dup2,
    Read,
    Write,
    RecvFrom,
    SendTo,
    RecvMsg,
    SendMsg,
    Connect,
    Accept,
    Shutdown,
    Mmap,
    Setns,
    Clone,
    Clone3,
    Fork,
    Execve,
    ExecveAt,
    Setuid,
    Setreuid,
    IoUringSetup,
    Bind,
    Listen,
    Setgid,
    Setregid,
    Capset,
    Ptrace,
    InitModule,
    FinitModule,
    DeleteModule,
    Bpf,
    Unshare,
    MemfdCreate,
    Chmod,
    Fchmod,
    FchmodAt,
    Chown,
    Fchown,
    FchownAt,
    Truncate,
    Ftruncate,
    Truncate64,
    Ftruncate64,
    Mknod,
    MknodAt,
    Mount,
    MoveMount,
    Umount,
    Umount2,
    Mkdir,
    MkdirAt,
    Rmdir,
    Unlink,
    UnlinkAt,
    Rename,
    RenameAt,
    Link,
    LinkAt,
    Symlink,
    SymlinkAt,
    Sendfile,
    Splice,
    Tee,
    Vmsplice,
    RecvMmsg,
    SendMmsg,
}

/// A type that any bytes are a value of.
///
/// # Safety
/// The type is `repr(C)`, without padding, and of integers and arrays of them alone.
pub(crate) unsafe trait Plain: Copy {
    /// The value at the start of `bytes`, and what follows it.
    fn read(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (head, rest) = bytes.split_at_checked(size_of::<Self>())?;
        // SAFETY: `head` has the size of `Self`, any bytes are a `Self`, and the read does
        // not need an alignment.
        Some((unsafe { std::ptr::read_unaligned(head.as_ptr().cast()) }, rest))
    }

    /// The bytes of the value.
    fn bytes(&self) -> &[u8] {
        // SAFETY: `Self` has no padding, so all its bytes are initialised.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }
}

macro_rules! plain {
    ($($(#[$meta:meta])* struct $name:ident ($c_name:literal, $size:expr) {
        $($field:ident: $type:ty,)*
    })*) => {
        /// Name in `event.h`, size, and members with their offsets, of each type.
        #[cfg(test)]
        fn layouts() -> Vec<(&'static str, usize, Vec<(&'static str, usize)>)> {
            vec![$((
                $c_name,
                size_of::<$name>(),
                vec![$((stringify!($field), std::mem::offset_of!($name, $field))),*],
            )),*]
        }

        $(
            $(#[$meta])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            #[repr(C)]
            #[allow(missing_docs, unreachable_pub, reason = "one macro for public and inner types")]
            pub struct $name {
                $(pub $field: $type,)*
            }

            const _: () = assert!(size_of::<$name>() == $size);

            // SAFETY: integers and arrays of integers only, padding written out (the size is
            // asserted above against the sum that `event.h` asserts).
            unsafe impl Plain for $name {}
        )*
    };
}

/// Sets of counters that a flow has; see `VOLUME_SLOTS` in `event.h`.
pub(crate) const VOLUME_SLOTS: usize = if cfg!(target_arch = "arm") { 8 } else { 1 };

plain! {
    struct CallEntry ("call_entry", 4) { call: u8, operation: u8, compat_call: u8, compat_operation: u8, }
    struct Settings ("settings", 20) {
        peers_max: u32, args_bytes_max: u32, wake_bytes: u32, env_bytes_max: u32, share_bytes: u32,
    }
    /// What became of the operations of one kind in the kernel.
    struct Tally ("tally", 56) {
        observed: u64, filtered: u64, own: u64, lost_ring: u64, lost_map: u64,
        lost_unreadable: u64, lost_shed: u64,
    }
    /// Calls and bytes.
    struct Volume ("volume", 32) { read_ops: u64, write_ops: u64, read_bytes: u64, write_bytes: u64, }
    /// Names a flow's map entry.
    #[derive(Hash)]
    struct FlowKey ("flow_key", 32) {
        tgid: u32, fd: i32, peer: [u8; 16], peer_port: u16, peer_family: u16, zero: u32,
    }
    struct Flow ("flow", 32 * VOLUME_SLOTS + 32) {
        volume: [Volume; VOLUME_SLOTS], file: u64, start_ns: u64, shutdown: u32, peers: u16,
        ended: u8, socket: u8, remote: u32, mmaps: u32,
    }
    /// What every event begins with.
    struct Header ("event_header", 32) {
        time_ns: u64, start_ns: u64, tgid: u32, tid: u32, kind: u16, flags: u16, session: u32,
    }
    struct Fork ("event_fork", 64) {
        header: Header, child_start_ns: u64, parent_start_ns: u64, child_tgid: u32,
        child_tid: u32, parent_tgid: u32, child_namespace_pid: u32,
    }
    struct OwnView ("own_view", 32) { start_ns: u64, inode: u64, fd: u32, tgid: u32, mode: u32, machine: u32, }
    struct Exec ("event_exec", 88) {
        header: Header, parent_start_ns: u64, parent_tgid: u32, uid: u32, euid: u32, gid: u32,
        namespace_pid: u32, args_total: u32, exe_bytes: u16, cwd_bytes: u16, args_bytes: u16,
        cgroup_bytes: u16, exe_flags: u8, cwd_flags: u8, tty: u8, zero: u8, script_bytes: u16,
        env_bytes: u16, env_total: u32, mount_namespace: u32,
    }
    struct Exit ("event_exit", 40) { header: Header, status: i32, last: u32, }
    struct Clone_ ("event_clone", 40) { header: Header, ret: i32, thread: u32, }
    struct ExecFailed ("event_exec_failed", 40) { header: Header, ret: i32, path_bytes: u16, zero: u16, }
    struct Setuid ("event_setuid", 48) { header: Header, ret: i32, wanted: u32, uid: u32, gid: u32, }
    struct FlowStart ("event_flow_start", 184) {
        header: Header, file: u64, flow_ns: u64, inode: u64, key: FlowKey, volume: Volume,
        ret: i32, device: u32, open_flags: u32, local: [u8; 16], remote: [u8; 16],
        local_port: u16, remote_port: u16, mode: u16, family: u16, protocol: u16,
        path_bytes: u16, path_flags: u8, operation: u8, flags: u8, zero: [u8; 5],
    }
    struct FlowEnd ("event_flow_end", 128) {
        header: Header, file: u64, flow_ns: u64, key: FlowKey, volume: Volume, shutdown: u32,
        mmaps: u32, reason: u8, zero: [u8; 7],
    }
    struct PathEvent ("event_path", 56) {
        header: Header, ret: i32, base_bytes: [u16; 2], name_bytes: [u16; 2],
        root_bytes: [u16; 2], base_flags: [u8; 2], operation: u8, names: u8, zero: u16,
    }
    struct SocketState ("event_socket_state", 48) { header: Header, file: u64, error: i32, zero: u32, }
    struct IoUring ("event_io_uring", 32) { header: Header, }
    struct ClosedRange ("event_closed_range", 40) { header: Header, first: u32, last: u32, }
    struct Attribute ("event_attribute", 88) {
        path: PathEvent, values: [u64; 2], inode: u64, device: u32, mode: u16, text_bytes: u16,
    }
    struct Privilege ("event_privilege", 72) {
        header: Header, values: [u64; 3], ret: i32, path_bytes: u16, text_bytes: u16,
        path_flags: u8, operation: u8, zero: [u8; 6],
    }
    struct Socket ("event_socket", 80) {
        header: Header, inode: u64, ret: i32, device: u32, local: [u8; 16], local_port: u16,
        mode: u16, family: u16, protocol: u16, path_bytes: u16, operation: u8, zero: [u8; 5],
    }
    /// One process as the task iterator sees it.
    struct Task ("task_entry", 24) { start_ns: u64, parent_start_ns: u64, tgid: u32, parent_tgid: u32, }
}

impl Flow {
    /// The counters, summed over their sets.
    pub(crate) fn total(&self) -> Volume {
        self.volume.iter().fold(
            Volume { read_ops: 0, write_ops: 0, read_bytes: 0, write_bytes: 0 },
            |sum, slot| Volume {
                read_ops: sum.read_ops + slot.read_ops,
                write_ops: sum.write_ops + slot.write_ops,
                read_bytes: sum.read_bytes + slot.read_bytes,
                write_bytes: sum.write_bytes + slot.write_bytes,
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use libbpf_rs::btf::{Btf, HasSize as _, types};

    use super::*;

    #[test]
    fn members_lie_where_the_object_has_them() {
        let btf = Btf::from_path(concat!(env!("OUT_DIR"), "/probes.bpf.o")).unwrap();
        for (name, size, members) in layouts() {
            let found: types::Struct<'_> =
                btf.type_by_name(name).unwrap_or_else(|| panic!("{name}"));
            assert_eq!(found.size(), size, "{name}");
            let found: Vec<(String, usize)> = found
                .iter()
                .map(|member| {
                    let types::MemberAttr::Normal { offset } = member.attr else {
                        panic!("{name} has a bit field");
                    };
                    (member.name.unwrap().to_string_lossy().into_owned(), offset as usize / 8)
                })
                .collect();
            let members: Vec<(String, usize)> =
                members.into_iter().map(|(member, offset)| (member.to_string(), offset)).collect();
            assert_eq!(found, members, "{name}");
        }
    }

    /// The enumerators of `enum name` in the header, without prefix and underscores.
    fn enumerators(name: &str, prefix: &str) -> Vec<String> {
        let header = include_str!("event.h");
        let (_, body) = header.split_once(&format!("enum {name} {{")).unwrap();
        let (body, _) = body.split_once("};").unwrap();
        body.lines()
            .filter_map(|line| line.trim().strip_prefix(prefix))
            .map(|line| line.split(',').next().unwrap().replace('_', "").to_lowercase())
            .collect()
    }

    #[test]
    fn enumerations_count_as_the_header_does() {
        let operations: Vec<String> =
            Operation::ALL.iter().map(|one| format!("{one:?}").to_lowercase()).collect();
        let header = enumerators("operation", "OPERATION_");
        assert_eq!(header, [operations, vec!["count".into()]].concat());

        let calls = enumerators("call", "CALL_");
        assert_eq!(calls.len(), Call::SendMmsg as usize + 1);
        let some = [Call::Creat, Call::CloseRange, Call::Setns, Call::Clone, Call::Setgid];
        for call in
            some.into_iter().chain([Call::Umount2, Call::Mkdir, Call::SymlinkAt, Call::SendMmsg])
        {
            assert_eq!(calls[call as usize], format!("{call:?}").to_lowercase());
        }
    }
}
