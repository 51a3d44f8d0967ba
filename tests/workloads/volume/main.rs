//! `workload-volume`: a known number of reading and writing calls of every form.
//!
//! Regular files, pipes, unix sockets, TCP and UDP over both address families, across
//! threads that share a descriptor and across processes; calls of zero bytes and calls that
//! fail included. It prints what it did as one JSON object, with one call, as its last act,
//! so that a system-call tracer's counts of a run, less those of a `--null` run (the same
//! processes and threads, without the work), equal its own.

mod datagram;
mod files;
mod stream;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::pipe::PipeFlags;
use tests::Result;
use tests::tally::{Object, Tally};
use tests::truth::{ProcessTruth, Truth};

/// What to do: the same plan makes the same calls.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// An empty directory for files, sockets and the reports of children.
    directory: PathBuf,
    /// Start of the pseudo-random sizes and forms.
    seed: u64,
    /// Threads on each shared object.
    threads: u64,
    /// Calls of each thread on each object.
    calls: u64,
    /// Start the same threads and processes, but let them do nothing.
    null: bool,
}

/// The splitmix64 generator: small, and the same everywhere.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64, lane: u64) -> Random {
        Random(seed ^ lane.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A size in `0..=most`; one in eight is zero.
    pub(crate) fn size(&mut self, most: usize) -> usize {
        let n = self.next();
        if n.is_multiple_of(8) { 0 } else { (n >> 8) as usize % (most + 1) }
    }
}

/// Runs `work` in `plan.threads` threads and adds up their counts.
pub(crate) fn in_threads(plan: &Plan, work: impl Fn(u64) -> Result<Tally> + Sync) -> Result<Tally> {
    std::thread::scope(|scope| {
        let work = &work;
        let started: Vec<_> =
            (0..plan.threads).map(|thread| scope.spawn(move || work(thread))).collect();
        let mut tally = Tally::default();
        for thread in started {
            tally.add(thread.join().map_err(|_| "a thread of the workload panicked")??);
        }
        Ok(tally)
    })
}

/// A process of this run: the same program in another role, working on what it inherits as
/// its standard input.
struct Worker {
    child: Child,
    report: PathBuf,
    args: Vec<String>,
}

impl Worker {
    fn start(plan: &Plan, role: &str, name: &str, input: OwnedFd) -> Result<Worker> {
        let report = plan.directory.join(format!("report-{name}.json"));
        let mut args: Vec<String> = [
            "--role",
            role,
            "--seed",
            &plan.seed.to_string(),
            "--threads",
            &plan.threads.to_string(),
            "--calls",
            &plan.calls.to_string(),
        ]
        .map(str::to_string)
        .to_vec();
        args.push("--report".to_string());
        args.push(report.display().to_string());
        if plan.null {
            args.push("--null".to_string());
        }
        let child = Command::new(std::env::current_exe()?)
            .args(&args)
            .stdin(Stdio::from(input))
            .stdout(Stdio::null())
            .spawn()?;
        Ok(Worker { child, report, args })
    }

    /// Waits for the end and takes over what the process counted.
    fn finish(mut self, truth: &mut Truth) -> Result {
        let pid = self.child.id();
        let status = self.child.wait()?;
        if !status.success() {
            return Err(format!("worker {pid} ended with {status}").into());
        }
        truth.merge(serde_json::from_slice(&read_report(&self.report)?)?);
        truth.processes.push(this_program(Some(pid), self.args, Some(0))?);
        Ok(())
    }
}

/// Reads a report in exactly two calls, so that a null run makes as many.
fn read_report(path: &Path) -> Result<Vec<u8>> {
    let file = std::fs::File::open(path)?;
    let mut bytes = vec![0; 1 << 20];
    let length = rustix::io::read(&file, bytes.as_mut_slice())?;
    bytes.truncate(length);
    if rustix::io::read(&file, &mut [0; 1])? != 0 {
        return Err(format!("report {} is larger than 1 MiB", path.display()).into());
    }
    Ok(bytes)
}

