/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The one definition of what the kernel side says to user space: the events that cross the
 * ring, and the maps that both sides touch. Included by the probes and, through its BTF, the
 * source of the Rust types.
 *
 * Rules: fixed-width integers, large to small, padding written out, no pointers, no enums as
 * members. Times are nanoseconds on the boot clock. Integers are in the CPU's byte order,
 * addresses in network order, ports in the CPU's. Text follows its event, in the order that
 * the event's comment gives, each part as long as its `_bytes` member says.
 *
 * A *walked path* is a list of names, leaf first, a NUL after each, as the kernel's tree is
 * climbed; "/" is an empty list.
 */
#ifndef SYSFLOW_EVENT_H
#define SYSFLOW_EVENT_H

/* Counters of a flow: one set shared by atomics, or where the JIT has none (arm32) one set a
 * CPU. The build says which. */
#ifndef VOLUME_SLOTS
#define VOLUME_SLOTS 1
#endif

enum event_kind {
	EVENT_FORK = 1,
	EVENT_EXEC,
	EVENT_EXIT,
	EVENT_CLONE,
	EVENT_EXEC_FAILED,
	EVENT_SETUID,
	EVENT_FLOW_START,
	EVENT_FLOW_END,
	EVENT_PATH,
	EVENT_SOCKET_STATE,
	EVENT_CLOSED_RANGE,
	EVENT_IO_URING,
	EVENT_ATTRIBUTE,
	EVENT_PRIVILEGE,
	EVENT_SOCKET,
};

/* Kinds of operations, as the ledger counts them. */
enum operation {
	OPERATION_CLONE,
	OPERATION_EXEC,
	OPERATION_EXIT,
	OPERATION_SETUID,
	OPERATION_OPEN,
	OPERATION_CLOSE,
	OPERATION_READ,
	OPERATION_WRITE,
	OPERATION_RECEIVE,
	OPERATION_SEND,
	OPERATION_CONNECT,
	OPERATION_ACCEPT,
	OPERATION_SHUTDOWN,
	OPERATION_MKDIR,
	OPERATION_RMDIR,
	OPERATION_UNLINK,
	OPERATION_RENAME,
	OPERATION_LINK,
	OPERATION_SYMLINK,
	OPERATION_SOCKET_STATE,
	OPERATION_MMAP,
	OPERATION_SETNS,
	OPERATION_IO_URING,
	OPERATION_CHMOD,
	OPERATION_CHOWN,
	OPERATION_MOUNT,
	OPERATION_UMOUNT,
	OPERATION_RESIZE,
	OPERATION_MKNOD,
	OPERATION_SETGID,
	OPERATION_CAPSET,
	OPERATION_PTRACE,
	OPERATION_LOAD_MODULE,
	OPERATION_UNLOAD_MODULE,
	OPERATION_LOAD_BPF,
	OPERATION_UNSHARE,
	OPERATION_MEMFD,
	OPERATION_BIND,
	OPERATION_LISTEN,
	OPERATION_COUNT,
};

/* Bounds that the agent sets before the probes are loaded. */
struct settings {
	__u32 peers_max;      /* flows by peer that hang on one descriptor */
	__u32 args_bytes_max; /* of a program's arguments, at most 4096 */
	__u32 wake_bytes;     /* ring fill at which the agent is woken */
	__u32 env_bytes_max;  /* of a program's environment, at most 4096; 0: none of it */
	__u32 share_bytes;    /* ring fill from which on a session has a share and no more */
};

/* What became of an operation in the kernel. */
struct tally {
	__u64 observed;
	__u64 filtered;	       /* of nothing that is recorded: an object of another kind, a
				* descriptor that is not open, a close without a flow */
	__u64 own;	       /* the agent's own doing */
	__u64 lost_ring;       /* no room in the ring */
	__u64 lost_map;	       /* no room in a map, and no room in the ring to say it there */
	__u64 lost_unreadable; /* the object could not be read */
	__u64 lost_shed;       /* left out by the step of the ladder that the agent has set */
};

