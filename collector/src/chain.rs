//! Whether the frames of a store are as their agents made them: the seals of generations.
//!
//! The frames of each stream come in by sequence; what comes out says how many generations are as
//! the next one says that they were, how many cannot be checked since frames are missing, and
//! which are not as they were. In memory is one digest a stream.

use std::collections::BTreeMap;

use codec::Frame;
use ring::digest::{Context, SHA256};
use serde_json::{Value, json};

use crate::certificates::Proof;

/// What is wrong with a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The frames of a generation are not those of which its seal is.
    Break,
    /// A generation begins twice.
    Fork,
    /// A generation comes behind a later one.
    Rewind,
    /// The certificate that the signature of its seal names does not prove it.
    Signature,
    /// Its seal is not signed by a certificate of the CA that is to be believed.
    Unsigned,
    /// The run ended in order, and yet no seal covers its last records.
    Unsealed,
    /// It is behind the last frame that the run says it made.
    Surplus,
}

impl Fault {
    /// The reason that reports give.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Fault::Break => "chain_break",
            Fault::Fork => "chain_fork",
            Fault::Rewind => "chain_rewind",
            Fault::Signature => "chain_signature",
            Fault::Unsigned => "chain_unsigned",
            Fault::Unsealed => "chain_unsealed",
            Fault::Surplus => "chain_surplus",
        }
    }

    /// The same for people.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Fault::Break => {
                "is not as the next one says that it was, or that says nothing: frames were changed"
            }
            Fault::Fork => "begins twice",
            Fault::Rewind => "comes behind a later one",
            Fault::Signature => {
                "has a seal whose signature is not of the certificate that it names"
            }
            Fault::Unsigned => "has a seal that no certificate of this CA is known to have signed",
            Fault::Unsealed => "has records that no seal covers, though the run ended in order",
            Fault::Surplus => "has frames behind the last one that the run says it made",
        }
    }
}

/// How generations stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Checked {
    /// As the next one says.
    pub(crate) whole: u64,
    /// Not to be checked: frames of it, or the next one's first, are missing.
    pub(crate) incomplete: u64,
    /// Of the whole ones, those that the device has signed, ...
    pub(crate) signed: u64,
    /// ... those that it has not, ...
    pub(crate) unsigned: u64,
    /// ... and those for whose signature the certificate is not there.
    pub(crate) unchecked: u64,
    /// Frames that no seal covers.
    pub(crate) unsealed_frames: u64,
}

impl Checked {
    /// As reports give it.
    pub(crate) fn json(&self) -> Value {
        json!({
            "whole": self.whole,
            "incomplete": self.incomplete,
            "signed": self.signed,
            "unsigned": self.unsigned,
            "unchecked": self.unchecked,
            "unsealed_frames": self.unsealed_frames,
        })
    }
}

/// One stream.
#[derive(Default)]
pub(crate) struct Chain {
    present: Option<Present>,
    checked: Checked,
}

struct Present {
    generation: u32,
    /// Sequence of the next frame.
    next: u64,
    /// Whether no frame is missing so far.
    is_whole: bool,
    digest: Context,
    frames: u64,
    records: u64,
    /// Whether it has the seal of the one before.
    is_sealing: bool,
}

impl Chain {
    /// Takes in the stream's next frame that is there; `proof` says what is known of the signature
    /// of the seal that it carries. What is wrong is of the generation named.
    pub(crate) fn frame(&mut self, frame: &Frame<'_>, proof: Proof) -> Option<(u32, Fault)> {
        let header = &frame.header;
        let (sequence, generation) = (header.key.sequence, header.generation);
        let mut fault = None;
        match &mut self.present {
            Some(present) if present.generation == generation => {
                if header.start.is_some() {
                    fault = Some((generation, Fault::Fork));
                }
                present.is_whole &= present.next == sequence;
                present.next = sequence.saturating_add(1);
                present.digest.update(frame.bytes);
                present.frames += 1;
                present.records += u64::from(header.records);
                return fault;
            }
            Some(present) if present.generation > generation => {
                fault = Some((generation, Fault::Rewind));
            }
            Some(present) => {
                let seal = header.seal.filter(|seal| seal.generation == present.generation);
                let is_next = present.next == sequence;
                let is_whole = present.is_whole && is_next;
                let frames = present.frames;
                match seal.filter(|_| is_whole) {
                    // Whoever took the seal away, or all of what a generation begins with, has
                    // changed a frame: no collector takes one without.
                    None if is_whole || (is_next && header.start.is_none()) => {
                        self.checked.unsealed_frames += frames;
                        fault = Some((present.generation, Fault::Break));
                    }
                    None => {
                        self.checked.unsealed_frames += frames;
                        self.checked.incomplete += 1;
                    }
                    Some(seal) if present.digest.clone().finish().as_ref() == seal.digest => {
                        self.checked.whole += 1;
                        match proof {
                            Proof::Signed => self.checked.signed += 1,
                            Proof::Unsigned => self.checked.unsigned += 1,
                            Proof::Unchecked => self.checked.unchecked += 1,
                            Proof::Missing => fault = Some((present.generation, Fault::Unsigned)),
                            Proof::Wrong => fault = Some((present.generation, Fault::Signature)),
                        }
                    }
                    Some(_) => fault = Some((present.generation, Fault::Break)),
                }
            }
            None if sequence == 0 && header.start.is_none() => {
                fault = Some((generation, Fault::Break));
            }
            None => {}
        }
        let mut digest = Context::new(&SHA256);
        digest.update(frame.bytes);
        self.present = Some(Present {
            generation,
            next: sequence.saturating_add(1),
            is_whole: header.start.is_some(),
            digest,
            frames: 1,
            records: header.records.into(),
            is_sealing: header.seal.is_some(),
        });
        fault
    }

