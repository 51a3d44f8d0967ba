//! Counts what a workload does, call by call, where it does it.
//!
//! Each thread keeps a [`Tally`] of its own and the owner adds them up, so counting takes no
//! lock and disturbs nothing. The calls are made through `rustix`, whose functions are one
//! system call each; the names are the kernel's on a 64-bit machine.

use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::Result;
use crate::truth::{FileTruth, Name, NetworkTruth, Truth, Volume};

/// What a call was made on: the key under which volumes add up.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    /// A file, pipe or unix socket.
    File {
        /// SysFlow `restype` letter.
        kind: char,
        /// See [`FileTruth::path`].
        path: Name,
        /// Whether this process opened it during the run.
        opened: bool,
    },
    /// A connection, or one peer of a datagram socket.
    Network {
        /// IP protocol number.
        protocol: u8,
        /// The end that connected or sent first.
        client: SocketAddr,
        /// The other end.
        server: SocketAddr,
    },
}

impl Object {
    /// The file behind a descriptor of this process, as the kernel names it.
    ///
    /// # Errors
    /// If `/proc/self/fd` cannot be read.
    pub fn of_descriptor(kind: char, opened: bool, fd: &impl AsFd) -> Result<Object> {
        let link = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
        let path = std::fs::read_link(&link).map_err(|e| format!("read {link}: {e}"))?;
        Ok(Object::File { kind, path: Name::from(path.as_path()), opened })
    }

    /// A unix socket without a name.
    pub fn unnamed_socket(opened: bool) -> Object {
        Object::File { kind: 'u', path: Name::default(), opened }
    }
}

/// The counts of one thread.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    calls: BTreeMap<String, u64>,
    volumes: BTreeMap<(i32, Object), Volume>,
}

impl Tally {
    /// Adds what another thread counted.
    pub fn add(&mut self, other: Tally) {
        for (call, count) in other.calls {
            *self.calls.entry(call).or_default() += count;
        }
        for (key, volume) in other.volumes {
            self.volumes.entry(key).or_default().add(volume);
        }
    }

    /// Notes an object that may see no call at all, so that its flow is expected too.
    pub fn touch(&mut self, fd: &impl AsFd, object: &Object) {
        self.volumes.entry((fd.as_fd().as_raw_fd(), object.clone())).or_default();
    }

    /// Counts a call that read, and passes its result on.
    ///
    /// # Errors
    /// The call's own; it is counted all the same.
    pub fn read_call(
        &mut self,
        call: &str,
        fd: BorrowedFd<'_>,
        object: &Object,
        result: rustix::io::Result<usize>,
    ) -> rustix::io::Result<usize> {
        let volume = self.bump(call, fd, object);
        volume.read_ops += 1;
        volume.read_bytes += result.unwrap_or(0) as u64;
        result
    }

    /// Counts a call that wrote, and passes its result on.
    ///
    /// # Errors
    /// The call's own; it is counted all the same.
    pub fn write_call(
        &mut self,
        call: &str,
        fd: BorrowedFd<'_>,
        object: &Object,
        result: rustix::io::Result<usize>,
    ) -> rustix::io::Result<usize> {
        let volume = self.bump(call, fd, object);
        volume.write_ops += 1;
        volume.write_bytes += result.unwrap_or(0) as u64;
        result
    }

    fn bump(&mut self, call: &str, fd: BorrowedFd<'_>, object: &Object) -> &mut Volume {
        *self.calls.entry(call.to_string()).or_default() += 1;
        self.volumes.entry((fd.as_raw_fd(), object.clone())).or_default()
    }

    /// One call that reads, of the form that `form` selects (any number is a form).
    ///
    /// # Errors
    /// The call's own.
    pub fn read(
        &mut self,
        form: u64,
        fd: &impl AsFd,
        object: &Object,
        buffer: &mut [u8],
    ) -> rustix::io::Result<usize> {
        let fd = fd.as_fd();
        if form.is_multiple_of(2) || buffer.len() < 2 {
            let result = rustix::io::read(fd, buffer);
            return self.read_call("read", fd, object, result);
        }
        let (head, tail) = buffer.split_at_mut(buffer.len() / 2);
        let result = rustix::io::readv(fd, &mut [IoSliceMut::new(head), IoSliceMut::new(tail)]);
        self.read_call("readv", fd, object, result)
    }

    /// One call that writes, of the form that `form` selects.
    ///
    /// # Errors
    /// The call's own.
    pub fn write(
        &mut self,
        form: u64,
        fd: &impl AsFd,
        object: &Object,
        bytes: &[u8],
    ) -> rustix::io::Result<usize> {
        let fd = fd.as_fd();
        if form.is_multiple_of(2) || bytes.len() < 2 {
            let result = rustix::io::write(fd, bytes);
            return self.write_call("write", fd, object, result);
        }
        let (head, tail) = bytes.split_at(bytes.len() / 2);
        let result = rustix::io::writev(fd, &[IoSlice::new(head), IoSlice::new(tail)]);
        self.write_call("writev", fd, object, result)
    }