/* The steps of the ladder on which the kernel side does less. What a step leaves out is counted. */
#define STEP_SUMMARIES 1 /* all young sessions are named as one */
#define STEP_SHARES 2	 /* each session has its share of the ring at any time, and no more */
#define STEP_FLOWS 4	 /* no events of files */
#define STEP_PROCESSES 5 /* no files: processes and the network only */

/* How a system call's arguments are laid out: what the table of calls maps numbers to. */
enum call {
	CALL_NONE,
	CALL_OPEN,
	CALL_OPENAT,
	CALL_OPENAT2,
	CALL_OPEN_BY_HANDLE,
	CALL_CREAT,
	CALL_CLOSE,
	CALL_CLOSE_RANGE,
	CALL_DUP2,  /* dup2, dup3: the number in the second argument belongs to another file now */
	CALL_READ,  /* any call that reads from the descriptor in its first argument */
	CALL_WRITE, /* any that writes */
	CALL_RECVFROM,
	CALL_SENDTO,
	CALL_RECVMSG,
	CALL_SENDMSG,
	CALL_CONNECT,
	CALL_ACCEPT,
	CALL_SHUTDOWN,
	CALL_MMAP, /* mmap, mmap2: flags in the fourth argument, descriptor in the fifth */
	CALL_SETNS,
	CALL_CLONE,
	CALL_CLONE3,
	CALL_FORK,
	CALL_EXECVE,
	CALL_EXECVEAT,
	CALL_SETUID,	/* setuid, setfsuid: the user in the first argument */
	CALL_SETREUID,	/* setreuid, setresuid: the effective user in the second */
	CALL_IO_URING_SETUP,
	CALL_BIND,
	CALL_LISTEN,
	CALL_SETGID,   /* setgid, setfsgid: the group in the first argument */
	CALL_SETREGID, /* setregid, setresgid: the effective group in the second */
	CALL_CAPSET,
	CALL_PTRACE,
	CALL_INIT_MODULE,
	CALL_FINIT_MODULE,
	CALL_DELETE_MODULE,
	CALL_BPF,
	CALL_UNSHARE,
	CALL_MEMFD_CREATE,
	CALL_CHMOD,
	CALL_FCHMOD,
	CALL_FCHMODAT, /* fchmodat, fchmodat2 */
	CALL_CHOWN,    /* chown, lchown */
	CALL_FCHOWN,
	CALL_FCHOWNAT,
	CALL_TRUNCATE,
	CALL_FTRUNCATE,
	CALL_TRUNCATE64, /* of 32-bit tasks: the length in two arguments */
	CALL_FTRUNCATE64,
	CALL_MKNOD,
	CALL_MKNODAT,
	CALL_MOUNT,
	CALL_MOVE_MOUNT,
	CALL_UMOUNT, /* of i386, without flags */
	CALL_UMOUNT2,
	CALL_MKDIR,
	CALL_MKDIRAT,
	CALL_RMDIR,
	CALL_UNLINK,
	CALL_UNLINKAT,
	CALL_RENAME,
	CALL_RENAMEAT, /* renameat, renameat2 */
	CALL_LINK,
	CALL_LINKAT,
	CALL_SYMLINK,
	CALL_SYMLINKAT,
	CALL_SENDFILE, /* to the first descriptor, from the second */
	CALL_SPLICE,   /* splice, copy_file_range: from the first argument, to the third */
	CALL_TEE,      /* from the first argument, to the second */
	CALL_VMSPLICE, /* to or from the first, as it was opened */
	CALL_RECVMMSG,
	CALL_SENDMMSG,
};

/* One entry of the table of system calls: how to read it for a native task, and for a 32-bit
 * task on a 64-bit kernel, whose numbers are others. */
struct call_entry {
	__u8 call;	       /* enum call */
	__u8 operation;	       /* enum operation */
	__u8 compat_call;      /* enum call */
	__u8 compat_operation; /* enum operation */
};

struct volume {
	__u64 read_ops;
	__u64 write_ops;
	__u64 read_bytes;
	__u64 write_bytes;
};

/* Whose flow, on which descriptor; for a datagram socket without a fixed peer also which
 * peer. All other bytes are zero. */
