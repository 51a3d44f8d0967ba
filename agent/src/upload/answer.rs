//! What an answer of the collector means. Pure: decide here, act in `upload`.

use std::time::Duration;

use codec::StreamKey;
use serde::Deserialize;

/// Longest time that a collector may send us away for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);
/// Longest text of a collector that is logged, bytes.
const DETAIL_BYTES_MAX: usize = 300;

/// What to do about a body that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The collector holds frames durably: these.
    Delivered(Held),
    /// It does not have them and may take them later, as they are.
    RetryAfter {
        /// How long it asked to be left alone.
        wait: Option<Duration>,
        /// Why, for the operator.
        reason: String,
    },
    /// It does not have them: too much at a time. A smaller body may arrive.
    SendLess {
        /// What was too much.
        less: Less,
        /// Why, for the operator.
        reason: String,
    },
    /// It will never take this body; a smaller one perhaps.
    Refused {
        /// Why, for the counters.
        refusal: Refusal,
        /// Why, for the operator.
        reason: String,
    },
}

/// Why less is to be sent at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Less {
    /// Something on the way takes no body of this size.
    Size,
    /// The body took too long.
    Time,
    /// The connection ended while a large body was on its way.
    Cut,
}

/// Why a collector refuses frames for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The bytes are not frames.
    Malformed,
    /// A frame speaks for another agent.
    Foreign,
    /// The start of the frame's generation is not held: dropped here, or lost there.
    GenerationLost,
    /// The place of a frame is taken by other bytes.
    Conflict,
    /// The body is too large.
    TooLarge,
}

impl Refusal {
    /// All of them, in the order of their counters.
    pub const ALL: [Refusal; 5] = [
        Refusal::Malformed,
        Refusal::Foreign,
        Refusal::GenerationLost,
        Refusal::Conflict,
        Refusal::TooLarge,
    ];

    /// The name that the collector and the status file use.
    pub fn name(self) -> &'static str {
        match self {
            Refusal::Malformed => "malformed",
            Refusal::Foreign => "foreign-frame",
            Refusal::GenerationLost => "generation-lost",
            Refusal::Conflict => "conflict",
            Refusal::TooLarge => "too-large",
        }
    }
}

/// What the collector holds of the streams in a body.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Held {
    streams: Vec<Stream>,
    /// The collector's clock, Unix time, ns.
    #[serde(default)]
    pub time_ns: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Stream {
    /// The run tag, 16 hexadecimal digits.
    run: String,
    class: u8,
    /// All sequences below are held, this one is not.
    contiguous: u64,
    /// Inclusive ranges that are missing above `contiguous` and below the highest held.
    holes: Vec<[u64; 2]>,
}

impl Held {
    /// Whether the frame with this key is held. Asked only for frames of the body that was
    /// answered, none of which is above the highest held.
    pub fn holds(&self, key: &StreamKey) -> bool {
        let run = u64::from_be_bytes(key.run_tag);
        self.streams.iter().any(|stream| {
            stream.class == key.class
                && stream.run.len() == 16
                && u64::from_str_radix(&stream.run, 16) == Ok(run)
                && stream.holds(key.sequence)
        })
    }
}

impl Stream {
    fn holds(&self, sequence: u64) -> bool {
        if sequence < self.contiguous {
            return true;
        }
        // The first hole begins at `contiguous`; without holes nothing is held above.
        !self.holes.is_empty()
            && sequence > self.contiguous
            && !self.holes.iter().any(|[first, last]| (*first..=*last).contains(&sequence))
    }
}

#[derive(Deserialize)]
struct Error {
    error: String,
    #[serde(default)]
    detail: String,
}

/// Decides about an answer.
///
/// Only a collector that speaks of the frames themselves makes frames be dropped: what a
/// proxy, another service or a collector that refuses the device answers is a matter for an
/// operator, and the frames wait.
pub fn decide(status: u16, retry_after: Option<&str>, body: &[u8]) -> Outcome {
    if status == 200 {
        return match serde_json::from_slice(body) {
            Ok(held) => Outcome::Delivered(held),
            Err(error) => retry(None, format!("collector's answer is not understood: {error}")),
        };
    }
    let error: Option<Error> = serde_json::from_slice(body).ok();
    let reason = match &error {
        Some(Error { error, detail }) => format!("{status} {error}: {}", short(detail)),
        None => format!("{status}, without a collector's reason: check collector.url"),
    };
    let kind = error.as_ref().map_or("", |error| error.error.as_str());
    let refusal = match status {
        400 | 403 | 409 | 413 => Refusal::ALL.into_iter().find(|refusal| refusal.name() == kind),
        _ => None,
    };
    let less = match status {
        408 => Some(Less::Time),
        413 => Some(Less::Size),
        _ => None,
    };
    match (refusal, less) {
        (Some(refusal), _) => {
            Outcome::Refused { refusal, reason: format!("collector answers {reason}") }
        }
        (None, Some(less)) => {
            Outcome::SendLess { less, reason: format!("collector answers {reason}") }
        }
        (None, None) => {
            let wait = retry_after.and_then(|text| text.trim().parse().ok());
            let wait = wait.map(|seconds| Duration::from_secs(seconds).min(RETRY_AFTER_MAX));
            retry(wait, format!("collector answers {reason}"))
        }
    }
}

