//! `workload-pids`: more short programs than there are process ids, so that ids come round.
//!
//! Some spawners at a time each start programs one after the other, which end at once. It prints
//! who started what under which id, as one JSON object. It is meant for a kernel whose `pid_max`
//! has been lowered; it lowers nothing itself.

use std::process::{Command, ExitCode, Stdio};

use tests::Result;
use tests::truth::{Spawned, Spawner};

/// What this process is to do.
#[derive(Clone, Debug, Default)]
struct Plan {
    /// Start so many spawners.
    spawners: u32,
    /// Programs of each spawner.
    programs: u32,
    /// Be this spawner.
    spawner: Option<u32>,
    /// Be this program, and end.
    program: Option<u32>,
}

fn parse() -> Result<Plan> {
    let mut plan = Plan { spawners: 2, programs: 100, ..Plan::default() };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        use lexopt::{Arg, ValueExt};
        match argument {
            Arg::Long("spawners") => plan.spawners = parser.value()?.parse()?,
            Arg::Long("programs") => plan.programs = parser.value()?.parse()?,
            Arg::Long("spawner") => plan.spawner = Some(parser.value()?.parse()?),
            Arg::Long("program") => plan.program = Some(parser.value()?.parse()?),
            // Every workload is given a folder; this one needs none.
            Arg::Long("dir") => drop(parser.value()?),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(plan)
}

/// Starts this spawner's programs. Their numbers are those of no other spawner.
fn spawn(plan: &Plan, spawner: u32) -> Result<Vec<Spawned>> {
    let own = std::env::current_exe()?;
    let mut spawned = Vec::new();
    for number in spawner * plan.programs..(spawner + 1) * plan.programs {
        let mut program = Command::new(&own).arg("--program").arg(number.to_string()).spawn()?;
        let pid = program.id();
        if !program.wait()?.success() {
            return Err(format!("program {number} failed").into());
        }
        spawned.push(Spawned { number, pid });
    }
    Ok(spawned)
}

/// Starts the spawners, all at once, and gathers what they did.
fn storm(plan: &Plan) -> Result<Vec<Spawner>> {
    let own = std::env::current_exe()?;
    let mut running = Vec::new();
    for number in 0..plan.spawners {
        let mut command = Command::new(&own);
        command.args(["--spawner", &number.to_string()]);
        command.args(["--programs", &plan.programs.to_string()]).stdout(Stdio::piped());
        running.push(command.spawn()?);
    }
    let mut spawners = Vec::new();
    for spawner in running {
        let pid = spawner.id();
        let output = spawner.wait_with_output()?;
        if !output.status.success() {
            return Err(format!("spawner {pid} ended with {}", output.status).into());
        }
        spawners.push(Spawner { pid, programs: serde_json::from_slice(&output.stdout)? });
    }
    Ok(spawners)
}

fn run() -> Result {
    let plan = parse()?;
    match (plan.program, plan.spawner) {
        (Some(_), _) => {}
        (None, Some(spawner)) => println!("{}", serde_json::to_string(&spawn(&plan, spawner)?)?),
        (None, None) => println!("{}", serde_json::to_string(&storm(&plan)?)?),
    }
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("workload-pids: {error}");
            ExitCode::FAILURE
        }
    }
}
