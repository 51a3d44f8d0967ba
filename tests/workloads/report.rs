//! `report-demo`: compares a store with the demonstration's truth and prints what it shows.
//!
//! Exit code 0 only if everything that the workload did is among the records.

use std::path::PathBuf;
use std::process::ExitCode;

use tests::Result;
use tests::frames::Summary;

fn run() -> Result<bool> {
    let (mut store, mut truth, mut records) = (PathBuf::new(), PathBuf::new(), PathBuf::new());
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        use lexopt::Arg;
        match argument {
            Arg::Long("store") => store = parser.value()?.into(),
            Arg::Long("truth") => truth = parser.value()?.into(),
            Arg::Long("records") => records = parser.value()?.into(),
            other => return Err(other.unexpected().into()),
        }
    }
    let truth = serde_json::from_slice(&std::fs::read(&truth)?)?;
    let records = tests::records::parse(&std::fs::read_to_string(&records)?)?;
    let (text, faults) = tests::demo::report(&records, &truth, &Summary::of(&store)?);
    print!("{text}");
    Ok(faults.is_empty())
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("report-demo: {error}");
            ExitCode::from(2)
        }
    }
}
