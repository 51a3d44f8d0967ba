//! What summaries tell together with the records beside them is what the records alone would have
//! told: volumes add up to the byte, and each operation is told once, in one way or the other.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may stop at the unexpected")]

#[allow(dead_code, reason = "other tests ask it for more")]
mod stage;

use std::collections::BTreeMap;

use agent::engine::Engine;
use bpf::{Event, Header};
use codec::{Frame, Oid, Operation, Record, Step, Subject, Term, Volume, op, open_flag};
use stage::{NoMaps, ROOMY, WIDE, events, replay_behind};

/// The session of all of the scene.
const SESSION: u32 = 7;
/// From here on it has made more events in its second than a session that does not flood.
const FLOODING: usize = 801;

/// What was told, summed up.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    /// Of files and of the network, by process; of a session by none.
    volumes: BTreeMap<(Subject, Option<Oid>), [u64; 4]>,
    /// Operations that became records or parts of them.
    operations: BTreeMap<Operation, u64>,
    summaries: u64,
    /// Flows that only read, told by themselves.
    reading: u64,
}

impl Told {
    fn add(&mut self, subject: Subject, process: Option<Oid>, volume: &Volume) {
        let Volume { read_ops, write_ops, read_bytes, write_bytes } = *volume;
        let sum = self.volumes.entry((subject, process)).or_default();
        for (sum, more) in sum.iter_mut().zip([read_ops, write_ops, read_bytes, write_bytes]) {
            *sum += more;
        }
    }

    /// The same, of all processes together.
    fn of_all(&self) -> BTreeMap<Subject, [u64; 4]> {
        let mut all: BTreeMap<_, [u64; 4]> = BTreeMap::new();
        for ((subject, _), volume) in &self.volumes {
            let sum = all.entry(*subject).or_default();
            sum.iter_mut().zip(volume).for_each(|(sum, more)| *sum += more);
        }
        all.retain(|_, volume| *volume != [0; 4]);
        all
    }
}

fn header<'e>(event: &'e mut Event<'_>) -> Option<&'e mut Header> {
    Some(match event {
        Event::Fork(event) => &mut event.header,
        Event::Exec(started) => &mut started.exec.header,
        Event::Exit(event) => &mut event.header,
        Event::FlowStart { start, .. } => &mut start.header,
        Event::FlowEnd(event) => &mut event.header,
        Event::Path { path, .. } => &mut path.header,
        _ => return None,
    })
}

/// The scene on a step: its session may flood, as if it all happened within a second.
fn told(step: Step, floods: bool) -> Told {
    let all: Vec<Event<'_>> = events().collect();
    let first = all.first().map(|event| event.header().time_ns).unwrap();
    let events = all.into_iter().map(move |mut event| {
        if floods && let Some(header) = header(&mut event) {
            header.session = SESSION;
            header.time_ns = first + (header.time_ns - first) / 1_000;
        }
        event
    });
    let set = |engine: &mut Engine| {
        engine.set_step(step, first);
        if floods {
            let other = stage::events().find(|event| matches!(event, Event::Exit(_))).unwrap();
            let Event::Exit(mut other) = other else { return };
            other.header =
                Header { session: SESSION, time_ns: first, tgid: 9, start_ns: 9, ..other.header };
            other.last = 0;
            for _ in 0..FLOODING {
                engine.observe(&Event::Exit(other), &NoMaps);
            }
        }
    };
    let (frames, engine) = replay_behind(set, WIDE, ROOMY, events, &NoMaps);
    let mut told = Told::default();
    for frame in &frames {
        for record in Frame::decode(frame).unwrap().0.records() {
            match record.unwrap() {
                Record::FileFlow(flow) => {
                    let may_change = open_flag::WRONLY | open_flag::CREAT | open_flag::TRUNC;
                    let reads = op::OPEN | op::READ_RECV | op::CLOSE | op::TRUNCATE;
                    let only_reads = flow.ops & !reads == 0 && flow.open_flags & may_change == 0;
                    told.reading += u64::from(only_reads);
                    told.add(Subject::Files, Some(flow.process), &flow.volume);
                }
                Record::NetworkFlow(flow) => {
                    told.add(Subject::Network, Some(flow.process), &flow.volume);
                }
                Record::Summary(summary) => {
                    assert!(
                        summary.records > 0 && summary.time_ns <= summary.end_ns,
                        "{summary:?}"
                    );
                    assert_eq!(summary.session, floods);
                    let process = (!summary.session).then_some(summary.process);
                    told.summaries += 1;
                    told.add(summary.subject, process, &summary.volume);
                }
                _ => {}
            }
        }
    }
    for kind in Operation::ALL {
        let count = |term| engine.batch.books.total(kind, term);
        told.operations.insert(kind, count(Term::Stored) + count(Term::Aggregated));
    }
    told
}

#[test]
fn files_that_are_only_read_are_one_summary_of_their_process() {
    let (all, totals) = (told(Step::Everything, false), told(Step::Totals, false));
    assert!(all.summaries == 0 && all.reading > 10, "{all:?}");
    assert_eq!(totals.volumes, all.volumes);
    assert_eq!(totals.operations, all.operations);
    assert!(totals.summaries > 0 && totals.summaries < all.reading, "{totals:?}");
    assert_eq!(totals.reading, 0);
}

#[test]
fn a_session_that_floods_is_told_in_summaries_that_add_up() {
    let (all, flood) = (told(Step::Everything, true), told(Step::Summaries, true));
    assert_eq!(all.summaries, 0);
    assert_eq!(flood.of_all(), all.of_all());
    assert_eq!(flood.operations, all.operations);
    assert!((1..=3).contains(&flood.summaries), "{flood:?}");
}

#[test]
fn a_session_that_does_not_flood_is_told_in_full() {
    assert_eq!(told(Step::Shares, false), told(Step::Everything, false));
}
