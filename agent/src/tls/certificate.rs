//! What the agent reads from a certificate itself: its validity and its URIs.
//!
//! A walk over the few DER elements on the way there (RFC 5280, 4.1), no more; whether the
//! certificate is signed, and by whom, is for rustls. Hostile bytes end the walk.

use std::ops::RangeInclusive;

use crate::config::is_agent_id;

/// What stands before the id in the certificate's URI.
const URI_PREFIX: &str = "sysflow:agent:";

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `[0]` of a certificate: its version.
const VERSION: u8 = 0xa0;
/// `[3]` of a certificate: its extensions.
const EXTENSIONS: u8 = 0xa3;
/// `[6]` of a general name: a URI.
const NAME_URI: u8 = 0x86;
/// 2.5.29.17, subject alternative name.
const SUBJECT_ALTERNATIVE_NAME: [u8; 3] = [0x55, 0x1d, 0x11];

/// The parts of a certificate that the agent reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Valid from, Unix time, s.
    pub not_before: u64,
    /// Valid until, Unix time, s.
    pub not_after: u64,
    /// URIs among the subject's alternative names.
    pub uris: Vec<String>,
}

/// Why a certificate names no agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdentityError {
    /// No URI `sysflow:agent:...`.
    Missing,
    /// More than one.
    Several,
    /// This id is none.
    Form(String),
}

impl std::fmt::Display for IdentityError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            IdentityError::Missing => {
                write!(f, "names no agent: its SAN needs the URI {URI_PREFIX}ID")
            }
            IdentityError::Several => write!(f, "names several agents: its SAN needs one URI"),
            IdentityError::Form(id) => {
                write!(f, "names agent {id:?}: an id is [a-z0-9][a-z0-9._-]{{0,62}}")
            }
        }
    }
}

impl std::error::Error for IdentityError {}

impl Certificate {
    /// Reads a certificate, DER; none if it has another form.
    pub fn parse(der: &[u8]) -> Option<Certificate> {
        let mut outer = Walk(der).enter(SEQUENCE)?;
        let mut fields = outer.enter(SEQUENCE)?;
        fields.enter(VERSION)?;
        fields.content(INTEGER)?;
        fields.content(SEQUENCE)?; // signature algorithm
        fields.content(SEQUENCE)?; // issuer
        let mut validity = fields.enter(SEQUENCE)?;
        let not_before = time(&mut validity)?;
        let not_after = time(&mut validity)?;
        let mut uris = Vec::new();
        while let Some((tag, content)) = fields.next() {
            if tag == EXTENSIONS {
                let mut extensions = Walk(content).enter(SEQUENCE)?;
                while !extensions.0.is_empty() {
                    extension(extensions.enter(SEQUENCE)?, &mut uris)?;
                }
            }
        }
        Some(Certificate { not_before, not_after, uris })
    }

    /// The id of the agent that the certificate is for.
    ///
    /// # Errors
    /// If it names none, several, or one that is no id.
    pub fn agent_id(&self) -> Result<&str, IdentityError> {
        let mut ids = self.uris.iter().filter_map(|uri| uri.strip_prefix(URI_PREFIX));
        match (ids.next(), ids.next()) {
            (None, _) => Err(IdentityError::Missing),
            (Some(_), Some(_)) => Err(IdentityError::Several),
            (Some(id), None) if is_agent_id(id) => Ok(id),
            (Some(id), None) => Err(IdentityError::Form(id.to_string())),
        }
    }

    /// When it is valid, Unix time, s.
    pub fn validity(&self) -> RangeInclusive<u64> {
        self.not_before..=self.not_after
    }

    /// Whole days of validity left at `now` (Unix time, s); negative once it is over.
    pub fn days_left(&self, now: u64) -> i64 {
        (self.not_after as i64 - now as i64).div_euclid(86_400)
    }
}

fn extension(mut fields: Walk<'_>, uris: &mut Vec<String>) -> Option<()> {
    if fields.content(OID)? != SUBJECT_ALTERNATIVE_NAME {
        return Some(());
    }
    // Between the two may stand whether the extension is critical.
    let value = std::iter::from_fn(|| fields.next()).find(|(tag, _)| *tag == OCTET_STRING)?.1;
    let mut names = Walk(value).enter(SEQUENCE)?;
    while let Some((tag, content)) = names.next() {
        if tag == NAME_URI {
            uris.push(String::from_utf8_lossy(content).into_owned());
        }
    }
    Some(())
}

