//! The table of processes against a plain model: identities, words and containers are those that
//! were last given, whatever came and went between, and a pool that all have left is whole.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test may stop at what it does not expect"
)]

use std::collections::HashMap;

use agent::entity::{Process, Processes, Words};
use codec::{Oid, process};
use proptest::prelude::*;

const PROCESSES_MAX: usize = 6;
const BLOCK_BYTES: usize = 64;
const BLOCK_TEXT_BYTES: usize = 56;
const BLOCKS: usize = 96;

#[derive(Clone, Debug)]
enum Step {
    /// A process begins, known by nothing but its identity.
    Begin {
        pid: u32,
    },
    /// A process makes another.
    Fork {
        parent: u32,
        child: u32,
    },
    /// It becomes another program.
    Exec {
        pid: u32,
        words: [usize; 7],
    },
    Exit {
        pid: u32,
    },
    /// A flow begins or ends on a path.
    Store {
        bytes: usize,
    },
    Release {
        which: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let pid = || 1..9_u32;
    // Around the length of one block and of two; long enough in sum to fill the pool.
    let length =
        || prop_oneof![3 => Just(0), 3 => 1..60_usize, 2 => 100..120_usize, 1 => 0..900_usize];
    prop_oneof![
        2 => pid().prop_map(|pid| Step::Begin { pid }),
        4 => (pid(), pid()).prop_map(|(parent, child)| Step::Fork { parent, child }),
        5 => (pid(), prop::array::uniform7(length()))
            .prop_map(|(pid, words)| Step::Exec { pid, words }),
        3 => pid().prop_map(|pid| Step::Exit { pid }),
        3 => length().prop_map(|bytes| Step::Store { bytes }),
        3 => (0..8_usize).prop_map(|which| Step::Release { which }),
    ]
}

#[derive(Clone, Debug)]
struct Known {
    words: Words<Vec<u8>>,
    ended_ns: Option<u64>,
}

/// What the table should hold, and what it is asked with.
struct Model {
    real: Processes,
    known: HashMap<Oid, Known>,
    /// The newest identity of each process number.
    newest: HashMap<u32, Oid>,
    texts: Vec<(agent::texts::Text, Vec<u8>)>,
    clock: u64,
}

impl Model {
    fn new() -> Model {
        Model {
            real: Processes::new(PROCESSES_MAX, BLOCKS * BLOCK_BYTES),
            known: HashMap::new(),
            newest: HashMap::new(),
            texts: Vec::new(),
            clock: 0,
        }
    }

    /// Bytes that are like no others.
    fn fresh(&mut self, length: usize) -> Vec<u8> {
        self.clock += 1;
        (0..length).map(|at| (self.clock.wrapping_mul(31) as usize + at) as u8).collect()
    }

    fn living(&self, pid: u32) -> Option<Oid> {
        let oid = self.newest.get(&pid).copied()?;
        self.known.get(&oid).is_some_and(|known| known.ended_ns.is_none()).then_some(oid)
    }

    /// Only those that have ended may have gone, the oldest of them first.
    fn forget_gone(&mut self) {
        let gone: Vec<Oid> =
            self.known.keys().filter(|oid| self.real.get(**oid).is_none()).copied().collect();
        for oid in &gone {
            let known = self.known.remove(oid).unwrap();
            let ended_ns = known.ended_ns.expect("a living process stays");
            let older = self.known.values().filter_map(|known| known.ended_ns);
            assert!(older.min().is_none_or(|older| older > ended_ns || gone.len() > 1));
        }
    }

    fn begin(&mut self, process: Process, words: Words<Vec<u8>>) {
        let before = self.living(process.oid.pid);
        let is_in = self.real.insert(process);
        if is_in {
            // Who had the number before must have ended.
            if let Some(known) = before.and_then(|oid| self.known.get_mut(&oid)) {
                known.ended_ns = Some(process.oid.start_ns);
            }
            self.known.insert(process.oid, Known { words, ended_ns: None });
            self.newest.insert(process.oid.pid, process.oid);
        }
        self.forget_gone();
        let living = self.known.values().filter(|known| known.ended_ns.is_none()).count();
        assert!(is_in || living == PROCESSES_MAX, "refused with {living} living");
    }

