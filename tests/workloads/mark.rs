//! `workload-mark FOLDER NUMBER`: does the act with that number ([`Mark`]), and says nothing.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use tests::Result;
use tests::mark::Mark;

/// What no act ends with.
const EXIT_FAILED: u8 = 99;

fn act() -> Result<Mark> {
    let mut arguments = std::env::args_os().skip(1);
    let folder: PathBuf = arguments.next().ok_or("FOLDER is missing")?.into();
    let number = arguments.next().ok_or("NUMBER is missing")?;
    let mark = Mark { number: number.to_string_lossy().parse()? };
    std::fs::create_dir(mark.folder(&folder))?;
    let mut file = std::fs::File::create_new(mark.file(&folder))?;
    let bytes = vec![b'm'; usize::try_from(mark.write_bytes())?];
    for _ in 0..mark.writes() {
        file.write_all(&bytes)?;
    }
    Ok(mark)
}

fn main() -> ExitCode {
    match act() {
        Ok(mark) => ExitCode::from(mark.exit_code()),
        Err(error) => {
            eprintln!("workload-mark: {error}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}
