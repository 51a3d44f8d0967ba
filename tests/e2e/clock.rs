//! A device whose wall clock is ten years ahead when it starts for the first time: it delivers, and
//! its frames say what its clock says, before and after the clock is set.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use codec::Frame;
use tests::Result;
use tests::fleet::Fleet;
use tests::frames;
use tests::machine::{Machine, Need, has_program, skip};
use tests::wait::wait_for;

const DEADLINE: Duration = Duration::from_secs(60);
const YEAR_S: i64 = 365 * 86_400;

/// Compiles what moves the wall clock of one program.
fn compile(library: &Path) -> Result {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/faults/clock.c");
    let mut command = Command::new("cc");
    command.args(["-shared", "-fPIC", "-O1", "-o"]).arg(library).arg(source);
    let output = command.output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Whether a frame that came into the store since the last look says that the wall clock is so many
/// years ahead of this machine's.
fn is_told(fleet: &Fleet<'_>, seen: &mut BTreeSet<PathBuf>, years: i64) -> Result<bool> {
    if !fleet.store().exists() {
        return Ok(false);
    }
    let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let true_s = i64::try_from(now.as_secs())? - boot.tv_sec;
    let mut is_told = false;
    for file in frames::find(&fleet.store())? {
        if seen.insert(file.clone()) {
            let bytes = std::fs::read(file)?;
            let (frame, _) = Frame::decode(&bytes).map_err(|error| format!("{error:?}"))?;
            is_told |= frame.header.clock.is_some_and(|clock| {
                let ahead_s = clock.offset_ns / 1_000_000_000 - true_s;
                (ahead_s + YEAR_S / 2).div_euclid(YEAR_S) == years
            });
        }
    }
    Ok(is_told)
}

#[test]
fn a_clock_that_is_years_ahead_at_the_first_start_locks_nobody_out() -> Result {
    let test = "a_clock_that_is_years_ahead_at_the_first_start_locks_nobody_out";
    let Some(machine) = Machine::claim(test, &[Need::Agent])? else { return Ok(()) };
    if !has_program("cc") {
        return skip(test, "cc is not installed");
    }
    let fleet = Fleet::new(&machine)?;
    let (library, offset) = (fleet.path("clock.so"), fleet.path("clock"));
    compile(&library)?;
    std::fs::write(&offset, (10 * YEAR_S).to_ne_bytes())?;
    let mut collector = fleet.start_collector("127.0.0.1:0")?;
    let mut settings = fleet.agent_settings("agent", collector.address);
    let variable = |name: &str, path: &Path| (OsString::from(name), path.into());
    settings.environment =
        vec![variable("LD_PRELOAD", &library), variable("SYSFLOW_CLOCK", &offset)];
    let mut agent = fleet.start_agent(&settings)?;
    let mut seen = BTreeSet::new();
    wait_for("frames of ten years ahead", DEADLINE, || {
        Ok(is_told(&fleet, &mut seen, 10)?.then_some(()))
    })?;
    let file = std::fs::File::options().write(true).open(&offset)?;
    for years in [0, -10] {
        file.write_all_at(&(years * YEAR_S).to_ne_bytes(), 0)?;
        wait_for("frames that tell the step", DEADLINE, || {
            // Something to tell of.
            drop(std::fs::File::create(fleet.path("act"))?);
            Ok(is_told(&fleet, &mut seen, years)?.then_some(()))
        })?;
    }
    agent.program.stop()?;
    collector.program.stop()?;
    Ok(())
}
