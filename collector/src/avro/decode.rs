//! The bytes of each version 5 record, on the way in.
//!
//! They may be hostile: every length is held against the bytes that are left before anything
//! is allocated, so that a record never takes more memory than a small multiple of its block.

use std::net::{IpAddr, Ipv4Addr};

use crate::sysflow::{
    CONTAINER_TYPES, Container, Endpoints, File, FileEvent, FileFlow, FileRef, Foid, Header,
    K8S_ACTIONS, K8S_COMPONENTS, K8sEvent, NetworkEvent, NetworkFlow, OBJECT_STATES, Oid, Pod,
    Port, Process, ProcessEvent, ProcessFlow, Record, Service, Volume,
};

/// What is wrong with a record's bytes: the name of the part.
pub(super) type Fault = &'static str;

/// Bytes being decoded.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Cursor { bytes }
    }

    /// Bytes that are left.
    pub(super) fn left(&self) -> usize {
        self.bytes.len()
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Fault> {
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or("bytes end early")?;
        self.bytes = rest;
        Ok(taken)
    }

    pub(super) fn long(&mut self) -> Result<i64, Fault> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.take(1)?.first().ok_or("bytes end early")?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed());
            }
        }
        Err("number is too long")
    }

    fn int(&mut self) -> Result<i32, Fault> {
        i32::try_from(self.long()?).map_err(|_| "int is out of range")
    }

    fn enumeration(&mut self, names: &[&str]) -> Result<u8, Fault> {
        let index = self.long()?;
        u8::try_from(index)
            .ok()
            .filter(|index| usize::from(*index) < names.len())
            .ok_or("enumeration is out of range")
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Fault> {
        let length = usize::try_from(self.long()?).map_err(|_| "length is negative")?;
        self.take(length)
    }

    fn text(&mut self) -> Result<String, Fault> {
        self.bytes().map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    fn bool(&mut self) -> Result<bool, Fault> {
        match self.take(1)? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err("boolean is neither 0 nor 1"),
        }
    }

    fn option<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, Fault>,
    ) -> Result<Option<T>, Fault> {
        match self.long()? {
            0 => Ok(None),
            1 => read(self).map(Some),
            _ => Err("union index is out of range"),
        }
    }

    /// Arrays and maps. Every item of these schemas takes at least one byte, so a count beyond
    /// the bytes that are left is refused before it can make work.
    fn array<T>(&mut self, read: impl Fn(&mut Self) -> Result<T, Fault>) -> Result<Vec<T>, Fault> {
        let mut items = Vec::new();
        loop {
            let mut count = self.long()?;
            if count == 0 {
                return Ok(items);
            }
            if count < 0 {
                // A negative count is followed by the block's size in bytes.
                let _size = self.long()?;
                count = count.checked_neg().ok_or("count is out of range")?;
            }
            if usize::try_from(count).map_or(true, |count| count > self.left()) {
                return Err("count is larger than the bytes that follow");
            }
            for _ in 0..count {
                items.push(read(self)?);
            }
        }
    }

    fn oid(&mut self) -> Result<Oid, Fault> {
        Ok(Oid { create_ts: self.long()?, hpid: self.long()? })
    }

    fn foid(&mut self) -> Result<Foid, Fault> {
        self.take(20)?.try_into().map_err(|_| "bytes end early")
    }

    fn file(&mut self) -> Result<FileRef, Fault> {
        Ok(FileRef { oid: Some(self.foid()?), inode: None })
    }

    fn ops(&mut self) -> Result<u64, Fault> {
        self.int().map(|ops| ops.cast_unsigned().into())
    }

    fn address(&mut self) -> Result<IpAddr, Fault> {
        Ok(IpAddr::V4(Ipv4Addr::from(self.int()?.to_le_bytes())))
    }

    fn endpoints(&mut self) -> Result<Endpoints, Fault> {
        Ok(Endpoints {
            source: self.address()?,
            source_port: self.int()?,
            destination: self.address()?,
            destination_port: self.int()?,
            protocol: self.int()?,
        })
    }

    fn volume(&mut self) -> Result<Volume, Fault> {
        Ok(Volume {
            read_ops: self.long()?,
            write_ops: self.long()?,
            read_bytes: self.long()?,
            write_bytes: self.long()?,
        })
    }

    /// The next record.
    ///
    /// # Errors
    /// The part that is wrong.
    pub(super) fn record(&mut self) -> Result<Record, Fault> {
        // Fields are evaluated in the order in which they are written here: the schema's.
        Ok(match self.long()? {
            0 => Record::Header(Header {
                version: self.long()?,
                exporter: self.text()?,
                ip: self.text()?,
                filename: self.text()?,
            }),
            1 => Record::Container(Container {
                id: self.text()?,
                name: self.text()?,
                image: self.text()?,
                image_id: self.text()?,
                kind: self.enumeration(&CONTAINER_TYPES)?,
                privileged: self.bool()?,
                pod_id: self.option(Self::text)?,
                full_id: String::new(),
            }),
            2 => Record::Process(Process {
                state: self.enumeration(&OBJECT_STATES)?,
                oid: self.oid()?,
                parent: self.option(Self::oid)?,
                ts: self.long()?,
                exe: self.text()?,
                args: self.text()?,
                uid: self.int()?,
                user: self.text()?,
                gid: self.int()?,
                group: self.text()?,
                tty: self.bool()?,
                container_id: self.option(Self::text)?,
                entry: self.bool()?,
                cwd: self.text()?,
                env: self.array(Self::text)?,
                ..Process::default()
            }),
            3 => Record::File(File {
                state: self.enumeration(&OBJECT_STATES)?,
                oid: self.foid()?,
                ts: self.long()?,
                restype: self.int()?,
                path: self.text()?,
                container_id: self.option(Self::text)?,
            }),
            4 => Record::ProcessEvent(ProcessEvent {
                process: self.oid()?,
                ts: self.long()?,
                tid: self.long()?,
                ops: self.ops()?,
                args: self.array(Self::text)?,
                ret: self.int()?,
            }),
            5 => Record::NetworkFlow(NetworkFlow {
                process: self.oid()?,
                ts: self.long()?,
                tid: self.long()?,
                ops: self.ops()?,
                end_ts: self.long()?,
                ends: self.endpoints()?,
                fd: self.int()?,
                volume: self.volume()?,
                end: None,
                error: None,
                flags: 0,
            }),
            6 => Record::FileFlow(FileFlow {
                process: self.oid()?,
                ts: self.long()?,
                tid: self.long()?,
                ops: self.ops()?,
                open_flags: self.int()?,
                end_ts: self.long()?,
                file: self.file()?,
                fd: self.int()?,
                volume: self.volume()?,
                end: None,
            }),
            7 => Record::FileEvent(FileEvent {
                process: self.oid()?,
                ts: self.long()?,
                tid: self.long()?,
                ops: self.ops()?,
                file: self.file()?,
                ret: self.int()?,
                new_file: self.option(Self::file)?,
                args: Vec::new(),
            }),
            8 => Record::NetworkEvent(NetworkEvent {
                process: self.oid()?,
                ts: self.long()?,
                tid: self.long()?,
                ops: self.ops()?,
                ends: self.endpoints()?,
                ret: self.int()?,
            }),
            9 => Record::ProcessFlow(ProcessFlow {
                process: self.oid()?,
                ts: self.long()?,
                threads_cloned: self.long()?,
                ops: self.ops()?,
                end_ts: self.long()?,
                threads_exited: self.long()?,
                clone_errors: self.long()?,
                end: None,
            }),
            10 => Record::Pod(self.pod()?),
            11 => Record::K8sEvent(K8sEvent {
                kind: self.enumeration(&K8S_COMPONENTS)?,
                action: self.enumeration(&K8S_ACTIONS)?,
                ts: self.long()?,
                message: self.text()?,
            }),
            _ => return Err("record kind is not of schema version 5"),
        })
    }

    fn pod(&mut self) -> Result<Pod, Fault> {
        let pair = |cursor: &mut Self| Ok((cursor.text()?, cursor.text()?));
        Ok(Pod {
            ts: self.long()?,
            id: self.text()?,
            name: self.text()?,
            node: self.text()?,
            host_ip: self.array(Self::long)?,
            internal_ip: self.array(Self::long)?,
            namespace: self.text()?,
            restarts: self.long()?,
            labels: self.array(pair)?,
            selectors: self.array(pair)?,
            services: self.array(|cursor| {
                Ok(Service {
                    name: cursor.text()?,
                    id: cursor.text()?,
                    namespace: cursor.text()?,
                    ports: cursor.array(|cursor| {
                        Ok(Port {
                            port: cursor.int()?,
                            target_port: cursor.int()?,
                            node_port: cursor.int()?,
                            protocol: cursor.text()?,
                        })
                    })?,
                    cluster_ip: cursor.array(Self::long)?,
                })
            })?,
        })
    }
}