    fn exec(&mut self, oid: Oid, lengths: [usize; 7]) {
        let [exe, args, cwd, container, argv0, script, env] =
            lengths.map(|length| self.fresh(length));
        let given = Words { exe, args, cwd, container, argv0, script, env };
        self.real.get_mut(oid).unwrap().flags = 0;
        self.real.set_words(oid, given.slices());
        self.forget_gone();
        let process = *self.real.get(oid).unwrap();
        let mut buffer = Vec::new();
        let told = self.real.words(&process, &mut buffer);
        let known = self.known.get_mut(&oid).unwrap();
        let old = known.words.container.clone();
        // Each is as given, or left out with a mark of it.
        let cut = |flag| process.flags & flag != 0;
        let same = |told: &[u8], given: &[u8], flag| {
            assert!(told == given || (told.is_empty() && cut(flag)));
            told.to_vec()
        };
        let container = if given.container.is_empty() { old } else { given.container };
        let path = process::PATH_TRUNCATED;
        known.words = Words {
            exe: same(told.exe, &given.exe, path),
            cwd: same(told.cwd, &given.cwd, path),
            script: same(told.script, &given.script, path),
            container: same(told.container, &container, path),
            argv0: same(told.argv0, &given.argv0, process::ARGS_TRUNCATED),
            args: same(told.args, &given.args, process::ARGS_TRUNCATED),
            env: same(told.env, &given.env, process::ENV_TRUNCATED),
        };
    }

    fn take(&mut self, step: Step) {
        self.clock += 1;
        match step {
            Step::Begin { pid } => {
                let oid = Oid { start_ns: self.clock, pid };
                self.begin(Process::unknown(oid), Words::default());
            }
            Step::Fork { parent, child } => {
                let Some(parent) = self.living(parent).filter(|oid| oid.pid != child) else {
                    return;
                };
                let oid = Oid { start_ns: self.clock, pid: child };
                let mut process = self.real.child_of(parent).unwrap();
                (process.oid, process.parent) = (oid, Some(parent));
                let words = self.known[&parent].words.clone();
                self.begin(process, words);
            }
            Step::Exec { pid, words } => {
                if let Some(oid) = self.living(pid) {
                    self.exec(oid, words);
                }
            }
            Step::Exit { pid } => {
                if let Some(oid) = self.living(pid) {
                    self.real.end(oid, self.clock);
                    self.known.get_mut(&oid).unwrap().ended_ns = Some(self.clock);
                }
            }
            Step::Store { bytes } => {
                let text = self.fresh(bytes);
                if let Some(stored) = self.real.store(&text) {
                    self.texts.push((stored, text));
                }
                self.forget_gone();
            }
            Step::Release { which } => {
                if !self.texts.is_empty() {
                    let (text, _) = self.texts.swap_remove(which % self.texts.len());
                    self.real.release(text);
                }
            }
        }
        self.check();
    }

    fn check(&mut self) {
        let mut buffer = Vec::new();
        for (oid, known) in &mut self.known {
            let process = *self.real.get(*oid).unwrap();
            assert_eq!((process.oid, process.ended_ns), (*oid, known.ended_ns));
            let told = self.real.words(&process, &mut buffer);
            // One that is idle may have had to give up its arguments and environment: it says so.
            let gives_up = |told: &[u8], known: &mut Vec<u8>, flag| {
                if told.is_empty() && process.flags & flag != 0 {
                    known.clear();
                }
            };
            gives_up(told.args, &mut known.words.args, process::ARGS_TRUNCATED);
            gives_up(told.env, &mut known.words.env, process::ENV_TRUNCATED);
            assert!(told == known.words.slices(), "{oid:?} is told otherwise");
            assert_eq!(self.real.container(*oid, &mut buffer), known.words.container);
        }
        for (pid, oid) in &self.newest {
            assert_eq!(self.real.resolve(*pid, oid.start_ns), *oid);
        }
        for (text, bytes) in &self.texts {
            buffer.clear();
            self.real.append(*text, &mut buffer);
            assert_eq!(&buffer, bytes);
        }
    }

    /// When all have ended and all texts are let go of, one text has room in all of the pool.
    fn end(mut self) {
        for (oid, _) in self.known {
            self.real.end(oid, self.clock);
        }
        for (text, _) in self.texts {
            self.real.release(text);
        }
        assert!(self.real.store(&[7; BLOCKS * BLOCK_TEXT_BYTES]).is_some(), "blocks are missing");
    }
}

proptest! {
    #[test]
    fn processes_are_as_they_were_last_told(steps in prop::collection::vec(step(), 1..120)) {
        let mut model = Model::new();
        steps.into_iter().for_each(|step| model.take(step));
        model.end();
    }
}
