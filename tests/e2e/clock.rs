//! A device whose wall clock is ten years ahead when it starts for the first time: it delivers, and
//! its frames say what its clock says, before and after the clock is set.

use std::ffi::OsString;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use codec::Frame;
use tests::Result;
use tests::fleet::Fleet;
use tests::frames;
use tests::machine::{Machine, Need, has_program, skip};
use tests::wait::wait_for;

const DEADLINE: Duration = Duration::from_secs(60);
const TEN_YEARS_S: i64 = 10 * 365 * 86_400;

/// Compiles what moves the wall clock of one program.
fn compile(library: &Path) -> Result {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/faults/clock.c");
    let mut command = Command::new("cc");
    command.args(["-shared", "-fPIC", "-O1", "-o"]).arg(library).arg(source);
    let output = command.output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// What the frames in the store say of the wall clock, years ahead of this machine's.
fn years_ahead(fleet: &Fleet<'_>) -> Result<Vec<i64>> {
    let mut years = Vec::new();
    if !fleet.store().exists() {
        return Ok(years);
    }
    let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let true_s = i64::try_from(now.as_secs())? - boot.tv_sec;
    for file in frames::find(&fleet.store())? {
        let bytes = std::fs::read(file)?;
        let (frame, _) = Frame::decode(&bytes).map_err(|error| format!("{error:?}"))?;
        let told = frame.header.clock.map(|clock| clock.offset_ns / 1_000_000_000 - true_s);
        years.extend(told.map(|ahead_s| (ahead_s + 86_400) / (365 * 86_400)));
    }
    Ok(years)
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
    std::fs::write(&offset, TEN_YEARS_S.to_ne_bytes())?;
    let mut collector = fleet.start_collector("127.0.0.1:0")?;
    let mut settings = fleet.agent_settings("agent", collector.address);
    let variable = |name: &str, path: &Path| (OsString::from(name), path.into());
    settings.environment =
        vec![variable("LD_PRELOAD", &library), variable("SYSFLOW_CLOCK", &offset)];
    let mut agent = fleet.start_agent(&settings)?;
    wait_for("frames of ten years ahead", DEADLINE, || {
        Ok(years_ahead(&fleet)?.contains(&10).then_some(()))
    })?;
    let file = std::fs::File::options().write(true).open(&offset)?;
    for step_s in [0, -TEN_YEARS_S] {
        file.write_all_at(&step_s.to_ne_bytes(), 0)?;
        let years = step_s / (365 * 86_400);
        wait_for("frames that tell the step", DEADLINE, || {
            // Something to tell of.
            drop(std::fs::File::create(fleet.path("act"))?);
            Ok(years_ahead(&fleet)?.contains(&years).then_some(()))
        })?;
    }
    agent.program.stop()?;
    collector.program.stop()?;
    Ok(())
}