struct flow_key {
	__u32 tgid;
	__s32 fd;
	__u8 peer[16]; /* IPv4 in the first four bytes */
	__u16 peer_port;
	__u16 peer_family; /* AF_INET, AF_INET6, or 0: no peer */
	__u32 zero;
};

/* A flow as the kernel keeps it. The counters only ever grow; the agent subtracts what it
 * has exported. */
struct flow {
	struct volume volume[VOLUME_SLOTS];
	__u64 file;	/* address of its struct file: a reused descriptor has another */
	__u64 start_ns; /* when this entry was made: names it together with its key */
	__u32 shutdown; /* calls of shutdown */
	__u16 peers;	/* entries with a peer that hang on this one */
	__u8 ended;	/* enum flow_end_reason if its end found no room in the ring, else 0 */
	__u8 socket;	/* SOCKET_* */
	__u32 remote;	/* a digest of the peer that the socket was connected to, 0: none */
	__u32 mmaps;	/* calls of mmap */
};

/* Kinds of sockets, for the way in which a flow's peer is found. */
#define SOCKET_NONE 0
#define SOCKET_STREAM 1
#define SOCKET_DATAGRAM 2 /* internet datagram and raw: a call may name a peer of its own */

/* Flags of event_header. */
#define EVENT_COMPAT 1 /* a 32-bit task on a 64-bit kernel */

struct event_header {
	__u64 time_ns;
	__u64 start_ns; /* start of the process (its first thread) */
	__u32 tgid;
	__u32 tid;
	__u16 kind; /* enum event_kind */
	__u16 flags;
	__u32 session; /* names the process's session while it lasts, or is SESSION_*; 0: not known */
};

/* Any session that began in the last seconds. Named so from STEP_SUMMARIES on, and while the ring is
 * full but for what is shared out. */
#define SESSION_YOUNG 1

/* A thread or process was created. The header is about the creator. */
struct event_fork {
	struct event_header header;
	__u64 child_start_ns;
	__u64 parent_start_ns; /* the child's parent: not the creator with CLONE_PARENT */
	__u32 child_tgid;      /* equals the header's for a thread */
	__u32 child_tid;
	__u32 parent_tgid;
	__u32 child_namespace_pid; /* in the child's own pid namespace */
};

/* Flags of walked paths. */
#define PATH_TRUNCATED 1 /* the leading part is missing */
#define PATH_DELETED 2	 /* no name leads there any more */
#define PATH_DETACHED 4	 /* not below the root of the mount namespace */
#define PATH_CHROOT 8	 /* the process's root is not the root of its mount namespace */
#define PATH_OUTSIDE 16	 /* not below the process's root */
#define PATH_UNKNOWN 32	 /* no such directory, or the name could not be read */
#define PATH_NAMESPACE 64 /* no path: the kind of a namespace, "net" */

/* A process began a program. Text: exe (walked), cwd (walked), arguments (argv[0] first, a NUL
 * after each), name of the innermost control group, the script as the program that started it
 * named it (empty where exe is no interpreter), the beginning of the environment (a NUL after
 * each variable). */
struct event_exec {
	struct event_header header;
	__u64 parent_start_ns;
	__u32 parent_tgid;
	__u32 uid;
	__u32 euid; /* differs from uid after a set-user-id program was started */
	__u32 gid;
	__u32 namespace_pid;
	__u32 args_total; /* length of the arguments before they were cut */
	__u16 exe_bytes;
	__u16 cwd_bytes;
	__u16 args_bytes;
	__u16 cgroup_bytes;
	__u8 exe_flags;
	__u8 cwd_flags;
	__u8 tty;
	__u8 zero;
	__u16 script_bytes;
	__u16 env_bytes;
	__u32 env_total;       /* length of the environment before it was cut */
	__u32 mount_namespace; /* inode number of its mount namespace */
};

/* A thread ended. */
struct event_exit {
	struct event_header header;
	__s32 status; /* raw wait status of the process; only with `last` */
	__u32 last;   /* the process ended with this thread */
};

