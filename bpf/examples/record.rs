//! Records the probes' events for a number of seconds: `record SECONDS FILE`. The file holds
//! each event behind its length (32 bits, little-endian); the agent's replay test reads it.

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::time::{Duration, Instant};

use bpf::{Bounds, Probes};

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let (Some(seconds), Some(file)) = (words.next(), words.next()) else {
        return Err("usage: record SECONDS FILE".into());
    };
    let seconds: u64 = seconds.parse()?;
    let mut out = BufWriter::new(File::create_new(file)?);
    let probes = Probes::load(&Bounds {
        ring_bytes: 1 << 20,
        flow_entries: 4096,
        peers_max: 64,
        args_bytes_max: 2048,
        env_bytes_max: 0,
        btf: None,
    })?;
    let mut failed = Ok(());
    let ring = probes.ring(|bytes| {
        let length = (bytes.len() as u32).to_le_bytes();
        let written = out.write_all(&length).and_then(|()| out.write_all(bytes));
        if failed.is_ok() {
            failed = written;
        }
    })?;
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        ring.drain();
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(ring);
    failed?;
    Ok(out.flush()?)
}
