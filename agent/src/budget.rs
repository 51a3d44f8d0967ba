//! One number says how much memory the agent takes; this divides it. What the other settings fix
//! comes first, then what the configuration asks for by name; the rest is shared out among ring,
//! flows, processes and texts. A budget in which the smallest of each find no place is refused.
//! Pure: it asks neither the kernel nor the heap, and tests hold its figures against both.

use std::fmt;

use crate::batch::Limits;
use crate::config::Config;
use crate::engine;

/// Beside those that the kernel keeps, the engine knows flows whose end is still in the ring: one
/// in so many.
const FLOWS_ENDING_PART: usize = 4;
/// Smallest and largest ring that is chosen where none is asked for, bytes.
const RING_BYTES: (usize, usize) = (64 << 10, 1 << 20);
/// Smallest number of flows, and of processes.
const ENTRIES_MIN: usize = 64;
/// Smallest pool of texts, bytes.
const TEXT_BYTES_MIN: usize = 64 << 10;
/// Largest number of flows, and of processes, that is chosen.
const ENTRIES_MAX: usize = 1 << 20;

/// What a part of the budget is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// What it is.
    pub name: &'static str,
    /// The setting that changes it, if one does.
    pub key: Option<&'static str>,
    /// Its size, bytes.
    pub bytes: usize,
}

/// A budget, divided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Division {
    /// Ring between kernel and agent, bytes; a power of two.
    pub ring_bytes: u32,
    /// Flows that the kernel side counts at a time.
    pub flow_entries: u32,
    /// Processes known at a time.
    pub processes_max: usize,
    /// Pool for paths and arguments, bytes.
    pub text_bytes: usize,
    /// All of it, part by part.
    pub parts: Vec<Part>,
}

impl Division {
    /// All parts together, bytes.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.bytes).sum()
    }

    /// Flows that the engine knows at a time.
    pub fn flows_max(&self) -> usize {
        flows_max(self.flow_entries as usize)
    }
}

/// A budget in which not even the smallest agent with these settings has place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TooSmall {
    /// What there is, bytes.
    pub budget_bytes: usize,
    /// The smallest agent with these settings.
    pub smallest: Division,
}