    /// Where a run has ended in order, the last generation is one frame that only has the seal of
    /// the one before; else the generation that has records which nothing covers.
    pub(crate) fn unsealed(&self) -> Option<u32> {
        let present = self.present.as_ref()?;
        let is_end = present.frames == 1 && present.records == 0 && present.is_sealing;
        (!is_end).then_some(present.generation)
    }

    /// The last generation; 0 of none.
    pub(crate) fn generation(&self) -> u32 {
        self.present.as_ref().map_or(0, |present| present.generation)
    }

    fn checked(&self) -> Checked {
        let open = self.present.as_ref().map_or(0, |present| present.frames);
        Checked { unsealed_frames: self.checked.unsealed_frames + open, ..self.checked }
    }
}

/// The generations of all streams of a run.
pub(crate) fn sum(chains: &BTreeMap<u8, Chain>) -> Checked {
    let checked = chains.values().map(Chain::checked);
    checked.fold(Checked::default(), |sum, checked| Checked {
        whole: sum.whole + checked.whole,
        incomplete: sum.incomplete + checked.incomplete,
        signed: sum.signed + checked.signed,
        unsigned: sum.unsigned + checked.unsigned,
        unchecked: sum.unchecked + checked.unchecked,
        unsealed_frames: sum.unsealed_frames + checked.unsealed_frames,
    })
}

#[cfg(test)]
mod tests {
    use codec::{FrameWriter, GenerationStart, Header, Ledger, Seal, StreamKey, Term};

    use super::*;

    /// A frame that begins its generation, or not; `mark` makes its bytes differ.
    fn frame(
        sequence: u64,
        generation: u32,
        starts: bool,
        seal: Option<Seal>,
        mark: u64,
    ) -> Vec<u8> {
        let start = GenerationStart {
            agent_id: "gw",
            boot_id: [1; 16],
            run_id: [2; 16],
            agent_version: "0",
            kernel: "k",
            machine: "m",
        };
        let counter = codec::Counter { operation: None, term: Term::LostTable, total: mark };
        let header = Header {
            key: StreamKey { run_tag: [2; 8], class: 0, sequence },
            generation,
            start: starts.then_some(start),
            ledger: Ledger::from_iter([counter]),
            seal,
            ..Header::default()
        };
        let mut buffer = vec![0; 16 * 1024];
        FrameWriter::new(&mut buffer).unwrap().finish(&header).unwrap().to_vec()
    }

    /// Three generations of two frames, sealed.
    fn stream() -> Vec<Vec<u8>> {
        let mut frames: Vec<Vec<u8>> = Vec::new();
        for generation in 0..3_u32 {
            let seal = generation.checked_sub(1).map(|before| {
                let bytes = frames[frames.len() - 2..].concat();
                let digest = ring::digest::digest(&SHA256, &bytes);
                Seal { generation: before, digest: digest.as_ref().try_into().unwrap() }
            });
            let sequence = u64::from(generation) * 2;
            frames.push(frame(sequence, generation, true, seal, 0));
            frames.push(frame(sequence + 1, generation, false, None, 0));
        }
        frames
    }

    fn check(frames: &[Vec<u8>]) -> (u64, u64, Vec<(u32, Fault)>) {
        let mut chain = Chain::default();
        let mut faults = Vec::new();
        for bytes in frames {
            faults.extend(chain.frame(&Frame::decode(bytes).unwrap().0, Proof::Signed));
        }
        (chain.checked.whole, chain.checked.incomplete, faults)
    }