/* The creator's side of clone, fork and vfork. */
struct event_clone {
	struct event_header header;
	__s32 ret;
	__u32 thread;
};

/* An exec that failed. Text: the path as the program named it. */
struct event_exec_failed {
	struct event_header header;
	__s32 ret;
	__u16 path_bytes;
	__u16 zero;
};

/* A call of the setuid family. */
struct event_setuid {
	struct event_header header;
	__s32 ret;
	__u32 wanted; /* the (effective) user asked for */
	__u32 uid;    /* real user after the call */
	__u32 gid;    /* real group after the call */
};

/* Flags of event_flow_start. */
#define FLOW_UNTRACKED 1	 /* the table was full: this one operation is all there is */
#define FLOW_PEER_FROM_PROGRAM 2 /* the peer is what the program passed, not the socket's */
#define FLOW_CONTINUED 4	 /* an operation on a flow that exists */

/* A flow began: a descriptor was opened, or used for the first time. Text: the path (walked),
 * or a unix socket's name. */
struct event_flow_start {
	struct event_header header;
	__u64 file;
	__u64 flow_ns; /* start_ns of the map entry */
	__u64 inode;
	struct flow_key key;
	struct volume volume; /* with FLOW_UNTRACKED: this operation's */
	__s32 ret;
	__u32 device;
	__u32 open_flags; /* as the kernel's headers of this architecture number them */
	__u8 local[16];
	__u8 remote[16];
	__u16 local_port;
	__u16 remote_port;
	__u16 mode; /* of the inode, with its type */
	__u16 family; /* AF_*, 0 if it is no socket */
	__u16 protocol;
	__u16 path_bytes;
	__u8 path_flags;
	__u8 operation; /* enum operation */
	__u8 flags;
	__u8 zero[5];
};

enum flow_end_reason {
	FLOW_CLOSED = 1, /* close */
	FLOW_REPLACED,	 /* the descriptor goes on, with another peer */
	FLOW_EXEC,	 /* closed by exec */
	FLOW_EXIT,	 /* the process ended */
	FLOW_CLOSED_RANGE, /* close_range */
	FLOW_CLOSED_DUP, /* dup2 and dup3 have closed it for another file */
	FLOW_CLOSED_LATE, /* close, noticed when the descriptor's number was in use again */
};

/* A flow ended; its map entry is gone. */
struct event_flow_end {
	struct event_header header;
	__u64 file;
	__u64 flow_ns;
	struct flow_key key;
	struct volume volume;
	__u32 shutdown; /* calls of shutdown */
	__u32 mmaps;	/* calls of mmap */
	__u8 reason;	/* enum flow_end_reason */
	__u8 zero[7];
};

/* An operation on names. Text for each of one or two names: where it starts (walked; empty for
 * a symbolic link's content), then the name as the program gave it, without a NUL. */
struct event_path {
	struct event_header header;
	__s32 ret;
	__u16 base_bytes[2];
	__u16 name_bytes[2];
	__u16 root_bytes[2]; /* how much of the base, at its end, leads to the process's root */
	__u8 base_flags[2]; /* PATH_* */
	__u8 operation; /* enum operation */
	__u8 names;	/* 1 or 2 */
	__u16 zero;
};

/*
 * What a file system says of a file was to be changed. A call by descriptor has one name that is
 * all base; its file is told by `mode`, `device` and `inode` too. `values` by operation:
 * CHMOD  permission bits
 * CHOWN  user, group; ~0u: left as it is
 * RESIZE length in bytes
 * MKNOD  mode with the file's type, device as user space encodes it
 * MOUNT  flags; its second name is the source, as the program gave it
 * UMOUNT flags
 * OPEN   flags, as the kernel's headers of this architecture number them; it has failed
 * Text: that of event_path, then for MOUNT the type of the file system.
 */
struct event_attribute {
	struct event_path path;
	__u64 values[2];
	__u64 inode;
	__u32 device;
	__u16 mode; /* of the inode, with its type; 0 where the call names the file by a path */
	__u16 text_bytes;
};

