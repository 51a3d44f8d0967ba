//! An engine on a stage: the recorded scene goes in, or what a test makes of it; frames come out.

use std::cell::RefCell;
use std::rc::Rc;

use agent::batch::{Batch, Identity, Limits, Sink};
use agent::engine::{Bounds, Counters, Engine, Last, Taken, Timeouts, Users};
use agent::privacy::Privacy;
use bpf::{Event, FlowKey};
use codec::{Capabilities, Clock};

const SCENE: &[u8] = include_bytes!("../replay/scene.events");

pub(crate) const ROOMY: Bounds =
    Bounds { flows_max: 256, processes_max: 256, files_max: 1024, text_bytes: 1 << 20 };
pub(crate) const WIDE: Limits =
    Limits { frame_bytes_max: 128 * 1024, generation_records_max: 100_000 };

/// The recorded ends of the flows carry all counters, so that no map is asked.
pub(crate) struct NoMaps;

impl Counters for NoMaps {
    fn take(&self, _: &FlowKey, _: u64) -> Taken {
        Taken::Flow(Last::default())
    }
}

/// The events of the scene.
pub(crate) fn events() -> impl Iterator<Item = Event<'static>> {
    let mut rest = SCENE;
    std::iter::from_fn(move || {
        let (length, after) = rest.split_first_chunk()?;
        let (event, after) = after.split_at(u32::from_le_bytes(*length) as usize);
        rest = after;
        Some(Event::decode(event).expect("a recorded event"))
    })
}

/// A batch of nobody's.
pub(crate) fn batch(limits: Limits, sink: Box<dyn Sink>) -> Batch {
    let identity = Identity {
        agent_id: "replay".into(),
        boot_id: [1; 16],
        run_id: [2; 16],
        kernel: "6.18".into(),
        machine: "x86_64".into(),
    };
    let capabilities = Capabilities { attached: 31, missing: 0, jit: true };
    let clock = Clock { offset_ns: 0, uncertainty_ns: 0, synchronized: false };
    Batch::new(identity, limits, capabilities, clock, None, None, sink)
}

/// The frames that events become, and the engine after them.
pub(crate) fn replay_events(
    limits: Limits,
    bounds: Bounds,
    events: impl Iterator<Item = Event<'static>>,
) -> (Vec<Vec<u8>>, Engine) {
    replay_behind(|_| (), limits, bounds, events, &NoMaps)
}

/// The same in an engine that knows processes from a first look at the system.
pub(crate) fn replay_behind(
    first_look: impl FnOnce(&mut Engine),
    limits: Limits,
    bounds: Bounds,
    events: impl Iterator<Item = Event<'static>>,
    counters: &dyn Counters,
) -> (Vec<Vec<u8>>, Engine) {
    let frames = Rc::new(RefCell::new(Vec::new()));
    let sink = Box::new(Rc::clone(&frames));
    let batch = batch(limits, sink);
    let timeouts = Timeouts { idle_ns: 60_000_000_000, active_ns: 30_000_000_000 };
    let mut engine = Engine::new(bounds, timeouts, Users::default(), Privacy::default(), batch);
    first_look(&mut engine);
    let mut last_ns = 0;
    for event in events {
        if let Event::Exit(exit) = &event {
            last_ns = exit.header.time_ns;
        }
        engine.observe(&event, counters);
    }
    engine.close(last_ns);
    (frames.take(), engine)
}
