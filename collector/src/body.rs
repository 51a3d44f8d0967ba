//! Takes an upload's body apart and checks all that can be checked without the store.
//!
//! A body is taken whole or not at all, so every frame is decoded, down to its last record,
//! before anything else happens. What is kept of a frame beside its bytes is small, and a body
//! holds at most [`FRAMES_MAX`]: a body of the smallest frames must not cost many times its size.

use codec::{Frame, StreamKey};

/// Most frames of one body: twice what an agent sends at a time.
pub(crate) const FRAMES_MAX: usize = 1024;

/// A frame that has been checked: what the store needs to know of it.
#[derive(Debug)]
pub(crate) struct Checked<'a> {
    pub(crate) key: StreamKey,
    pub(crate) generation: u32,
    /// The boot, where the frame begins its generation.
    pub(crate) starts_in: Option<[u8; 16]>,
    /// The whole frame.
    pub(crate) bytes: &'a [u8],
}

impl<'a> From<&Frame<'a>> for Checked<'a> {
    fn from(frame: &Frame<'a>) -> Self {
        let header = &frame.header;
        Checked {
            key: header.key,
            generation: header.generation,
            starts_in: header.start.as_ref().map(|start| start.boot_id),
            bytes: frame.bytes,
        }
    }
}

/// Why a body, or a frame in it, is not taken. Each is one answer to the agent.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The bytes are wrong: sending them again does not help.
    Malformed(String),
    /// A frame speaks for another agent.
    Foreign(String),
    /// The body holds more frames than one may.
    TooLarge(String),
    /// The store lacks what the frame builds upon: the agent begins a new generation.
    GenerationLost(String),
    /// The place of the frame is taken by other bytes.
    Conflict(String),
    /// The agent has all of the store that one may have: it tries again later.
    Full(String),
    /// The store cannot take it now: the agent tries again later.
    Unavailable(std::io::Error),
}

/// The frames of a body, in order.
///
/// # Errors
/// [`Refusal::Malformed`] names the frame, its place and what is wrong;
/// [`Refusal::Foreign`] names the two agents; [`Refusal::TooLarge`] the bound.
pub(crate) fn frames<'a>(agent: &str, body: &'a [u8]) -> Result<Vec<Checked<'a>>, Refusal> {
    let mut frames = Vec::new();
    let mut rest = body;
    while !rest.is_empty() {
        let at = body.len() - rest.len();
        let number = frames.len() + 1;
        if number > FRAMES_MAX {
            let text = format!("body of more than {FRAMES_MAX} frames: send fewer at a time");
            return Err(Refusal::TooLarge(text));
        }
        let malformed =
            |what: &dyn std::fmt::Display| malformed(number, at, &what.to_string(), "send it anew");
        let (frame, after) = Frame::decode(rest).map_err(|error| malformed(&error))?;
        for record in frame.records() {
            record.map_err(|error| malformed(&error))?;
        }
        if frame.header.key.sequence == u64::MAX {
            return Err(malformed(&"sequence is the largest number there is"));
        }
        if let Some(start) = &frame.header.start {
            if start.agent_id != agent {
                return Err(Refusal::Foreign(format!(
                    "frame {number} at byte {at} speaks for agent {:?}, the certificate for \
                     {agent:?}: set the agent's id to its certificate's",
                    start.agent_id
                )));
            }
            if frame.header.clock.is_none() {
                return Err(malformed(&"generation start without a clock mapping"));
            }
        }
        frames.push(Checked::from(&frame));
        rest = after;
    }
    if frames.is_empty() {
        return Err(Refusal::Malformed("body holds no frame: send one or more".to_owned()));
    }
    Ok(frames)
}

fn malformed(number: usize, at: usize, what: &str, remedy: &str) -> Refusal {
    Refusal::Malformed(format!("frame {number} at byte {at}: {what}: {remedy}"))
}

/// How messages name a frame.
pub(crate) fn name(key: &StreamKey) -> String {
    let run = crate::layout::hex(&key.run_tag);
    format!("frame {} of run {run}, class {}", key.sequence, key.class)
}
