//! SysFlow's records as its schema version 5 names them, with what a device knows beyond it.
//!
//! Both sources meet here: frames (through `convert`) and `.sf` files (through `avro`). Both
//! sinks start here: `avro` and `print`. Fields behind the remark "beyond version 5" travel in
//! no `.sf` file; they are empty for records that came from one. Times are Unix time, ns.

use std::net::IpAddr;

/// Version of the schema that is written and read.
pub(crate) const SCHEMA_VERSION: i64 = 5;

/// A file's identity: SHA-1 of container id and path.
pub(crate) type Foid = [u8; 20];

/// A process's identity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Oid {
    /// Start of the process.
    pub(crate) create_ts: i64,
    /// Process id in the host's pid namespace.
    pub(crate) hpid: i64,
}

/// The first record of a file; what follows refers to nothing before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    /// Schema version.
    pub(crate) version: i64,
    /// The device's name.
    pub(crate) exporter: String,
    /// The device's address.
    pub(crate) ip: String,
    /// The file's name.
    pub(crate) filename: String,
}

/// SysFlow `ContainerType` names, by number.
pub(crate) const CONTAINER_TYPES: [&str; 10] = [
    "CT_DOCKER",
    "CT_LXC",
    "CT_LIBVIRT_LXC",
    "CT_MESOS",
    "CT_RKT",
    "CT_CUSTOM",
    "CT_CRI",
    "CT_CONTAINERD",
    "CT_CRIO",
    "CT_BPM",
];
/// `CT_CUSTOM`: what a type number that version 5 does not know becomes.
pub(crate) const CONTAINER_TYPE_CUSTOM: u8 = 5;

/// SysFlow `SFObjectState` names, by number.
pub(crate) const OBJECT_STATES: [&str; 3] = ["CREATED", "MODIFIED", "REUP"];

/// SysFlow `K8sComponent` names, by number.
pub(crate) const K8S_COMPONENTS: [&str; 10] = [
    "K8S_NODES",
    "K8S_NAMESPACES",
    "K8S_PODS",
    "K8S_REPLICATIONCONTROLLERS",
    "K8S_SERVICES",
    "K8S_EVENTS",
    "K8S_REPLICASETS",
    "K8S_DAEMONSETS",
    "K8S_DEPLOYMENTS",
    "K8S_UNKNOWN",
];

/// SysFlow `K8sAction` names, by number.
pub(crate) const K8S_ACTIONS: [&str; 6] = [
    "K8S_COMPONENT_ADDED",
    "K8S_COMPONENT_MODIFIED",
    "K8S_COMPONENT_DELETED",
    "K8S_COMPONENT_ERROR",
    "K8S_COMPONENT_NONEXISTENT",
    "K8S_COMPONENT_UNKNOWN",
];

/// A container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Container {
    /// Short id: 12 hex digits for OCI runtimes.
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) image_id: String,
    /// Index into [`CONTAINER_TYPES`].
    pub(crate) kind: u8,
    pub(crate) privileged: bool,
    pub(crate) pod_id: Option<String>,
    /// The whole id; beyond version 5.
    pub(crate) full_id: String,
}

/// A process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Process {
    /// Index into [`OBJECT_STATES`].
    pub(crate) state: u8,
    pub(crate) oid: Oid,
    pub(crate) parent: Option<Oid>,
    pub(crate) ts: i64,
    pub(crate) exe: String,
    /// Arguments, joined with one space.
    pub(crate) args: String,
    /// -1 where unknown.
    pub(crate) uid: i32,
    pub(crate) user: String,
    /// -1 where unknown.
    pub(crate) gid: i32,
    pub(crate) group: String,
    pub(crate) tty: bool,
    pub(crate) container_id: Option<String>,
    pub(crate) entry: bool,
    pub(crate) cwd: String,
    pub(crate) env: Vec<String>,
    /// Bits of [`codec::process`]; beyond version 5.
    pub(crate) flags: u32,
    /// All arguments one by one, argv\[0\] first; beyond version 5.
    pub(crate) argv: Vec<String>,
    /// The script that `exe` interprets, or empty; beyond version 5.
    pub(crate) script: String,
    /// Inode number of the mount namespace, 0 if unknown; beyond version 5.
    pub(crate) mount_namespace: u32,
}

/// A file, directory, pipe or unix socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct File {
    /// Index into [`OBJECT_STATES`].
    pub(crate) state: u8,
    pub(crate) oid: Foid,
    pub(crate) ts: i64,
    /// An ASCII letter.
    pub(crate) restype: i32,
    pub(crate) path: String,
    pub(crate) container_id: Option<String>,
}

