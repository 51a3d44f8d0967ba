//! Acts in the background while other things go on: a thread does as many as it is asked for, and
//! notes when each began and ended; afterwards each is looked up in the records.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use codec::Class;
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;

use crate::Result;
use crate::fleet::Fleet;
use crate::machine::Machine;
use crate::mark::Mark;
use crate::records::{number, text, volume};
use crate::wait::wait_for;

/// From this age on a process's session is no young one to the probes, which have them share what
/// one session has for itself.
const GROWN: Duration = Duration::from_secs(5);

/// Nanoseconds on the boot clock.
pub fn boot_ns() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    u64::try_from(time.tv_sec * 1_000_000_000 + time.tv_nsec).unwrap_or(0)
}

/// When this process started, boot clock, ns.
fn start_ns() -> Result<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The name may have blanks in it; behind it the start is the twentieth word, in ticks.
    let words = stat.rsplit_once(')').map_or("", |(_, words)| words);
    let ticks: u64 = words.split_whitespace().nth(19).ok_or("no start in stat")?.parse()?;
    Ok(ticks * (1_000_000_000 / rustix::param::clock_ticks_per_second()))
}

/// An act that was done.
#[derive(Clone, Copy, Debug)]
pub struct Act {
    /// Which.
    pub mark: Mark,
    /// The process that did it.
    pub pid: u32,
    /// Its beginning, boot clock, ns.
    pub from_ns: u64,
    /// Its end, boot clock, ns.
    pub to_ns: u64,
}

/// The thread that acts.
#[derive(Debug)]
pub struct Actor {
    /// Where the acts leave their files.
    pub folder: PathBuf,
    done: Arc<Mutex<Vec<Act>>>,
    orders: Option<Sender<()>>,
    thread: Option<JoinHandle<Result>>,
    ordered: usize,
}

impl Actor {
    /// Begins, with nothing to do, once this process is as old as a service is as a rule. `program`
    /// is the one that does an act.
    ///
    /// # Errors
    /// If the folder cannot be made, or it is not known how old this process is.
    pub fn start(program: &str, folder: PathBuf) -> Result<Actor> {
        std::fs::create_dir_all(&folder)?;
        let start_ns = start_ns()?;
        wait_for("this process to be no young one", 2 * GROWN, || {
            Ok((boot_ns().saturating_sub(start_ns) >= GROWN.as_nanos() as u64).then_some(()))
        })?;
        let done = Arc::new(Mutex::new(Vec::new()));
        let (orders, ordered) = channel();
        let (shared, place) = (Arc::clone(&done), folder.clone());
        let program = program.to_string();
        let thread = std::thread::spawn(move || act(&program, &ordered, &place, &shared));
        Ok(Actor { folder, done, orders: Some(orders), thread: Some(thread), ordered: 0 })
    }

    /// Orders so many more acts; returns how many will then have been done.
    pub fn order(&mut self, acts: usize) -> usize {
        for _ in 0..acts {
            // A thread that failed says so in the end.
            let _ = self.orders.as_ref().map(|orders| orders.send(()));
        }
        self.ordered += acts;
        self.ordered
    }

    /// How many have been done.
    ///
    /// # Errors
    /// If the thread has ended.
    pub fn done(&self) -> Result<usize> {
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner).len();
        let is_over = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
        if is_over { Err("the thread that acts has ended".into()) } else { Ok(done) }
    }

    /// Ends, and returns all that was done.
    ///
    /// # Errors
    /// The thread's own.
    pub fn finish(&mut self) -> Result<Vec<Act>> {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| "the thread that acts panicked")??;
        }
        Ok(std::mem::take(&mut *self.done.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn act(program: &str, orders: &Receiver<()>, folder: &Path, done: &Mutex<Vec<Act>>) -> Result {
    let mut numbers = 0..;
    while let (Ok(()), Some(number)) = (orders.recv(), numbers.next()) {
        let mark = Mark { number };
        let from_ns = boot_ns();
        let mut child =
            Command::new(program).args(mark.args(folder)).stdin(Stdio::null()).spawn()?;
        let (pid, status) = (child.id(), child.wait()?);
        if status.code() != Some(i32::from(mark.exit_code())) {
            return Err(format!("act {number} ended with {status}").into());
        }
        let act = Act { mark, pid, from_ns, to_ns: boot_ns() };
        done.lock().unwrap_or_else(PoisonError::into_inner).push(act);
    }
    Ok(())
}

/// A part of an act that records tell of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// Its program begins.
    Exec,
    /// Its process ends.
    Exit,
    /// It makes its folder.
    Folder,
    /// It writes its file.
    Writes,
    /// Who did what is told.
    Process,
}

impl Part {
    /// The class that its records travel in.
    pub fn class(self) -> Class {
        match self {
            Part::Exec | Part::Exit => Class::Urgent,
            Part::Folder | Part::Writes | Part::Process => Class::Volume,
        }
    }
}

/// What the records say of one act, against what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// As it was.
    Right,
    /// Not there, or not all of it.
    Missing {
        /// What.
        part: Part,
        /// So many operations of it.
        operations: u64,
    },
    /// Another than it was: how.
    Wrong(String),
}