    /// One call that reads at an offset, of the form that `form` selects.
    ///
    /// # Errors
    /// The call's own.
    pub fn read_at(
        &mut self,
        form: u64,
        fd: &impl AsFd,
        object: &Object,
        buffer: &mut [u8],
        offset: u64,
    ) -> rustix::io::Result<usize> {
        let fd = fd.as_fd();
        if form.is_multiple_of(2) || buffer.len() < 2 {
            let result = rustix::io::pread(fd, buffer, offset);
            return self.read_call("pread64", fd, object, result);
        }
        let (head, tail) = buffer.split_at_mut(buffer.len() / 2);
        let parts = &mut [IoSliceMut::new(head), IoSliceMut::new(tail)];
        let result = rustix::io::preadv(fd, parts, offset);
        self.read_call("preadv", fd, object, result)
    }

    /// One call that writes at an offset, of the form that `form` selects.
    ///
    /// # Errors
    /// The call's own.
    pub fn write_at(
        &mut self,
        form: u64,
        fd: &impl AsFd,
        object: &Object,
        bytes: &[u8],
        offset: u64,
    ) -> rustix::io::Result<usize> {
        let fd = fd.as_fd();
        if form.is_multiple_of(2) || bytes.len() < 2 {
            let result = rustix::io::pwrite(fd, bytes, offset);
            return self.write_call("pwrite64", fd, object, result);
        }
        let (head, tail) = bytes.split_at(bytes.len() / 2);
        let parts = &[IoSlice::new(head), IoSlice::new(tail)];
        let result = rustix::io::pwritev(fd, parts, offset);
        self.write_call("pwritev", fd, object, result)
    }

    /// One call that receives from a connected socket, of the form that `form` selects.
    ///
    /// # Errors
    /// The call's own.
    pub fn receive(
        &mut self,
        form: u64,
        fd: &impl AsFd,
        object: &Object,
        buffer: &mut [u8],
    ) -> rustix::io::Result<usize> {
        let socket = fd.as_fd();
        match form % 4 {
            0 => {
                let result = rustix::net::recv(socket, &mut *buffer, RecvFlags::empty());
                self.read_call("recvfrom", socket, object, result.map(|(bytes, _)| bytes))
            }
            1 => {
                let mut ancillary = rustix::net::RecvAncillaryBuffer::default();
                let parts = &mut [IoSliceMut::new(buffer)];
                let result =
                    rustix::net::recvmsg(socket, parts, &mut ancillary, RecvFlags::empty());
                self.read_call("recvmsg", socket, object, result.map(|message| message.bytes))
            }
            other => self.read(other, fd, object, buffer),
        }
    }

    /// One call that sends on a connected socket, of the form that `form` selects.
    ///
    /// # Errors
    /// The call's own.
    pub fn send(
        &mut self,
        form: u64,
        fd: &impl AsFd,
        object: &Object,
        bytes: &[u8],
    ) -> rustix::io::Result<usize> {
        let socket = fd.as_fd();
        match form % 4 {
            0 => {
                let result = rustix::net::send(socket, bytes, SendFlags::NOSIGNAL);
                self.write_call("sendto", socket, object, result)
            }
            1 => {
                let mut ancillary = rustix::net::SendAncillaryBuffer::default();
                let parts = &[IoSlice::new(bytes)];
                let result =
                    rustix::net::sendmsg(socket, parts, &mut ancillary, SendFlags::NOSIGNAL);
                self.write_call("sendmsg", socket, object, result)
            }
            other => self.write(other, fd, object, bytes),
        }
    }

    /// Writes all of `bytes` in calls of at most `step` bytes, each of another form.
    ///
    /// # Errors
    /// The first call that failed.
    pub fn send_all(
        &mut self,
        form: u64,
        fd: &impl AsFd,
        object: &Object,
        bytes: &[u8],
        step: usize,
    ) -> rustix::io::Result<()> {
        let mut rest = bytes;
        let mut form = form;
        while !rest.is_empty() {
            let part = rest.get(..step.max(1)).unwrap_or(rest);
            let sent = self.send(form, fd, object, part)?;
            rest = rest.get(sent..).unwrap_or_default();
            form += 1;
        }
        Ok(())
    }

    /// Receives until the peer has closed: the last call brings nothing. Returns the bytes.
    ///
    /// # Errors
    /// The first call that failed.
    pub fn receive_all(
        &mut self,
        form: u64,
        fd: &impl AsFd,
        object: &Object,
        buffer: &mut [u8],
    ) -> rustix::io::Result<u64> {
        let mut total = 0;
        for form in form.. {
            match self.receive(form, fd, object, buffer)? {
                0 => return Ok(total),
                bytes => total += bytes as u64,
            }
        }
        Err(Errno::OVERFLOW)
    }

    /// The counts as rows of a truth.
    pub fn into_truth(self, pid: u32) -> Truth {
        let mut truth = Truth { pid, calls: self.calls, ..Truth::default() };
        for ((fd, object), volume) in self.volumes {
            match object {
                Object::File { kind, path, opened } => {
                    truth.files.push(FileTruth { pid, fd: Some(fd), kind, path, opened, volume });
                }
                Object::Network { protocol, client, server } => truth.network.push(NetworkTruth {
                    pid,
                    fd: Some(fd),
                    protocol,
                    client,
                    server,
                    volume,
                }),
            }
        }
        truth
    }
}
