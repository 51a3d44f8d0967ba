//! Reads `.sf` files of schema version 5, block by block.
//!
//! The bytes may be hostile: header, compressed block and unpacked block have upper bounds,
//! and a file that breaks a rule gives an error that names the part; it never panics and is
//! never passed over in silence.

use std::io::{self, BufRead, BufReader, Read};

use flate2::read::DeflateDecoder;

use super::decode::Cursor;
use super::{MAGIC, SYNC_BYTES, schema};
use crate::sysflow::Record;

/// Largest file header, bytes; the schema takes 6 to 12 kB of it.
const HEADER_BYTES_MAX: usize = 1 << 20;
/// Largest block as it stands in the file, bytes. Writers flush at 80 kB.
const BLOCK_BYTES_MAX: u64 = 8 << 20;
/// Largest block when unpacked, bytes. A record of empty texts takes 24 times as much memory.
const UNPACKED_BYTES_MAX: u64 = 8 << 20;

/// The records of a `.sf` file, in order. After the first error there are none.
pub(crate) struct Reader<R: Read> {
    input: BufReader<R>,
    deflated: bool,
    sync: [u8; SYNC_BYTES],
    block: Vec<u8>,
    /// Where the next record begins in `block`.
    at: usize,
    /// Records of `block` that are still to come.
    left: i64,
    ended: bool,
}

impl<R: Read> Reader<R> {
    /// Reads a file's header.
    ///
    /// # Errors
    /// `InvalidData` with the reason if it is not a `.sf` file of version 5; those of `input`.
    pub(crate) fn new(input: R) -> io::Result<Self> {
        let mut input = BufReader::new(input);
        let mut magic = [0; MAGIC.len()];
        input.read_exact(&mut magic).map_err(|_| invalid("not an Avro file: no magic number"))?;
        if magic != MAGIC {
            return Err(invalid("not an Avro file: wrong magic number"));
        }
        let (mut codec, mut text) = (None, None);
        let mut budget = HEADER_BYTES_MAX;
        loop {
            let mut count = read_long(&mut input)?;
            if count == 0 {
                break;
            }
            if count < 0 {
                let _size = read_long(&mut input)?;
                count = count.saturating_neg();
            }
            for _ in 0..count {
                let key = read_bytes(&mut input, &mut budget)?;
                let value = read_bytes(&mut input, &mut budget)?;
                match key.as_slice() {
                    b"avro.codec" => codec = Some(value),
                    b"avro.schema" => text = Some(value),
                    _ => {}
                }
            }
        }
        let deflated = match codec.as_deref() {
            None | Some(b"null") => false,
            Some(b"deflate") => true,
            Some(other) => {
                let other = String::from_utf8_lossy(other);
                return Err(invalid(&format!("codec {other:?} is neither null nor deflate")));
            }
        };
        let text = text.ok_or_else(|| invalid("no schema in the file's header"))?;
        if !std::str::from_utf8(&text).is_ok_and(schema::is_version_5) {
            return Err(invalid("schema is not SysFlow version 5"));
        }
        let mut sync = [0; SYNC_BYTES];
        input.read_exact(&mut sync)?;
        Ok(Reader { input, deflated, sync, block: Vec::new(), at: 0, left: 0, ended: false })
    }

    fn read(&mut self) -> io::Result<Option<Record>> {
        while self.left == 0 {
            if self.at != self.block.len() {
                return Err(invalid("bytes after the last record of a block"));
            }
            if !self.read_block()? {
                return Ok(None);
            }
        }
        let bytes = self.block.get(self.at..).unwrap_or_default();
        let mut cursor = Cursor::new(bytes);
        let record = cursor.record().map_err(invalid)?;
        self.at = self.block.len() - cursor.left();
        self.left -= 1;
        Ok(Some(record))
    }

    /// Reads the next block; `false` at the end of the file.
    fn read_block(&mut self) -> io::Result<bool> {
        let Some(first) = (&mut self.input).bytes().next().transpose()? else {
            return Ok(false);
        };
        let count = read_long(&mut [first].as_slice().chain(&mut self.input))?;
        let size = u64::try_from(read_long(&mut self.input)?)
            .ok()
            .filter(|size| count >= 0 && *size <= BLOCK_BYTES_MAX)
            .ok_or_else(|| invalid("block size is out of range"))?;
        let mut data = Vec::new();
        (&mut self.input).take(size).read_to_end(&mut data)?;
        let mut sync = [0; SYNC_BYTES];
        self.input.read_exact(&mut sync).map_err(|_| invalid("file ends inside a block"))?;
        if data.len() as u64 != size || sync != self.sync {
            return Err(invalid("block does not end in the sync marker"));
        }
        self.block.clear();
        if self.deflated {
            let unpacked = DeflateDecoder::new(data.as_slice())
                .take(UNPACKED_BYTES_MAX + 1)
                .read_to_end(&mut self.block)?;
            if unpacked as u64 > UNPACKED_BYTES_MAX {
                return Err(invalid("block unpacks to more than 8 MiB"));
            }
        } else {
            self.block = data;
        }
        self.at = 0;
        self.left = count;
        Ok(true)
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = io::Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.read().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

fn read_long(input: &mut impl BufRead) -> io::Result<i64> {
    let mut bytes = Vec::with_capacity(10);
    for byte in input.bytes().take(10) {
        let byte = byte?;
        bytes.push(byte);
        if byte & 0x80 == 0 {
            return Cursor::new(&bytes).long().map_err(invalid);
        }
    }
    Err(invalid("file ends inside a number, or the number is too long"))
}

fn read_bytes(input: &mut impl BufRead, budget: &mut usize) -> io::Result<Vec<u8>> {
    let length = usize::try_from(read_long(input)?)
        .ok()
        .filter(|length| *length < *budget)
        .ok_or_else(|| invalid("file header is larger than 1 MiB"))?;
    // One byte more than the value, so that empty ones cannot go on for ever.
    *budget -= length + 1;
    let mut bytes = vec![0; length];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}