/// The rest of some DER bytes.
struct Walk<'a>(&'a [u8]);

impl<'a> Walk<'a> {
    /// The next element: its tag and its content.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, mut rest) = rest.split_first()?;
        let mut length = usize::from(first);
        if first >= 0x80 {
            // So many bytes of length follow. Four are 4 GiB; none is BER's open end.
            let count = usize::from(first & 0x7f);
            if !(1..=4).contains(&count) {
                return None;
            }
            let bytes = rest.get(..count)?;
            length = bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
            rest = rest.get(count..)?;
        }
        let content = rest.get(..length)?;
        self.0 = rest.get(length..)?;
        Some((tag, content))
    }

    /// The content of the next element, which must have this tag.
    fn content(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (found, content) = self.next()?;
        (found == tag).then_some(content)
    }

    fn enter(&mut self, tag: u8) -> Option<Walk<'a>> {
        self.content(tag).map(Walk)
    }
}

/// `YYMMDDhhmmssZ` or `YYYYMMDDhhmmssZ`, the only forms that RFC 5280 allows.
fn time(fields: &mut Walk<'_>) -> Option<u64> {
    let (tag, content) = fields.next()?;
    let text = std::str::from_utf8(content).ok()?.strip_suffix('Z')?;
    if !text.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let (year, rest) = match (tag, text.len()) {
        (UTC_TIME, 12) => {
            let (year, rest) = text.split_at_checked(2)?;
            let year: i64 = year.parse().ok()?;
            (if year < 50 { year + 2000 } else { year + 1900 }, rest)
        }
        (GENERALIZED_TIME, 14) => {
            let (year, rest) = text.split_at_checked(4)?;
            (year.parse().ok()?, rest)
        }
        _ => return None,
    };
    let two = |at: usize| rest.get(at..at + 2).and_then(|two| two.parse::<i64>().ok());
    let days = days(year, two(0)?, two(2)?);
    let seconds = ((days * 24 + two(4)?) * 60 + two(6)?) * 60 + two(8)?;
    Some(seconds.max(0) as u64)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar. Years begin in March here, so
/// that the leap day is their last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // 719468 days lie between 0000-03-01 and 1970-01-01.
    year * 365 + leap_days + (month * 153 + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(days(1970, 1, 1), 0);
        assert_eq!(days(2000, 2, 29), 11_016);
        assert_eq!(days(2000, 3, 1), 11_017);
        assert_eq!(days(2100, 3, 1), 47_541);
        assert_eq!(time(&mut Walk(b"\x17\x0d700101000001Z")), Some(1));
        assert_eq!(time(&mut Walk(b"\x17\x0d491231235959Z")), Some(2_524_607_999));
        assert_eq!(time(&mut Walk(b"\x18\x0f20500101000000Z")), Some(2_524_608_000));
        assert_eq!(time(&mut Walk(b"\x18\x0f99991231235959Z")), Some(253_402_300_799));
        assert_eq!(time(&mut Walk(b"\x17\x0d4912312359+9Z")), None);
        assert_eq!(time(&mut Walk(b"\x17\x0b4912312359Z")), None);
    }

    #[test]
    fn ids_and_days() {
        let certificate = |uris: &[&str]| Certificate {
            not_before: 0,
            not_after: 10 * 86_400,
            uris: uris.iter().map(|uri| uri.to_string()).collect(),
        };
        assert_eq!(certificate(&["x:y", "sysflow:agent:gw-1"]).agent_id(), Ok("gw-1"));
        assert_eq!(certificate(&["x:y"]).agent_id(), Err(IdentityError::Missing));
        assert_eq!(
            certificate(&["sysflow:agent:a", "sysflow:agent:b"]).agent_id(),
            Err(IdentityError::Several)
        );
        assert_eq!(
            certificate(&["sysflow:agent:GW"]).agent_id(),
            Err(IdentityError::Form("GW".into()))
        );
        assert_eq!(certificate(&[]).days_left(86_399), 9);
        assert_eq!(certificate(&[]).days_left(10 * 86_400 + 1), -1);
    }
}
