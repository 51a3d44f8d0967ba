//! Which rows `print` shows: by process, time and kind. Without any, all.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::join::Row;
use super::text;

/// The kinds of rows, as the table's column `T` and the JSON key `type` have them.
pub(crate) const KINDS: [&str; 8] = ["PE", "PF", "FE", "FF", "NE", "NF", "KE", "SUM"];

/// A whole number from here on is in ns: as seconds it would be past the year 30 millions.
const NANOSECONDS_MIN: i64 = 1_000_000_000_000_000;

/// What a row has to be to be shown.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    /// In the path, the arguments or the script of its process.
    pub(crate) process: Option<String>,
    /// It goes on at this moment or later, Unix time, ns, ...
    pub(crate) since_ns: Option<i64>,
    /// ... and began before this.
    pub(crate) until_ns: Option<i64>,
    /// One of these kinds, whatever the case; empty: any.
    pub(crate) kinds: Vec<String>,
}

impl Filter {
    /// Whether every row is shown.
    pub(super) fn takes_all(&self) -> bool {
        let Filter { process, since_ns, until_ns, kinds } = self;
        process.is_none() && since_ns.is_none() && until_ns.is_none() && kinds.is_empty()
    }

    /// Whether this one is.
    pub(super) fn takes(&self, row: &Row<'_>) -> bool {
        let begin = text::ts(row.record);
        let end = text::end(row.record).map_or(begin, |(end, _)| end.max(begin));
        let kind = text::kind(row.record);
        let is_of = |text: &str| {
            row.process.is_some_and(|process| {
                [&process.exe, &process.args, &process.script].iter().any(|of| of.contains(text))
            })
        };
        self.since_ns.is_none_or(|since| end >= since)
            && self.until_ns.is_none_or(|until| begin < until)
            && (self.kinds.is_empty() || self.kinds.iter().any(|k| k.eq_ignore_ascii_case(kind)))
            && self.process.as_deref().is_none_or(is_of)
    }
}

/// A moment as an option gives it, in Unix time, ns.
///
/// # Errors
/// Says which forms there are.
pub(crate) fn moment(text: &str) -> Result<i64, String> {
    let forms = || {
        "a time is 2026-11-24T23:40:00Z, with Z or +hh:mm (without, UTC), or Unix time in s or ns"
            .to_owned()
    };
    if let Ok(number) = text.parse::<i64>() {
        let scale = if number.abs() < NANOSECONDS_MIN { 1_000_000_000 } else { 1 };
        return number.checked_mul(scale).ok_or_else(forms);
    }
    let parse = |text: &str| OffsetDateTime::parse(text, &Rfc3339);
    let moment = parse(text).or_else(|_| parse(&format!("{text}Z"))).map_err(|_| forms())?;
    i64::try_from(moment.unix_timestamp_nanos()).map_err(|_| forms())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_in_every_form_that_is_printed() {
        let at = 1_554_906_981_000_000_000;
        for text in [
            "2019-04-10T14:36:21Z",
            "2019-04-10T14:36:21",
            "2019-04-10T16:36:21+02:00",
            "1554906981",
            "1554906981000000000",
        ] {
            assert_eq!(moment(text), Ok(at), "{text}");
        }
        assert_eq!(moment("2019-04-10T14:36:21.522896"), Ok(at + 522_896_000));
        for text in ["", "yesterday", "2019-04-10", "2019-13-10T14:36:21Z", "9999999999999999999"] {
            assert!(moment(text).unwrap_err().starts_with("a time is "), "{text}");
        }
    }
}
