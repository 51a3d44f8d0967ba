//! What must not leave a process: of its environment only what is allowed by name is kept, and
//! secrets in that and among its arguments are masked before anything is stored. Arguments go in,
//! the same arguments come out with `***` in place of each secret; how many there are, and where
//! one ends, does not change. Pure.
//!
//! A secret is known by its surroundings, so this is a net with holes: a password that stands
//! alone, behind an option that does not sound like one, is kept. It errs on the side of masking.

mod options;
#[cfg(test)]
mod tests;
mod value;

use options::{Options, Place, Shape, mask_value};
use value::{is_blank, is_gap, is_quote, token, url_user, value_of};

/// What stands for a secret.
const MASK: &[u8] = b"***";

/// A name is that of a secret if it ends so, letters and digits only, in lower case.
const ENDINGS: [&str; 16] = [
    "password",
    "passwd",
    "passphrase",
    "passcode",
    "pwd",
    "secret",
    "token",
    "apikey",
    "accesskey",
    "secretkey",
    "privatekey",
    "credential",
    "credentials",
    "authorization",
    "cookie",
    "psk",
];

/// Or if it is just this: too short to look for at the end of longer names.
const WHOLE: [&str; 3] = ["pass", "pw", "auth"];

/// What of a program's words is kept.
#[derive(Clone, Debug)]
pub struct Privacy {
    is_on: bool,
    /// Names of environment variables that are kept.
    environment: Vec<Vec<u8>>,
    /// More endings of names, as [`ENDINGS`].
    endings: Vec<Vec<u8>>,
}

impl Default for Privacy {
    fn default() -> Privacy {
        Privacy::new(true, &[], &[])
    }
}

impl Privacy {
    /// Masks nothing unless `is_on`. `names` are names of secrets beside the known ones: a longer
    /// name that ends like one of them is a secret's, too. Case and punctuation do not matter.
    /// `environment` are the names of the variables that are kept.
    pub fn new(is_on: bool, names: &[String], environment: &[String]) -> Privacy {
        let endings = names.iter().map(|name| Plain::of(name.as_bytes()).bytes().to_vec());
        Privacy {
            is_on,
            environment: environment.iter().map(|name| name.as_bytes().to_vec()).collect(),
            endings: endings.filter(|ending| !ending.is_empty()).collect(),
        }
    }

    /// Whether any variable of an environment is kept.
    pub fn keeps_environment(&self) -> bool {
        !self.environment.is_empty()
    }

    /// Of an environment (a NUL after each variable) appends to `out` what is kept, and returns
    /// whether secrets in it were masked. A last variable without its NUL was cut off, and is left
    /// out.
    pub fn environment(&self, env: &[u8], out: &mut Vec<u8>) -> bool {
        let mut masked = false;
        let whole = env.iter().rposition(|byte| *byte == 0).map_or(0, |end| end + 1);
        for variable in env[..whole].split_inclusive(|byte| *byte == 0) {
            let name = variable.split(|byte| *byte == b'=').next().unwrap_or_default();
            if !self.environment.iter().any(|allowed| allowed == name) {
                continue;
            }
            if self.is_on && self.is_secret(name) && variable.len() > name.len() + 2 {
                // Whatever is in it belongs to it.
                out.extend_from_slice(&variable[..=name.len()]);
                out.extend_from_slice(MASK);
                out.push(0);
                masked = true;
            } else {
                masked |= self.arguments(b"", variable, out);
            }
        }
        masked
    }

    /// Appends to `out` the arguments `args` (a NUL after each) of the program `exe`, their secrets
    /// masked. Returns whether there were any.
    pub fn arguments(&self, exe: &[u8], args: &[u8], out: &mut Vec<u8>) -> bool {
        if !self.is_on || args.is_empty() {
            out.extend_from_slice(args);
            return false;
        }
        let start = out.len();
        let mut options = Options::default().with(exe);
        let mut expected = None;
        let whole = args.strip_suffix(b"\0").unwrap_or(args);
        let is_cut = whole.len() == args.len();
        let count = whole.split(|byte| *byte == 0).count();
        for (number, argument) in whole.split(|byte| *byte == 0).enumerate() {
            if number > 0 {
                out.push(0);
            }
            match expected.take() {
                // Another option: the one before had no value, unless its program wants one.
                Some((shape, is_sure)) if is_sure || !argument.starts_with(b"-") => {
                    mask_value(argument, shape, out);
                }
                _ => {
                    let is_cut = is_cut && number + 1 == count;
                    expected = self.argument(options, argument, is_cut, out);
                    // The program that is to be started, as behind sudo, unless it is a URL.
                    if !argument.windows(3).any(|mark| mark == b"://") {
                        options = options.with(argument);
                    }
                }
            }
        }
        if !is_cut {
            out.push(0);
        }
        out.get(start..) != Some(args)
    }

