//! Where secrets begin and end in a text: values behind names, words as a shell reads them, tokens,
//! and passwords in URLs. Pure.

use super::{Plain, is_name};

/// Beginnings of tokens that services hand out, and how many characters follow at least.
const TOKENS: [(&str, usize); 14] = [
    ("ghp_", 20),
    ("gho_", 20),
    ("ghu_", 20),
    ("ghs_", 20),
    ("github_pat_", 20),
    ("glpat-", 16),
    ("xoxb-", 16),
    ("xoxp-", 16),
    ("xoxa-", 16),
    ("xoxs-", 16),
    ("AKIA", 16),
    ("ASIA", 16),
    ("sk-", 20),
    // A JSON web token: base64url of an object that begins with a name.
    ("eyJ", 20),
];

/// How a private key in PEM begins.
const PEM: &[u8] = b"-----BEGIN ";

/// Where behind a secret's name its value begins and ends; none if none follows. `around` is the
/// quote before the name, which ends the value, too; `is_first` whether the name begins its text.
pub(super) fn value_of(
    rest: &[u8],
    name: &[u8],
    around: Option<u8>,
    is_first: bool,
) -> Option<(usize, usize)> {
    let spaces = |from: usize| {
        rest.get(from..).unwrap_or_default().iter().take_while(|b| **b == b' ').count()
    };
    // The quote that ends a name in JSON, which itself may stand in quotes.
    let slashes = slashes(rest);
    let is_quoted = rest.get(slashes).is_some_and(|byte| is_quote(*byte));
    let mut at = if is_quoted { slashes + 1 } else { 0 };
    let around = around.filter(|_| !is_quoted);
    let gap = spaces(at);
    let mark = match rest.get(at + gap) {
        Some(mark @ (b'=' | b':')) => {
            at += gap + 1;
            at += spaces(at);
            *mark
        }
        _ if at == 0 && gap > 0 && name.starts_with(b"-") => {
            at = gap;
            b' '
        }
        _ => return None,
    };
    let value = rest.get(at..)?;
    let is_other = match mark {
        // Another option, or a URL whose scheme sounds like a secret.
        b' ' => value.starts_with(b"-"),
        b':' => value.starts_with(b"//"),
        _ => false,
    };
    if is_other {
        return None;
    }
    // A header's value goes on to the end of its line: `Authorization: Bearer …`.
    let plain = Plain::of(name);
    let is_header = plain.ends_with(b"authorization") || mark == b':' && plain.ends_with(b"cookie");
    if is_header && !value.get(self::slashes(value)).is_some_and(|byte| is_quote(*byte)) {
        let is_end = |byte: &u8| *byte == b'\n' || Some(*byte) == around;
        let length = value.iter().position(is_end).unwrap_or(value.len());
        return (length > 0).then_some((at, at + length));
    }
    // A variable's value ends where a shell's word does; elsewhere more are listed side by side.
    let is_upper = |byte: &u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || *byte == b'_';
    let is_variable = is_first && mark == b'=' && name.iter().all(is_upper);
    let is_end = |byte| is_blank(byte) || !is_variable && matches!(byte, b'&' | b';' | b',');
    let (start, end) = word(value, is_end, around)?;
    Some((at + start, at + end))
}

/// Where the word begins and ends that `text` begins with, as a shell reads it: pieces of it may be
/// in quotes. The quotes around all of it are left out, with the backslashes before them if they
/// stand in other quotes. None if it is empty.
pub(super) fn word(
    text: &[u8],
    is_end: impl Fn(u8) -> bool,
    around: Option<u8>,
) -> Option<(usize, usize)> {
    let (mut at, mut quoted) = (0, None);
    while let Some(byte) = text.get(at) {
        let slashes = slashes(&text[at..]);
        match text.get(at + slashes) {
            Some(quote) if is_quote(*quote) && Some(*quote) != around => {
                let start = at + slashes + 1;
                let Some((end, after)) = closed(text, start, *quote, slashes) else {
                    // A quote without an end ends what is before it, or begins all that follows.
                    let is_all = at == 0 && start < text.len();
                    return if is_all {
                        Some((start, text.len()))
                    } else {
                        (at > 0).then_some((0, at))
                    };
                };
                quoted = (at == 0).then_some((start, end, after));
                at = after;
            }
            Some(quote) if is_quote(*quote) => break,
            _ if slashes > 0 => at += slashes + 1,
            _ if is_end(*byte) || quoted.is_some() && matches!(byte, b'}' | b']' | b')') => break,
            _ => at += 1,
        }
    }
    let at = at.min(text.len());
    match quoted {
        Some((start, end, after)) if after == at => (start < end).then_some((start, end)),
        _ => (at > 0).then_some((0, at)),
    }
}

