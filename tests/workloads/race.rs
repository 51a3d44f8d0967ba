//! `workload-race`: threads that open and close one file as fast as they can, so that each takes
//! over the descriptor numbers of the others. Prints how many opens it did, as one number.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use tests::Result;

/// Opens without a pause: about what the ring holds of them.
const BURST: usize = 64;
const PAUSE: Duration = Duration::from_millis(4);

fn main() -> Result {
    let (mut file, mut threads, mut opens) = (PathBuf::new(), 4, 5_000);
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        use lexopt::{Arg, ValueExt};
        match argument {
            Arg::Long("file") => file = parser.value()?.into(),
            Arg::Long("threads") => threads = parser.value()?.parse()?,
            Arg::Long("opens") => opens = parser.value()?.parse()?,
            other => return Err(other.unexpected().into()),
        }
    }
    std::thread::scope(|scope| -> Result {
        let started: Vec<_> =
            (0..threads).map(|_| scope.spawn(|| open_and_close(&file, opens))).collect();
        for thread in started {
            thread.join().map_err(|_| "a thread panicked")??;
        }
        Ok(())
    })?;
    println!("{}", threads * opens);
    Ok(())
}

fn open_and_close(file: &Path, opens: usize) -> Result {
    for number in 1..=opens {
        drop(rustix::fs::open(file, OFlags::RDONLY, Mode::empty())?);
        if number % BURST == 0 {
            std::thread::sleep(PAUSE);
        }
    }
    Ok(())
}