impl fmt::Display for TooSmall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let needed = self.smallest.bytes();
        write!(f, "memory.budget_bytes = {}: {needed} are needed, ", self.budget_bytes)?;
        for (index, Part { name, key, bytes }) in self.smallest.parts.iter().enumerate() {
            let separator = if index > 0 { ", " } else { "" };
            write!(f, "{separator}{bytes} for {name}")?;
            if let Some(key) = key {
                write!(f, " ({key})")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for TooSmall {}

fn flows_max(flow_entries: usize) -> usize {
    flow_entries + flow_entries / FLOWS_ENDING_PART
}

/// What the kernel and the engine take for so many flows, bytes.
fn flows_bytes(flow_entries: usize) -> usize {
    bpf::Bounds::flows_bytes(flow_entries) + engine::Bounds::flows_bytes(flows_max(flow_entries))
}

/// The largest number of entries in `ENTRIES_MIN..=ENTRIES_MAX` that takes at most `bytes`.
fn entries(bytes: usize, takes: fn(usize) -> usize) -> usize {
    let (mut fitting, mut too_many) = (ENTRIES_MIN, ENTRIES_MAX + 1);
    while too_many - fitting > 1 {
        let middle = fitting.midpoint(too_many);
        if takes(middle) <= bytes { fitting = middle } else { too_many = middle }
    }
    fitting
}

/// The largest power of two that is at most `bytes`, within the bounds of a ring.
fn ring(bytes: usize) -> usize {
    let (min, max) = RING_BYTES;
    let bytes = bytes.clamp(min, max);
    if bytes.is_power_of_two() { bytes } else { bytes.next_power_of_two() / 2 }
}

/// Divides `memory.budget_bytes` on a machine with so many processors.
///
/// # Errors
/// [`TooSmall`]
pub fn divide(config: &Config, processors: usize) -> Result<Division, TooSmall> {
    let budget = config.memory.budget_bytes;
    let smallest = shared_out(config, processors, 0);
    match budget.checked_sub(smallest.bytes()) {
        Some(spare) => Ok(shared_out(config, processors, spare)),
        None => Err(TooSmall { budget_bytes: budget, smallest }),
    }
}

/// A division in which what is not asked for by name takes its smallest size, and `spare` bytes
/// more are shared out. Each takes its share or less, since there are no halves of entries.
fn shared_out(config: &Config, processors: usize, mut spare: usize) -> Division {
    let (kernel, memory) = (&config.kernel, &config.memory);
    // A ring comes in powers of two. What it leaves of its share is for texts, lest a larger
    // budget that doubles the ring shrink the tables.
    let mut tables = spare;
    let ring_bytes = kernel.ring_bytes.map_or_else(
        || {
            let (min, _) = RING_BYTES;
            let share = spare / 8;
            let bytes = ring(min + share);
            tables -= share;
            spare -= bytes - min;
            bytes
        },
        |bytes| bytes as usize,
    );
    let open = [kernel.flow_entries.is_none(), memory.processes_max.is_none()];
    let weights = 3 * usize::from(open[0])
        + 2 * usize::from(open[1])
        + 2 * usize::from(memory.text_bytes.is_none());
    let share = |weight: usize| tables.checked_div(weights).unwrap_or_default() * weight;
    let flow_entries = kernel.flow_entries.map_or_else(
        || entries(flows_bytes(ENTRIES_MIN) + share(3), flows_bytes),
        |flow_entries| flow_entries as usize,
    );
    let processes_bytes = engine::Bounds::processes_bytes;
    let processes_max = memory.processes_max.map_or_else(
        || entries(processes_bytes(ENTRIES_MIN) + share(2), processes_bytes),
        |processes_max| processes_max as usize,
    );
    // Texts come in any size.
    let text_bytes = memory.text_bytes.unwrap_or_else(|| {
        let flows = flows_bytes(flow_entries) - flows_bytes(ENTRIES_MIN);
        let processes = processes_bytes(processes_max) - processes_bytes(ENTRIES_MIN);
        let others = usize::from(open[0]) * flows + usize::from(open[1]) * processes;
        TEXT_BYTES_MIN + spare.saturating_sub(others)
    });
    let limits = Limits {
        frame_bytes_max: config.frames.bytes_max,
        generation_records_max: config.frames.generation_records_max,
    };
    let files_max = config.frames.generation_records_max as usize;
    let held_bytes = config.spool.memory_bytes as usize;
    let part = |name, key, bytes| Part { name, key, bytes };
    Division {
        ring_bytes: ring_bytes as u32,
        flow_entries: flow_entries as u32,
        processes_max,
        text_bytes,
        parts: vec![
            part("programs in the kernel", None, bpf::Bounds::fixed_bytes(processors)),
            part("the ring", Some("kernel.ring_bytes"), ring_bytes),
            part("flows", Some("kernel.flow_entries"), flows_bytes(flow_entries)),
            part("processes", Some("memory.processes_max"), processes_bytes(processes_max)),
            part("texts", Some("memory.text_bytes"), text_bytes),
            part(
                "files of a generation",
                Some("frames.generation_records_max"),
                engine::Bounds::files_bytes(files_max),
            ),
            part("texts of one event", None, engine::Bounds::fixed_bytes()),
            part("frames", Some("frames.bytes_max"), limits.memory_bytes()),
            part("frames that are not written yet", Some("spool.memory_bytes"), held_bytes),
            part(
                "a request",
                Some("collector.upload_bytes_max"),
                config.collector.upload_bytes_max,
            ),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(budget_bytes: usize) -> Config {
        let mut config = Config::default();
        config.memory.budget_bytes = budget_bytes;
        config
    }

    #[test]
    fn every_budget_is_used_and_none_is_exceeded() {
        for processors in [1, 4, 64] {
            let least = divide(&config(0), processors).unwrap_err().smallest.bytes();
            assert!(divide(&config(least - 1), processors).is_err());
            for budget in [least, least + 1, 4 << 20, 8 << 20, 12_345_678, 64 << 20] {
                let Ok(division) = divide(&config(budget), processors) else {
                    assert!(budget < least);
                    continue;
                };
                assert!(division.bytes() <= budget, "{budget}: {division:?}");
                // Less than an entry of each table is left over.
                assert!(budget - division.bytes() < 4096, "{budget}: {division:?}");
            }
        }
    }

    /// Both documents say which budget is the least with defaults: it is, to the eighth of a
    /// mebibyte.
    #[test]
    fn the_documents_name_the_least_budget() {
        const LEAST: usize = 3_407_872;
        for document in [include_str!("../agent.toml"), include_str!("../../README.md")] {
            let text = document.replace("\n# ", " ").replace('\n', " ");
            assert!(text.contains(&format!("four processors is {LEAST} bytes")), "{text}");
        }
        for processors in 1..=4 {
            assert!(divide(&config(LEAST), processors).is_ok());
        }
        let error = divide(&config(LEAST - (128 << 10)), 4).unwrap_err();
        assert!(error.smallest.bytes() > LEAST - (128 << 10));
    }

    #[test]
    fn more_budget_is_more_of_ring_flows_and_processes() {
        let mut before = divide(&config(4 << 20), 2).unwrap();
        for budget in (5..=64).map(|mib| mib << 20) {
            let division = divide(&config(budget), 2).unwrap();
            let sizes = |of: &Division| (of.ring_bytes, of.flow_entries, of.processes_max);
            let (now, then) = (sizes(&division), sizes(&before));
            assert!(now.0 >= then.0 && now.1 >= then.1 && now.2 >= then.2, "{budget}");
            before = division;
        }
    }

    #[test]
    fn what_is_asked_for_by_name_is_given_and_the_others_share_the_rest() {
        let mut config = config(16 << 20);
        config.kernel.flow_entries = Some(100);
        config.kernel.ring_bytes = Some(1 << 20);
        let division = divide(&config, 2).unwrap();
        assert_eq!((division.flow_entries, division.ring_bytes), (100, 1 << 20));
        assert!((16 << 20) - division.bytes() < 4096);
        config.memory.processes_max = Some(70);
        config.memory.text_bytes = Some(1 << 16);
        let division = divide(&config, 2).unwrap();
        assert_eq!((division.processes_max, division.text_bytes), (70, 1 << 16));
        config.memory.budget_bytes = division.bytes() - 1;
        let error = divide(&config, 2).unwrap_err().to_string();
        assert!(error.starts_with("memory.budget_bytes = "), "{error}");
        assert!(error.contains("1048576 for the ring (kernel.ring_bytes)"), "{error}");
    }
}