/// Where a quoted piece that begins at `start` ends, and what comes behind its quote; its quotes
/// have `slashes` backslashes before them, and one with others is inside.
fn closed(text: &[u8], start: usize, quote: u8, slashes: usize) -> Option<(usize, usize)> {
    let mut run = 0;
    for (at, byte) in text.iter().enumerate().skip(start) {
        let is_closing = if slashes == 0 { run % 2 == 0 } else { run <= slashes };
        if *byte == quote && is_closing {
            return Some((at - run.min(slashes), at + 1));
        }
        run = if *byte == b'\\' { run + 1 } else { 0 };
    }
    None
}

fn slashes(text: &[u8]) -> usize {
    text.iter().take_while(|byte| **byte == b'\\').count()
}

pub(super) fn is_quote(byte: u8) -> bool {
    matches!(byte, b'"' | b'\'')
}

pub(super) fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n')
}

/// Whether a word of a command line may begin behind this, or ends before it.
pub(super) fn is_gap(byte: u8) -> bool {
    is_blank(byte)
        || is_quote(byte)
        || matches!(byte, b'\\' | b';' | b'|' | b'&' | b'(' | b')' | b'<' | b'>' | b'`')
}

/// The length of the token or private key that `text` begins with. If the text is cut, so may a
/// token at its end be.
pub(super) fn token(text: &[u8], is_cut: bool) -> Option<usize> {
    if text.starts_with(PEM) {
        let line = text.iter().position(|byte| *byte == b'\n').unwrap_or(text.len());
        let is_key = text[..line].windows(11).any(|words| words == b"PRIVATE KEY");
        return is_key.then_some(text.len());
    }
    let (prefix, least) = TOKENS.iter().find(|(prefix, _)| text.starts_with(prefix.as_bytes()))?;
    let follows = &text[prefix.len()..];
    let length = follows.iter().position(|byte| !is_name(*byte)).unwrap_or(follows.len());
    let may_go_on = is_cut && length == follows.len();
    (length >= *least || may_go_on).then_some(prefix.len() + length)
}

/// In `://user:secret@host`, which `text` begins with: where the secret begins and ends. People
/// leave `/`, `?` and `#` in a secret as they are, though they should not; what comes before such
/// an `@` is a secret unless it is a port. If the text is cut, the `@` may be missing at its end.
pub(super) fn url_user(text: &[u8], is_cut: bool) -> Option<(usize, usize)> {
    let rest = text.strip_prefix(b"://")?;
    let end = rest.iter().position(|b| matches!(b, b' ' | b'"' | b'\'' | b'\n'));
    let may_go_on = is_cut && end.is_none();
    let rest = &rest[..end.unwrap_or(rest.len())];
    let is_delimiter = |b: &u8| matches!(b, b'/' | b'?' | b'#');
    let authority = &rest[..rest.iter().position(is_delimiter).unwrap_or(rest.len())];
    let at = match authority.iter().rposition(|byte| *byte == b'@') {
        Some(at) => at,
        None => {
            let colon = authority.iter().position(|byte| *byte == b':')?;
            let port = &authority[colon + 1..];
            let is_port = port.len() <= 5 && port.iter().all(u8::is_ascii_digit);
            let is_address = authority.starts_with(b"[");
            if is_port || is_address {
                return None;
            }
            match rest.iter().position(|byte| *byte == b'@') {
                Some(at) => at,
                None if may_go_on => rest.len(),
                None => return None,
            }
        }
    };
    let colon = rest[..at].iter().position(|byte| *byte == b':')?;
    (colon + 1 < at).then_some((3 + colon + 1, 3 + at))
}