/// Which object a path led to; beyond version 5, which knows files by path alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Inode {
    /// Device number as the kernel encodes it; 0 if unknown.
    pub(crate) device: u32,
    /// Inode number; 0 if unknown.
    pub(crate) number: u64,
    /// Bits of [`codec::file`].
    pub(crate) flags: u32,
}

/// How a record names its file. None of it is there where the naming record is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FileRef {
    pub(crate) oid: Option<Foid>,
    /// Beyond version 5.
    pub(crate) inode: Option<Inode>,
}

/// Something that a process did to itself or its children.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProcessEvent {
    pub(crate) process: Oid,
    pub(crate) ts: i64,
    pub(crate) tid: i64,
    pub(crate) ops: u64,
    pub(crate) args: Vec<String>,
    pub(crate) ret: i32,
}

/// An operation on the name of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FileEvent {
    pub(crate) process: Oid,
    pub(crate) ts: i64,
    pub(crate) tid: i64,
    pub(crate) ops: u64,
    pub(crate) file: FileRef,
    pub(crate) ret: i32,
    pub(crate) new_file: Option<FileRef>,
    /// What an extension was asked to do; beyond version 5.
    pub(crate) args: Vec<String>,
}

/// The two ends of a connection; the source is the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Endpoints {
    pub(crate) source: IpAddr,
    pub(crate) source_port: i32,
    pub(crate) destination: IpAddr,
    pub(crate) destination_port: i32,
    /// IP protocol number, -1 where unknown.
    pub(crate) protocol: i32,
}

/// In the schema of version 5, but not written: see [`Unsaid::NetworkEvent`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NetworkEvent {
    pub(crate) process: Oid,
    pub(crate) ts: i64,
    pub(crate) tid: i64,
    pub(crate) ops: u64,
    pub(crate) ends: Endpoints,
    pub(crate) ret: i32,
}

/// Calls and bytes of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Volume {
    pub(crate) read_ops: i64,
    pub(crate) write_ops: i64,
    pub(crate) read_bytes: i64,
    pub(crate) write_bytes: i64,
}

/// What one process exchanged with one peer over an interval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NetworkFlow {
    pub(crate) process: Oid,
    pub(crate) ts: i64,
    pub(crate) tid: i64,
    pub(crate) ops: u64,
    pub(crate) end_ts: i64,
    pub(crate) ends: Endpoints,
    pub(crate) fd: i32,
    pub(crate) volume: Volume,
    /// Beyond version 5.
    pub(crate) end: Option<codec::EndReason>,
    /// How the attempt to connect failed, a negative errno, 0 if it did not; beyond version 5.
    pub(crate) error: Option<i32>,
    /// Bits of [`codec::network`]; beyond version 5.
    pub(crate) flags: u32,
}

/// What one process did with one file over an interval.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FileFlow {
    pub(crate) process: Oid,
    pub(crate) ts: i64,
    pub(crate) tid: i64,
    pub(crate) ops: u64,
    pub(crate) open_flags: i32,
    pub(crate) end_ts: i64,
    pub(crate) file: FileRef,
    pub(crate) fd: i32,
    pub(crate) volume: Volume,
    /// Beyond version 5.
    pub(crate) end: Option<codec::EndReason>,
}

/// Threads that a process started and lost over an interval.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProcessFlow {
    pub(crate) process: Oid,
    pub(crate) ts: i64,
    pub(crate) threads_cloned: i64,
    pub(crate) ops: u64,
    pub(crate) end_ts: i64,
    pub(crate) threads_exited: i64,
    pub(crate) clone_errors: i64,
    /// Beyond version 5.
    pub(crate) end: Option<codec::EndReason>,
}

/// A port of a [`Service`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) port: i32,
    pub(crate) target_port: i32,
    pub(crate) node_port: i32,
    pub(crate) protocol: String,
}

/// A Kubernetes service of a [`Pod`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) namespace: String,
    pub(crate) ports: Vec<Port>,
    /// IPv4 addresses, first octet in the lowest byte.
    pub(crate) cluster_ip: Vec<i64>,
}

/// A Kubernetes pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pod {
    pub(crate) ts: i64,
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) node: String,
    /// IPv4 addresses, first octet in the lowest byte.
    pub(crate) host_ip: Vec<i64>,
    /// IPv4 addresses, first octet in the lowest byte.
    pub(crate) internal_ip: Vec<i64>,
    pub(crate) namespace: String,
    pub(crate) restarts: i64,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) selectors: Vec<(String, String)>,
    pub(crate) services: Vec<Service>,
}