fn this_program(pid: Option<u32>, args: Vec<String>, status: Option<i32>) -> Result<ProcessTruth> {
    let own = std::process::id();
    Ok(ProcessTruth {
        pid,
        parent: Some(if pid == Some(own) { std::os::unix::process::parent_id() } else { own }),
        exe: std::fs::canonicalize(std::env::current_exe()?)?.display().to_string(),
        args,
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        status,
    })
}

fn run(plan: &Plan) -> Result<Truth> {
    let mut tally = Tally::default();
    let mut workers = Truth::default();

    tally.add(files::shared_file(plan)?);
    tally.add(files::sequential_file(plan)?);
    tally.add(files::pipe(plan)?);
    tally.add(files::failing_calls(plan)?);
    tally.add(stream::socket_pair(plan)?);
    tally.add(stream::unix_listener(plan)?);
    for address in ["127.0.0.1:0", "[::1]:0"] {
        tally.add(datagram::exchange(plan, address)?);
        tally.add(stream::tcp(plan, address, &mut workers)?);
    }

    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let worker = Worker::start(plan, "sink", "sink", reader)?;
    tally.add(files::pour(plan, writer)?);
    worker.finish(&mut workers)?;

    let (near, far) = stream::pair()?;
    let worker = Worker::start(plan, "mirror", "mirror", far)?;
    tally.add(stream::ask_alone(plan, near)?);
    worker.finish(&mut workers)?;

    let pid = std::process::id();
    let mut truth = tally.into_truth(pid);
    truth.processes.push(this_program(Some(pid), std::env::args().skip(1).collect(), None)?);
    truth.merge(workers);
    Ok(truth)
}

/// What a [`Worker`] does with its standard input.
fn work(plan: &Plan, role: &str) -> Result<Truth> {
    let input = std::io::stdin();
    let tally = match role {
        _ if plan.null && role != "serve" => Tally::default(),
        "sink" => {
            let mut tally = Tally::default();
            let object = Object::of_descriptor('p', false, &input)?;
            files::drain(&mut tally, &input, &object)?;
            tally
        }
        "mirror" => stream::answer_alone(plan, &input)?,
        "serve" => stream::serve(plan, input.as_fd().try_clone_to_owned()?)?,
        _ => return Err(format!("--role {role}: not one of sink, mirror, serve").into()),
    };
    Ok(tally.into_truth(std::process::id()))
}

fn main() -> Result {
    let mut plan = Plan { directory: PathBuf::new(), seed: 1, threads: 2, calls: 200, null: false };
    let mut role = None;
    let mut report = None;
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        use lexopt::{Arg, ValueExt};
        match argument {
            Arg::Long("dir") => plan.directory = std::fs::canonicalize(parser.value()?)?,
            Arg::Long("seed") => plan.seed = parser.value()?.parse()?,
            Arg::Long("threads") => plan.threads = parser.value()?.parse()?,
            Arg::Long("calls") => plan.calls = parser.value()?.parse()?,
            Arg::Long("null") => plan.null = true,
            Arg::Long("role") => role = Some(parser.value()?.string()?),
            Arg::Long("report") => report = Some(PathBuf::from(parser.value()?)),
            other => return Err(other.unexpected().into()),
        }
    }
    if let (Some(role), Some(report)) = (role, report) {
        let truth = work(&plan, &role)?;
        let file = std::fs::File::create(&report)?;
        return write_once(&file, &truth);
    }
    if plan.directory.as_os_str().is_empty() {
        return Err("--dir DIRECTORY is missing: an empty directory for the files".into());
    }
    let truth = run(&plan)?;
    write_once(&std::io::stdout(), &truth)
}

/// Writes a truth with one call, which no count includes.
fn write_once(to: &impl AsFd, truth: &Truth) -> Result {
    let mut line = serde_json::to_vec(truth)?;
    line.push(b'\n');
    let written = rustix::io::write(to, &line)?;
    if written == line.len() {
        Ok(())
    } else {
        Err(format!("wrote {written} of {} bytes of the truth", line.len()).into())
    }
}