fn count(part: Part, found: usize) -> Item {
    match found {
        0 => Item::Missing { part, operations: 1 },
        1 => Item::Right,
        more => Item::Wrong(format!("{part:?}: {more} times")),
    }
}

/// Holds an act whose files are in `folder` against the records that name it.
pub fn items(act: &Act, folder: &Path, records: &[&Value]) -> Vec<Item> {
    let pid = i64::from(act.pid);
    let of_pid = |record: &&&Value| number(record, "proc.pid") == Some(pid);
    let path =
        |record: &Value, expected: &Path| text(record, "file.path") == expected.to_string_lossy();
    let args = act.mark.args(folder).join(" ");
    let mut items = Vec::new();

    let events = |operation: &'static str| {
        let args = args.as_str();
        records.iter().filter(move |r| {
            text(r, "opflags") == operation
                && text(r, "type") == "PE"
                && text(r, "proc.args") == args
        })
    };
    items.push(count(Part::Exec, events("EXEC").count()));
    let ends: Vec<_> = events("EXIT").collect();
    items.push(count(Part::Exit, ends.len()));
    let status = i64::from(act.mark.exit_code()) << 8;
    if let Some(end) = ends.first()
        && number(end, "ret") != Some(status)
    {
        items.push(Item::Wrong(format!("ends with {}, not {status}", end["ret"])));
    }

    let made = act.mark.folder(folder);
    let made: Vec<_> =
        records.iter().filter(|r| text(r, "opflags") == "MKDIR" && path(r, &made)).collect();
    items.push(count(Part::Folder, made.len()));

    let file = act.mark.file(folder);
    let flows: Vec<_> =
        records.iter().filter(|r| text(r, "type") == "FF" && path(r, &file)).collect();
    let (mut ops, mut bytes) = (0, 0);
    for flow in &flows {
        ops += volume(flow).write_ops;
        bytes += volume(flow).write_bytes;
    }
    let expected = (act.mark.writes(), act.mark.writes() * act.mark.write_bytes());
    items.push(if (ops, bytes) == expected {
        Item::Right
    } else if ops > expected.0 || bytes > expected.1 {
        Item::Wrong(format!("wrote {ops}/{bytes}, not {}/{}", expected.0, expected.1))
    } else {
        Item::Missing { part: Part::Writes, operations: (expected.0 - ops).max(1) }
    });

    for record in made.iter().chain(&flows).filter(|record| !of_pid(record)) {
        items.push(match number(record, "proc.pid") {
            // The frame that described the process may be missing.
            None => Item::Missing { part: Part::Process, operations: 1 },
            Some(other) => Item::Wrong(format!("is of process {other}")),
        });
    }
    items
}

/// The records that name acts in `folder`, by the act's number.
pub fn by_number<'r>(records: &'r [Value], folder: &Path) -> HashMap<u32, Vec<&'r Value>> {
    let name = folder.to_string_lossy();
    let mut by_number: HashMap<u32, Vec<&Value>> = HashMap::new();
    for record in records {
        let args = text(record, "proc.args");
        let number = args.strip_prefix(name.as_ref()).and_then(|rest| rest.trim().parse().ok());
        // Its doer may not be known; its names are.
        let number = number.or_else(|| {
            let file = text(record, "file.path").strip_prefix(name.as_ref());
            file.and_then(|file| file.strip_prefix("/mark-")?.split('.').next()?.parse().ok())
        });
        if let Some(number) = number {
            by_number.entry(number).or_default().push(record);
        }
    }
    by_number
}

/// What the records in a fleet's store lack of acts in `folder`: how many acts are whole, and a line
/// for each that is not.
///
/// # Errors
/// If `print` fails.
pub fn missing(
    machine: &Machine,
    fleet: &Fleet<'_>,
    folder: &Path,
    acts: &[Act],
) -> Result<(usize, Vec<String>)> {
    let mut print = Command::new(machine.collector())
        .args(["print", "--json"])
        .arg(fleet.store())
        .stdout(Stdio::piped())
        .spawn()?;
    let output = print.stdout.take().ok_or("no output of print")?;
    // Of millions of records only these are kept.
    let name = folder.to_string_lossy();
    let mut kept = String::new();
    for line in BufReader::new(output).lines() {
        let line = line?;
        if line.contains(name.as_ref()) {
            kept.push_str(&line);
            kept.push('\n');
        }
    }
    if !print.wait()?.success() {
        return Err("print --json failed".into());
    }
    let kept = crate::records::parse(&kept)?;
    let of_acts = by_number(&kept, folder);
    let mut faults = Vec::new();
    for act in acts {
        let found = of_acts.get(&act.mark.number).map_or(&[][..], Vec::as_slice);
        let wrong: Vec<String> = items(act, folder, found)
            .into_iter()
            .filter_map(|item| match item {
                Item::Right => None,
                Item::Missing { part, operations } => {
                    Some(format!("{operations} of {part:?} missing"))
                }
                Item::Wrong(what) => Some(what),
            })
            .collect();
        if !wrong.is_empty() {
            faults.push(format!("act {}: {}", act.mark.number, wrong.join(", ")));
        }
    }
    Ok((acts.len() - faults.len(), faults))
}