    /// Appends one argument. Returns where in the next one the secret is that this one announces,
    /// and whether that is sure to be its value.
    fn argument(
        &self,
        options: Options,
        argument: &[u8],
        is_cut: bool,
        out: &mut Vec<u8>,
    ) -> Option<(Shape, bool)> {
        match options.find(argument) {
            Some(Place::Here(at, shape)) => {
                out.extend_from_slice(&argument[..at]);
                mask_value(&argument[at..], shape, out);
                return None;
            }
            Some(Place::Next(shape)) => {
                out.extend_from_slice(argument);
                return (shape != Shape::Attached).then_some((shape, true));
            }
            None => {}
        }
        let name = argument.iter().position(|byte| *byte != b'-').unwrap_or(0);
        // An option with its value in one argument: whatever is in it belongs to it.
        if name > 0
            && let Some(at) = argument.iter().position(|byte| *byte == b'=')
            && at + 1 < argument.len()
            && argument[name..at].iter().all(|byte| is_name(*byte))
            && self.is_secret(&argument[name..at])
        {
            out.extend_from_slice(&argument[..=at]);
            out.extend_from_slice(MASK);
            return None;
        }
        let is_option = name > 0 && argument[name..].iter().all(|byte| is_name(*byte));
        self.text(argument, options, is_cut, out);
        (is_option && self.is_secret(&argument[name..])).then_some((Shape::Whole, false))
    }

    /// Appends a text, masking `NAME=value`, `NAME: value`, `--name value`, the password in a
    /// URL, tokens, and what is said to a known program, wherever in it they are.
    fn text(&self, text: &[u8], mut options: Options, is_cut: bool, out: &mut Vec<u8>) {
        let mut at = 0;
        while let Some(byte) = text.get(at) {
            let rest = &text[at..];
            let before = at.checked_sub(1).map(|before| text[before]);
            let begins = before.is_none_or(|before| !is_name(before));
            if before.is_none_or(is_gap) {
                let word = &rest[..rest.iter().position(|b| is_gap(*b)).unwrap_or(rest.len())];
                if let Some((start, end, shape)) = option_value(options, rest, word) {
                    out.extend_from_slice(&rest[..start]);
                    mask_value(&rest[start..end], shape, out);
                    at += end;
                    continue;
                }
                if !word.windows(3).any(|mark| mark == b"://") {
                    options = options.with(word);
                }
            }
            if begins && let Some(length) = token(rest, is_cut) {
                out.extend_from_slice(MASK);
                at += length;
            } else if let Some(length) = url_user(rest, is_cut) {
                out.extend_from_slice(&rest[..length.0]);
                out.extend_from_slice(MASK);
                at += length.1;
            } else if begins && is_name(*byte) {
                let end = rest.iter().position(|b| !is_name(*b)).unwrap_or(rest.len());
                let name = &rest[..end];
                out.extend_from_slice(name);
                let around = before.filter(|before| is_quote(*before));
                let is_first = at == 0;
                at += end;
                if self.is_secret(name)
                    && let Some((before, after)) = value_of(&text[at..], name, around, is_first)
                {
                    out.extend_from_slice(&text[at..at + before]);
                    out.extend_from_slice(MASK);
                    at += after;
                }
            } else {
                out.push(*byte);
                at += 1;
            }
        }
    }

    fn is_secret(&self, name: &[u8]) -> bool {
        let name = Plain::of(name);
        ENDINGS.iter().any(|ending| name.ends_with(ending.as_bytes()))
            || WHOLE.iter().any(|whole| name.is_whole && name.bytes() == whole.as_bytes())
            || self.endings.iter().any(|ending| name.ends_with(ending))
    }
}

/// Longest ending of a name that is compared, bytes.
const PLAIN_BYTES_MAX: usize = 128;

/// Letters and digits of a name, in lower case: the last of them, where there are many.
struct Plain {
    /// Filled from its end.
    buffer: [u8; PLAIN_BYTES_MAX],
    start: usize,
    /// Whether no letter or digit was left out.
    is_whole: bool,
}

impl Plain {
    fn of(name: &[u8]) -> Plain {
        let mut letters = name.iter().rev().filter(|byte| byte.is_ascii_alphanumeric());
        let mut plain = Plain { buffer: [0; _], start: PLAIN_BYTES_MAX, is_whole: true };
        for (place, letter) in plain.buffer.iter_mut().rev().zip(&mut letters) {
            *place = letter.to_ascii_lowercase();
            plain.start -= 1;
        }
        plain.is_whole = letters.next().is_none();
        plain
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    fn ends_with(&self, ending: &[u8]) -> bool {
        self.bytes().ends_with(ending)
    }
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

/// Where in `rest`, which begins with `word`, the value of one of the options begins and ends; none
/// if the word is no such option, or has no value.
fn option_value(options: Options, rest: &[u8], word: &[u8]) -> Option<(usize, usize, Shape)> {
    let (at, shape) = match options.find(word)? {
        Place::Here(at, shape) => (at, shape),
        Place::Next(shape) => {
            let blanks = rest[word.len()..].iter().take_while(|byte| is_blank(**byte)).count();
            if blanks > 0 && shape == Shape::Attached {
                return None;
            }
            (word.len() + blanks, shape)
        }
    };
    let is_end = |byte| is_gap(byte) && !is_quote(byte);
    let (start, end) = value::word(&rest[at..], is_end, None)?;
    Some((at + start, at + end, shape))
}