/*
 * A process was to get other privileges, or to use great ones. `values` by operation:
 * SETGID        the (effective) group asked for, then the real user and group after the call
 * CAPSET        effective, permitted, inheritable capabilities
 * PTRACE        request, process id as the program named it
 * LOAD_MODULE   flags of finit_module, or bytes of init_module's image
 * UNLOAD_MODULE flags
 * LOAD_BPF      type of the program
 * UNSHARE       flags
 * MEMFD         flags
 * Text: for finit_module the path of the module's file (walked); then the module's parameters,
 * or the name of the module, program or file.
 */
struct event_privilege {
	struct event_header header;
	__u64 values[3];
	__s32 ret;
	__u16 path_bytes;
	__u16 text_bytes;
	__u8 path_flags;
	__u8 operation; /* enum operation */
	__u8 zero[6];
};

/* bind, listen, or an accept that failed. Text: a unix socket's name. */
struct event_socket {
	struct event_header header;
	__u64 inode;
	__s32 ret;
	__u32 device;
	__u8 local[16];
	__u16 local_port;
	__u16 mode;
	__u16 family; /* AF_* */
	__u16 protocol;
	__u16 path_bytes;
	__u8 operation; /* enum operation */
	__u8 zero[5];
};

/* A connection attempt failed after the call that began it had returned. */
struct event_socket_state {
	struct event_header header;
	__u64 file; /* the socket's */
	__s32 error; /* negative errno */
	__u32 zero;
};

/* The agent as the probes see it, once before they are attached. The agent says which descriptor
 * to look at, and compares the rest with what it knows of itself: types of another kernel would
 * read something else. */
struct own_view {
	__u64 start_ns; /* of the process */
	__u64 inode;	/* behind the descriptor */
	__u32 fd;
	__u32 tgid; /* as the types lead to it, less what it is */
	__u32 mode; /* of the inode */
	__u32 machine; /* MACHINE_* */
};

#define MACHINE_X86 1
#define MACHINE_ARM64 2
#define MACHINE_ARM 3
#define MACHINE_RISCV 4
/* close_range has closed more descriptors than the kernel side goes through: their flows are
 * the agent's to end. */
struct event_closed_range {
	struct event_header header;
	__u32 first;
	__u32 last;
};

/* The process has set up an io_uring: what it does through it passes no system call. */
struct event_io_uring {
	struct event_header header;
};

/* One process as the task iterator sees it. */
struct task_entry {
	__u64 start_ns;
	__u64 parent_start_ns;
	__u32 tgid;
	__u32 parent_tgid;
};

_Static_assert(sizeof(struct event_header) == 32, "event_header");
_Static_assert(sizeof(struct event_fork) == 64, "event_fork");
_Static_assert(sizeof(struct event_exec) == 88, "event_exec");
_Static_assert(sizeof(struct event_exit) == 40, "event_exit");
_Static_assert(sizeof(struct event_clone) == 40, "event_clone");
_Static_assert(sizeof(struct event_exec_failed) == 40, "event_exec_failed");
_Static_assert(sizeof(struct event_setuid) == 48, "event_setuid");
_Static_assert(sizeof(struct flow_key) == 32, "flow_key");
_Static_assert(sizeof(struct flow) == 32 * VOLUME_SLOTS + 32, "flow");
_Static_assert(sizeof(struct event_flow_start) == 184, "event_flow_start");
_Static_assert(sizeof(struct event_flow_end) == 128, "event_flow_end");
_Static_assert(sizeof(struct event_path) == 56, "event_path");
_Static_assert(sizeof(struct event_socket_state) == 48, "event_socket_state");
_Static_assert(sizeof(struct own_view) == 32, "own_view");
_Static_assert(sizeof(struct event_io_uring) == 32, "event_io_uring");
_Static_assert(sizeof(struct event_closed_range) == 40, "event_closed_range");
_Static_assert(sizeof(struct event_attribute) == 88, "event_attribute");
_Static_assert(sizeof(struct event_privilege) == 72, "event_privilege");
_Static_assert(sizeof(struct event_socket) == 80, "event_socket");

#endif
