//! `workload-transfer`: calls that move bytes between two descriptors, calls that carry many
//! messages, and descriptors that are copies of others. It prints what it did as one JSON object.
//! A call on two descriptors is a read of the one and a write to the other.

use std::io::{IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::DupFlags;
use rustix::net::{
    AddressFamily, MMsgHdr, SendAncillaryBuffer, SendFlags, SocketFlags, SocketType,
};
use rustix::pipe::SpliceFlags;
use tests::Result;
use tests::tally::{Object, Tally};

/// A descriptor and what it is of.
struct End {
    descriptor: OwnedFd,
    object: Object,
}

impl End {
    fn open(path: &Path) -> Result<End> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        let descriptor = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?;
        let object = Object::of_descriptor('f', true, &descriptor)?;
        Ok(End { descriptor, object })
    }

    fn pipe() -> Result<(End, End)> {
        let (read, write) = rustix::pipe::pipe()?;
        let object = Object::of_descriptor('p', false, &read)?;
        let end = |descriptor| End { descriptor, object: object.clone() };
        Ok((end(read), end(write)))
    }

    fn write(&self, tally: &mut Tally, bytes: &[u8]) -> Result {
        let result = rustix::io::write(&self.descriptor, bytes);
        tally.write_call("write", self.descriptor.as_fd(), &self.object, result)?;
        Ok(())
    }

    fn read(&self, tally: &mut Tally, bytes: usize) -> Result {
        let mut buffer = vec![0; bytes];
        let result = rustix::io::pread(&self.descriptor, &mut buffer[..], 0);
        tally.read_call("pread64", self.descriptor.as_fd(), &self.object, result)?;
        Ok(())
    }
}

/// Counts a call on two descriptors; one that fails is counted on both.
fn moved(tally: &mut Tally, call: &str, ends: [&End; 2], result: rustix::io::Result<usize>) {
    let [from, to] = ends;
    // The results are in the counts.
    let _ = tally.read_call(call, from.descriptor.as_fd(), &from.object, result);
    let _ = tally.write_call(call, to.descriptor.as_fd(), &to.object, result);
}

fn between_two(tally: &mut Tally, base: &Path) -> Result {
    let source = End::open(&base.join("source"))?;
    let sink = End::open(&base.join("sink"))?;
    let ((read, write), (other_read, other_write)) = (End::pipe()?, End::pipe()?);
    source.write(tally, &[b's'; 9000])?;
    for (bytes, place) in [(4000, 0), (3000, 8000)] {
        let mut place = place;
        let ends = (&sink.descriptor, &source.descriptor);
        let result = rustix::fs::sendfile(ends.0, ends.1, Some(&mut place), bytes);
        moved(tally, "sendfile", [&source, &sink], result);
    }
    let none = SpliceFlags::empty();
    let splice = |from: &End, to: &End, place: Option<&mut u64>, bytes| {
        rustix::pipe::splice(&from.descriptor, place, &to.descriptor, None, bytes, none)
    };
    let result = splice(&source, &write, Some(&mut 100), 2500);
    moved(tally, "splice", [&source, &write], result);
    let result = rustix::pipe::tee(&read.descriptor, &other_write.descriptor, 2500, none);
    moved(tally, "tee", [&read, &other_write], result);
    let result = splice(&other_read, &sink, None, 2500);
    moved(tally, "splice", [&other_read, &sink], result);
    let (mut from, mut to) = (10, 20);
    let (one, other) = (&source.descriptor, &sink.descriptor);
    let result = rustix::fs::copy_file_range(one, Some(&mut from), other, Some(&mut to), 1234);
    moved(tally, "copy_file_range", [&source, &sink], result);
    Ok(())
}

fn copies(tally: &mut Tally, base: &Path) -> Result {
    let copied = End::open(&base.join("copied"))?;
    copied.write(tally, &[b'c'; 500])?;
    let duplicate = |descriptor| -> Result<End> {
        Ok(End { object: Object::of_descriptor('f', false, &descriptor)?, descriptor })
    };
    let mut second = End::open(&base.join("replaced"))?;
    second.write(tally, b"gone")?;
    rustix::io::dup2(&copied.descriptor, &mut second.descriptor)?;
    let second = duplicate(second.descriptor)?;
    second.read(tally, 30)?;
    let third = duplicate(rustix::io::fcntl_dupfd_cloexec(&copied.descriptor, 300)?)?;
    third.read(tally, 7)?;
    let mut fourth = End::open(&base.join("replaced too"))?;
    fourth.write(tally, b"gone too")?;
    // The others go on.
    drop(copied);
    second.read(tally, 31)?;
    rustix::io::dup3(&third.descriptor, &mut fourth.descriptor, DupFlags::CLOEXEC)?;
    duplicate(fourth.descriptor)?.read(tally, 11)
}

fn messages(tally: &mut Tally) -> Result {
    let (left, right) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let object = Object::unnamed_socket(false);
    let texts = [[b'a'; 10], [b'b'; 10], [b'c'; 10]];
    let parts = texts.each_ref().map(|text| [IoSlice::new(text)]);
    let mut control = [(); 3].map(|()| SendAncillaryBuffer::default());
    let mut list: Vec<MMsgHdr<'_>> =
        parts.iter().zip(&mut control).map(|(part, control)| MMsgHdr::new(part, control)).collect();
    let sent = rustix::net::sendmmsg(&left, &mut list, SendFlags::empty())?;
    for text in texts.iter().take(sent) {
        tally.write_call("sendmmsg", left.as_fd(), &object, Ok(text.len()))?;
    }
    for _ in 0..sent {
        let mut buffer = [0; 20];
        let result = rustix::io::readv(&right, &mut [IoSliceMut::new(&mut buffer)]);
        tally.read_call("readv", right.as_fd(), &object, result)?;
    }

    let peers = [UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?];
    let server = UdpSocket::bind("127.0.0.1:0")?;
    let addresses = [peers[0].local_addr()?, peers[1].local_addr()?, peers[0].local_addr()?];
    let named = addresses.map(rustix::net::SocketAddrAny::from);
    let mut control = [(); 3].map(|()| SendAncillaryBuffer::default());
    let mut list: Vec<MMsgHdr<'_>> = parts
        .iter()
        .zip(&named)
        .zip(&mut control)
        .map(|((part, name), control)| MMsgHdr::new_with_addr(name, part, control))
        .collect();
    let sent = rustix::net::sendmmsg(&server, &mut list, SendFlags::empty())?;
    let local: SocketAddr = server.local_addr()?;
    for (text, peer) in texts.iter().zip(addresses).take(sent) {
        let object = Object::Network { protocol: 17, client: local, server: peer };
        tally.write_call("sendmmsg", server.as_fd(), &object, Ok(text.len()))?;
    }
    Ok(())
}

fn main() -> Result {
    let mut directory = PathBuf::new();
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            lexopt::Arg::Long("dir") => directory = parser.value()?.into(),
            other => return Err(other.unexpected().into()),
        }
    }
    if directory.as_os_str().is_empty() {
        return Err("--dir DIRECTORY is missing: an empty directory for the files".into());
    }
    let base = std::fs::canonicalize(&directory)?;
    let mut tally = Tally::default();
    between_two(&mut tally, &base)?;
    copies(&mut tally, &base)?;
    messages(&mut tally)?;
    println!("{}", serde_json::to_string(&tally.into_truth(std::process::id()))?);
    Ok(())
}
