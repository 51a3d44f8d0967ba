//! Regular files and pipes.

use std::fs::OpenOptions;
use std::io::Seek;
use std::os::fd::{AsFd, OwnedFd};

use rustix::pipe::PipeFlags;
use tests::Result;
use tests::tally::{Object, Tally};

use crate::{Plan, Random, in_threads};

/// Bytes that each thread has to itself in the shared file.
const REGION_BYTES: u64 = 1 << 20;
/// Largest call on a regular file, bytes.
const CALL_BYTES_MAX: usize = 8192;
/// Largest write that a pipe takes whole among other writers.
const PIPE_BUF: usize = 4096;

/// Threads that read and write at offsets through one descriptor.
pub(crate) fn shared_file(plan: &Plan) -> Result<Tally> {
    let path = plan.directory.join("shared.bin");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
    let object = Object::of_descriptor('f', true, &file)?;
    in_threads(plan, |thread| {
        let mut tally = Tally::default();
        let mut random = Random::new(plan.seed, thread);
        let mut buffer = vec![b's'; CALL_BYTES_MAX];
        for form in 0..if plan.null { 0 } else { plan.calls } {
            let size = random.size(CALL_BYTES_MAX);
            let offset = thread * REGION_BYTES + random.next() % (REGION_BYTES / 2);
            let part = buffer.get_mut(..size).unwrap_or_default();
            if form % 3 == 0 {
                tally.write_at(random.next(), &file, &object, part, offset)?;
            } else {
                tally.read_at(random.next(), &file, &object, part, offset)?;
            }
        }
        Ok(tally)
    })
}

/// One thread that writes a file from its start to its end and reads it back.
pub(crate) fn sequential_file(plan: &Plan) -> Result<Tally> {
    let mut tally = Tally::default();
    if plan.null {
        return Ok(tally);
    }
    let path = plan.directory.join("sequential.bin");
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
    let object = Object::of_descriptor('f', true, &file)?;
    let mut random = Random::new(plan.seed, 1 << 32);
    let mut buffer = vec![b'q'; CALL_BYTES_MAX];
    for _ in 0..plan.calls {
        let part = buffer.get(..random.size(CALL_BYTES_MAX)).unwrap_or_default();
        tally.write(random.next(), &file, &object, part)?;
    }
    file.rewind()?;
    while tally.read(random.next(), &file, &object, &mut buffer)? > 0 {}
    Ok(tally)
}

/// Threads that write into one pipe, and one that reads it.
pub(crate) fn pipe(plan: &Plan) -> Result<Tally> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let object = Object::of_descriptor('p', false, &reader)?;
    std::thread::scope(|scope| {
        let drained = scope.spawn(|| -> Result<Tally> {
            let mut tally = Tally::default();
            if !plan.null {
                drain(&mut tally, &reader, &object)?;
            }
            Ok(tally)
        });
        let mut tally = in_threads(plan, |thread| pipe_writes(plan, thread, &writer, &object))?;
        drop(writer);
        tally.add(drained.join().map_err(|_| "the pipe's reader panicked")??);
        Ok(tally)
    })
}

fn pipe_writes(plan: &Plan, lane: u64, writer: &OwnedFd, object: &Object) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut random = Random::new(plan.seed, lane);
    let buffer = [b'p'; PIPE_BUF];
    for _ in 0..if plan.null { 0 } else { plan.calls } {
        let part = buffer.get(..random.size(PIPE_BUF)).unwrap_or_default();
        tally.write(random.next(), writer, object, part)?;
    }
    Ok(tally)
}

/// Writes into a pipe whose other end another process holds, and closes it.
pub(crate) fn pour(plan: &Plan, writer: OwnedFd) -> Result<Tally> {
    let object = Object::of_descriptor('p', false, &writer)?;
    pipe_writes(plan, 1 << 33, &writer, &object)
}

/// Reads until all writers have closed.
pub(crate) fn drain(tally: &mut Tally, reader: &impl AsFd, object: &Object) -> Result {
    let mut buffer = vec![0; 3 * PIPE_BUF];
    let mut form = 0;
    while tally.read(form, reader, object, &mut buffer)? > 0 {
        form += 1;
    }
    Ok(())
}

/// Calls that fail and count all the same: at an impossible offset of a file, and on an empty
/// pipe that does not block. A call with a bad descriptor touches no object and is no part of
/// any flow.
pub(crate) fn failing_calls(plan: &Plan) -> Result<Tally> {
    let mut tally = Tally::default();
    if plan.null {
        return Ok(tally);
    }
    let path = plan.directory.join("failing.bin");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
    let object = Object::of_descriptor('f', true, &file)?;
    let (empty, _writer) = rustix::pipe::pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
    let pipe = Object::of_descriptor('p', false, &empty)?;
    let mut buffer = [0; 16];
    let results = [
        tally.read_at(0, &file, &object, &mut buffer, u64::MAX),
        tally.write_at(0, &file, &object, &buffer, u64::MAX),
        tally.read(0, &empty, &pipe, &mut buffer),
    ];
    if let Some(unexpected) = results.iter().position(|result| result.is_ok()) {
        return Err(format!("failing call {unexpected} did not fail").into());
    }
    Ok(tally)
}