    #[test]
    fn what_is_as_it_was_made_holds() {
        assert_eq!(check(&stream()), (2, 0, vec![]));
        assert_eq!(check(&[]), (0, 0, vec![]));
    }

    #[test]
    fn a_changed_frame_breaks_the_chain_and_a_missing_one_leaves_a_generation_unchecked() {
        let mut frames = stream();
        frames[1] = frame(1, 0, false, None, 7);
        assert_eq!(check(&frames), (1, 0, vec![(0, Fault::Break)]));
        // A changed seal says otherwise of the generation before, and is itself in the next one.
        let mut frames = stream();
        frames[2] = frame(2, 1, true, Some(Seal { generation: 0, digest: [9; 32] }), 0);
        assert_eq!(check(&frames), (0, 0, vec![(0, Fault::Break), (1, Fault::Break)]));
        for (gone, whole, incomplete) in [(0, 1, 1), (1, 1, 1), (2, 0, 2), (3, 1, 1), (5, 2, 0)] {
            let mut frames = stream();
            frames.remove(gone);
            assert_eq!(check(&frames), (whole, incomplete, vec![]), "frame {gone}");
        }
    }

    #[test]
    fn who_takes_beginnings_away_is_found() {
        // All that a generation begins with.
        let mut frames = stream();
        frames[2] = frame(2, 1, false, None, 0);
        assert_eq!(check(&frames), (0, 1, vec![(0, Fault::Break)]));
        frames = stream();
        frames[0] = frame(0, 0, false, None, 0);
        assert_eq!(check(&frames), (1, 1, vec![(0, Fault::Break)]));
        // All generations made one: nothing covers it, which is counted, and a fault of a run that
        // ended in order.
        let flat: Vec<_> = (0..6).map(|n| frame(n, 0, n == 0, None, 0)).collect();
        let chain = |frames: &[Vec<u8>]| {
            let mut chain = Chain::default();
            for bytes in frames {
                let (frame, _) = Frame::decode(bytes).unwrap();
                assert_eq!(chain.frame(&frame, Proof::Signed), None);
            }
            (chain.checked().unsealed_frames, chain.unsealed())
        };
        assert_eq!(chain(&flat), (6, Some(0)));
        let mut frames = stream();
        assert_eq!(chain(&frames), (2, Some(2)));
        frames.pop();
        assert_eq!(chain(&frames), (1, None));
        assert_eq!(chain(&[]), (0, None));
    }

    #[test]
    fn a_seal_that_was_taken_away_breaks_the_chain() {
        let mut frames = stream();
        frames[4] = frame(4, 2, true, None, 0);
        assert_eq!(check(&frames), (1, 0, vec![(1, Fault::Break)]));
        // One of another generation is none.
        frames[4] = frame(4, 2, true, Some(Seal { generation: 0, digest: [0; 32] }), 0);
        assert_eq!(check(&frames), (1, 0, vec![(1, Fault::Break)]));
    }

    #[test]
    fn what_is_known_of_signatures_is_counted_or_named() {
        let run = |proof| {
            let mut chain = Chain::default();
            let frames = stream();
            let faults = frames
                .iter()
                .filter_map(|bytes| chain.frame(&Frame::decode(bytes).unwrap().0, proof));
            let faults: Vec<_> = faults.collect();
            let Checked { whole, signed, unsigned, unchecked, .. } = chain.checked;
            assert_eq!(whole, 2);
            ([signed, unsigned, unchecked], faults)
        };
        assert_eq!(run(Proof::Signed), ([2, 0, 0], vec![]));
        assert_eq!(run(Proof::Unsigned), ([0, 2, 0], vec![]));
        assert_eq!(run(Proof::Unchecked), ([0, 0, 2], vec![]));
        let named = |fault| vec![(0, fault), (1, fault)];
        assert_eq!(run(Proof::Missing), ([0, 0, 0], named(Fault::Unsigned)));
        assert_eq!(run(Proof::Wrong), ([0, 0, 0], named(Fault::Signature)));
    }

    #[test]
    fn forks_and_rewinds_are_named() {
        let mut frames = stream();
        frames.push(frame(6, 2, true, None, 0));
        assert_eq!(check(&frames), (2, 0, vec![(2, Fault::Fork)]));
        frames.pop();
        frames.push(frame(6, 1, false, None, 0));
        assert_eq!(check(&frames), (2, 0, vec![(1, Fault::Rewind)]));
    }
}