/// A Kubernetes event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct K8sEvent {
    /// Index into [`K8S_COMPONENTS`].
    pub(crate) kind: u8,
    /// Index into [`K8S_ACTIONS`].
    pub(crate) action: u8,
    pub(crate) ts: i64,
    pub(crate) message: String,
}

/// What many records would have told: an extension, which SysFlow does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) process: Oid,
    pub(crate) ts: i64,
    pub(crate) end_ts: i64,
    pub(crate) subject: codec::Subject,
    /// Whether it is of a whole session.
    pub(crate) session: bool,
    pub(crate) ops: u64,
    pub(crate) records: u64,
    /// Estimates.
    pub(crate) objects: u64,
    pub(crate) processes: u64,
    pub(crate) volume: Volume,
    pub(crate) end: codec::EndReason,
}

/// One SysFlow item. The order is that of SysFlow's union.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    Header(Header),
    Container(Container),
    Process(Process),
    File(File),
    ProcessEvent(ProcessEvent),
    NetworkFlow(NetworkFlow),
    FileFlow(FileFlow),
    FileEvent(FileEvent),
    NetworkEvent(NetworkEvent),
    ProcessFlow(ProcessFlow),
    Pod(Pod),
    K8sEvent(K8sEvent),
    Summary(Summary),
}

/// Why schema version 5 cannot say a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Unsaid {
    /// An IPv6 address: version 5 has 32 bits for an address.
    Ipv6,
    /// Only operations that version 5 has no bit for.
    ExtensionOperation,
    /// A network event: the schema reserves it, but the reference readers stop at one.
    NetworkEvent,
    /// The record that names its file is missing.
    UnresolvedFile,
    /// A summary of records that were not told.
    Summary,
}

impl Unsaid {
    /// All reasons.
    pub(crate) const ALL: [Unsaid; 5] = [
        Unsaid::Ipv6,
        Unsaid::ExtensionOperation,
        Unsaid::NetworkEvent,
        Unsaid::UnresolvedFile,
        Unsaid::Summary,
    ];

    /// The name that reports print.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Unsaid::Ipv6 => "ipv6",
            Unsaid::ExtensionOperation => "extension_operation",
            Unsaid::NetworkEvent => "network_event",
            Unsaid::UnresolvedFile => "unresolved_file",
            Unsaid::Summary => "summary",
        }
    }
}

impl Record {
    /// Why this record cannot go into a `.sf` file; none if it can.
    pub(crate) fn unsaid(&self) -> Option<Unsaid> {
        let ops = match self {
            Record::NetworkFlow(flow) => {
                if flow.ends.source.is_ipv6() || flow.ends.destination.is_ipv6() {
                    return Some(Unsaid::Ipv6);
                }
                flow.ops
            }
            Record::FileFlow(flow) => {
                if flow.file.oid.is_none() {
                    return Some(Unsaid::UnresolvedFile);
                }
                flow.ops
            }
            Record::FileEvent(event) => {
                let new = event.new_file.unwrap_or(event.file);
                if event.file.oid.is_none() || new.oid.is_none() {
                    return Some(Unsaid::UnresolvedFile);
                }
                event.ops
            }
            Record::ProcessEvent(event) => event.ops,
            Record::ProcessFlow(flow) => flow.ops,
            Record::NetworkEvent(_) => return Some(Unsaid::NetworkEvent),
            Record::Summary(_) => return Some(Unsaid::Summary),
            Record::Header(_)
            | Record::Container(_)
            | Record::Process(_)
            | Record::File(_)
            | Record::Pod(_)
            | Record::K8sEvent(_) => return None,
        };
        // A flow that also did what version 5 knows keeps that part; `avro` masks the rest.
        let known = ops & codec::op::SYSFLOW_V5;
        (ops != 0 && known & !codec::op::TRUNCATE == 0 && known != ops)
            .then_some(Unsaid::ExtensionOperation)
    }

    /// Whether `ops` holds bits that a `.sf` file cannot carry.
    pub(crate) fn has_extension_operations(&self) -> bool {
        let ops = match self {
            Record::ProcessEvent(r) => r.ops,
            Record::NetworkFlow(r) => r.ops,
            Record::FileFlow(r) => r.ops,
            Record::FileEvent(r) => r.ops,
            Record::NetworkEvent(r) => r.ops,
            Record::ProcessFlow(r) => r.ops,
            _ => 0,
        };
        ops & !codec::op::SYSFLOW_V5 != 0
    }
}
