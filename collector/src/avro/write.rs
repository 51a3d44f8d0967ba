//! Writes `.sf` files: header, then blocks of deflated records.
//!
//! Records are collected until a block holds [`BLOCK_BYTES`], so memory is bounded by one
//! block and one record. The sync marker comes from the caller: the same records give the same
//! file.

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::DeflateEncoder;

use super::encode::{encode, put_bytes, put_long};
use super::{MAGIC, SYNC_BYTES, schema};
use crate::sysflow::Record;

/// Records are flushed as a block from this size on, before compression: the reference's
/// `COMPRESS_BLOCK_SIZE`.
pub(crate) const BLOCK_BYTES: usize = 80_000;

/// A `.sf` file in the making.
pub(crate) struct Writer<W: Write> {
    out: W,
    sync: [u8; SYNC_BYTES],
    block: Vec<u8>,
    records: i64,
}

impl<W: Write> Writer<W> {
    /// Begins a file. `sync` separates blocks; any 16 bytes that are unlikely elsewhere.
    ///
    /// # Errors
    /// Those of `out`.
    pub(crate) fn new(mut out: W, sync: [u8; SYNC_BYTES]) -> io::Result<Self> {
        let mut header = MAGIC.to_vec();
        put_long(&mut header, 2);
        for (key, value) in [("avro.codec", "deflate"), ("avro.schema", schema::TEXT)] {
            put_bytes(&mut header, key.as_bytes());
            put_bytes(&mut header, value.as_bytes());
        }
        put_long(&mut header, 0);
        header.extend_from_slice(&sync);
        out.write_all(&header)?;
        Ok(Writer { out, sync, block: Vec::with_capacity(BLOCK_BYTES + 4096), records: 0 })
    }

    /// Appends a record. What version 5 cannot say of it is left out: the caller asks
    /// [`Record::unsaid`] first.
    ///
    /// # Errors
    /// Those of the output.
    pub(crate) fn push(&mut self, record: &Record) -> io::Result<()> {
        if encode(&mut self.block, record) {
            self.records += 1;
        }
        if self.block.len() >= BLOCK_BYTES { self.flush_block() } else { Ok(()) }
    }

    /// Ends the file and hands back the output, not yet flushed.
    ///
    /// # Errors
    /// Those of the output.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        if self.records > 0 {
            self.flush_block()?;
        }
        Ok(self.out)
    }

    fn flush_block(&mut self) -> io::Result<()> {
        let mut deflate = DeflateEncoder::new(Vec::new(), Compression::default());
        deflate.write_all(&self.block)?;
        let data = deflate.finish()?;
        let mut head = Vec::with_capacity(16);
        put_long(&mut head, self.records);
        put_long(&mut head, i64::try_from(data.len()).map_err(io::Error::other)?);
        self.out.write_all(&head)?;
        self.out.write_all(&data)?;
        self.out.write_all(&self.sync)?;
        self.block.clear();
        self.records = 0;
        Ok(())
    }
}
