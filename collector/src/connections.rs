//! Who has a place, and who gives way: strangers cannot keep devices out.
//!
//! Three kinds of places, each with a bound: connections whose client is not known yet (the
//! handshake, and what is read after a refusal), connections that are served, and a few that
//! are let in to be told that there is no room. Whoever shakes hands gets a place at once: where
//! none is free the oldest handshake gives way, since an honest one is over in a few round
//! trips. Of one agent the oldest connection gives way to a new one, and if all places are
//! taken the one that has been idle longest does. A connection that ends here while its body is
//! being stored is not answered; the agent sends again. It knows no TLS and no HTTP.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;

/// Connections that are let in beyond the limit, to be told so.
const SURPLUS_MAX: usize = 16;

/// A connection that is idle for less does not give way: its next request may be on the way.
const IDLE_MIN: Duration = Duration::from_secs(1);

/// The bounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Connections whose client is not known yet.
    pub(crate) handshakes_max: usize,
    /// Connections that are served.
    pub(crate) connections_max: usize,
    /// Of them, those of one agent.
    pub(crate) agent_connections_max: usize,
}

/// What a connection may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Be served.
    Served,
    /// Be told that there is no room.
    Surplus,
    /// Nothing: there are too many that are told so.
    None,
}

enum Stage {
    Handshake,
    /// `None`: a certificate without a usable id.
    Served(Option<String>),
    Surplus,
}

struct Entry {
    stage: Stage,
    activity: Arc<Activity>,
    abort: Option<AbortHandle>,
}

/// Whether a connection has a request under way.
#[derive(Debug)]
pub(crate) struct Activity(Mutex<Option<Instant>>);

impl Activity {
    /// A request has begun.
    pub(crate) fn begin(&self) {
        *lock(&self.0) = None;
    }

    /// It is answered.
    pub(crate) fn end(&self) {
        *lock(&self.0) = Some(Instant::now());
    }
}

#[derive(Default)]
struct State {
    next: u64,
    /// By age.
    entries: BTreeMap<u64, Entry>,
}

/// All connections.
pub(crate) struct Connections {
    bounds: Bounds,
    state: Mutex<State>,
}

/// The place of one connection; given back when it is dropped.
pub(crate) struct Ticket {
    connections: Arc<Connections>,
    number: u64,
    /// For the requests of the connection.
    pub(crate) activity: Arc<Activity>,
}

impl Connections {
    /// Nobody yet.
    pub(crate) fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Connections { bounds, state: Mutex::default() })
    }

    /// A place for a handshake. Returns it and whether another one gave way.
    pub(crate) fn admit(self: &Arc<Self>) -> (Ticket, bool) {
        let mut state = lock(&self.state);
        let shaking = |entry: &Entry| matches!(entry.stage, Stage::Handshake);
        let crowded = state.entries.values().filter(|entry| shaking(entry)).count()
            >= self.bounds.handshakes_max;
        if crowded {
            state.dismiss_first(shaking);
        }
        let number = state.next;
        state.next += 1;
        let activity = Arc::new(Activity(Mutex::new(Some(Instant::now()))));
        let entry = Entry { stage: Stage::Handshake, activity: Arc::clone(&activity), abort: None };
        state.entries.insert(number, entry);
        (Ticket { connections: Arc::clone(self), number, activity }, crowded)
    }

    /// Tells how the connection with this number is ended.
    pub(crate) fn attach(&self, number: u64, abort: AbortHandle) {
        // It may be over already.
        if let Some(entry) = lock(&self.state).entries.get_mut(&number) {
            entry.abort = Some(abort);
        }
    }
}

impl Ticket {
    /// The number for [`Connections::attach`].
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// The handshake is over: a place for what this agent asks.
    pub(crate) fn promote(&self, agent: Option<&str>) -> Place {
        let bounds = self.connections.bounds;
        let mut state = lock(&self.connections.state);
        let same =
            |entry: &Entry| matches!(&entry.stage, Stage::Served(of) if of.as_deref() == agent);
        if state.entries.values().filter(|entry| same(entry)).count()
            >= bounds.agent_connections_max
        {
            state.dismiss_first(same);
        }
        let served = |entry: &Entry| matches!(entry.stage, Stage::Served(_));
        let mut taken = state.entries.values().filter(|entry| served(entry)).count();
        if taken >= bounds.connections_max && state.dismiss_idle() {
            taken -= 1;
        }
        let surplus = |entry: &&Entry| matches!(entry.stage, Stage::Surplus);
        let (stage, place) = if taken < bounds.connections_max {
            (Stage::Served(agent.map(str::to_owned)), Place::Served)
        } else if state.entries.values().filter(surplus).count() < SURPLUS_MAX {
            (Stage::Surplus, Place::Surplus)
        } else {
            return Place::None;
        };
        match state.entries.get_mut(&self.number) {
            Some(entry) => entry.stage = stage,
            // It had to give way just now, and ends at its next step.
            None => return Place::None,
        }
        place
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        lock(&self.connections.state).entries.remove(&self.number);
    }
}

impl State {
    fn dismiss_first(&mut self, which: impl Fn(&Entry) -> bool) {
        let first = self.entries.iter().find(|(_, entry)| which(entry)).map(|(number, _)| *number);
        first.into_iter().for_each(|number| self.dismiss(number));
    }

    /// The served connection that has been idle longest, if one has been for long enough.
    fn dismiss_idle(&mut self) -> bool {
        let idle = self.entries.iter().filter_map(|(number, entry)| match entry.stage {
            Stage::Served(_) => lock(&entry.activity.0).map(|since| (since, *number)),
            _ => None,
        });
        match idle.min() {
            Some((since, number)) if since.elapsed() >= IDLE_MIN => {
                self.dismiss(number);
                true
            }
            _ => false,
        }
    }

    fn dismiss(&mut self, number: u64) {
        if let Some(entry) = self.entries.remove(&number)
            && let Some(abort) = entry.abort
        {
            abort.abort();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is complete when the guard is dropped.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
