//! Takes an upload's body apart and checks all that can be checked without the store.
//!
//! A body is taken whole or not at all, so every frame is decoded, down to its last record,
//! before anything else happens.

use codec::{Frame, StreamKey};

/// Why a body, or a frame in it, is not taken. Each is one answer to the agent.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The bytes are wrong: sending them again does not help.
    Malformed(String),
    /// A frame speaks for another agent.
    Foreign(String),
    /// The store lacks what the frame builds upon: the agent begins a new generation.
    GenerationLost(String),
    /// The place of the frame is taken by other bytes.
    Conflict(String),
    /// The store cannot take it now: the agent tries again later.
    Unavailable(std::io::Error),
}

/// The frames of a body, in order.
///
/// # Errors
/// [`Refusal::Malformed`] names the frame, its place and what is wrong;
/// [`Refusal::Foreign`] names the two agents.
pub(crate) fn frames<'a>(agent: &str, body: &'a [u8]) -> Result<Vec<Frame<'a>>, Refusal> {
    let mut frames = Vec::new();
    let mut rest = body;
    while !rest.is_empty() {
        let at = body.len() - rest.len();
        let number = frames.len() + 1;
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
        frames.push(frame);
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