fn retry(wait: Option<Duration>, reason: String) -> Outcome {
    Outcome::RetryAfter { wait, reason }
}

fn short(text: &str) -> &str {
    let end = (0..=DETAIL_BYTES_MAX.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text.get(..end.unwrap_or(0)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(sequence: u64) -> StreamKey {
        StreamKey { run_tag: [0xab, 0, 0, 0, 0, 0, 0, 1], class: 0, sequence }
    }

    fn held(text: &str) -> Held {
        let answer = format!(r#"{{"streams":[{text}],"time_ns":5,"later":true}}"#);
        match decide(200, None, answer.as_bytes()) {
            Outcome::Delivered(held) => held,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_held() {
        let of = |text: &str| {
            let held = held(text);
            assert_eq!(held.time_ns, Some(5));
            (0..8).filter(|sequence| held.holds(&key(*sequence))).collect::<Vec<_>>()
        };
        let run = r#""run":"ab00000000000001","class":0"#;
        assert_eq!(of(&format!(r#"{{{run},"contiguous":3,"holes":[]}}"#)), [0, 1, 2]);
        assert_eq!(
            of(&format!(r#"{{{run},"contiguous":2,"holes":[[2,3],[5,5]]}}"#)),
            [0, 1, 4, 6, 7]
        );
        assert_eq!(of(&format!(r#"{{{run},"contiguous":0,"holes":[]}}"#)), [0_u64; 0]);
        assert_eq!(
            of(r#"{"run":"ab00000000000002","class":0,"contiguous":9,"holes":[]}"#),
            [0_u64; 0]
        );
        assert_eq!(
            of(r#"{"run":"ab00000000000001","class":1,"contiguous":9,"holes":[]}"#),
            [0_u64; 0]
        );
    }

    #[test]
    fn only_words_about_frames_make_frames_be_dropped() {
        let kind = |status, body: &str| match decide(status, None, body.as_bytes()) {
            Outcome::Refused { refusal, .. } => Some(refusal),
            Outcome::RetryAfter { wait: None, .. } | Outcome::SendLess { .. } => None,
            other => panic!("{other:?}"),
        };
        assert_eq!(kind(400, r#"{"error":"malformed","detail":"x"}"#), Some(Refusal::Malformed));
        assert_eq!(kind(403, r#"{"error":"foreign-frame"}"#), Some(Refusal::Foreign));
        assert_eq!(kind(409, r#"{"error":"generation-lost"}"#), Some(Refusal::GenerationLost));
        assert_eq!(kind(413, r#"{"error":"too-large"}"#), Some(Refusal::TooLarge));
        for (status, body) in [
            (400, "<html>"),
            (401, r#"{"error":"identity","detail":"x"}"#),
            (403, r#"{"error":"denied","detail":"x"}"#),
            (403, "<html>"),
            (404, r#"{"error":"path","detail":"x"}"#),
            (408, r#"{"error":"timeout","detail":"x"}"#),
            (413, "<html>"),
            (301, ""),
            (500, ""),
            (507, r#"{"error":"quota","detail":"x"}"#),
            (200, "{}"),
            (200, "<html>"),
        ] {
            assert_eq!(kind(status, body), None, "{status} {body}");
        }
    }

    #[test]
    fn too_much_at_a_time_is_told_from_what_is_too_much_for_good() {
        let less = |status, body: &str| match decide(status, None, body.as_bytes()) {
            Outcome::SendLess { less, .. } => Some(less),
            _ => None,
        };
        assert_eq!(less(408, r#"{"error":"timeout"}"#), Some(Less::Time));
        assert_eq!(less(408, ""), Some(Less::Time));
        assert_eq!(less(413, "<html>"), Some(Less::Size));
        assert_eq!(less(413, r#"{"error":"too-large"}"#), None);
        assert_eq!(less(503, ""), None);
    }

    #[test]
    fn retry_after_is_honoured_within_bounds_and_reasons_are_told() {
        let body = br#"{"error":"unavailable","detail":"too many uploads at a time: try again"}"#;
        let reason = "collector answers 503 unavailable: too many uploads at a time: try again";
        let wait = Some(Duration::from_secs(5));
        assert_eq!(decide(503, Some("5"), body), retry(wait, reason.into()));
        assert_eq!(decide(503, Some("999999"), body), retry(Some(RETRY_AFTER_MAX), reason.into()));
        assert_eq!(decide(503, Some("Fri, 31 Dec 1999"), body), retry(None, reason.into()));
        assert_eq!(short(&"ä".repeat(200)).len(), DETAIL_BYTES_MAX);
    }
}
