//! Options of well-known programs that take a secret and do not sound like it. Pure.

use super::MASK;

/// The last part of the program's path begins with the first, and the option, with the value
/// behind it or in the next argument, is the second.
const OPTIONS: [(&str, &str, Shape); 29] = [
    ("curl", "-u", Shape::AfterColon),
    ("curl", "--user", Shape::AfterColon),
    ("curl", "-U", Shape::AfterColon),
    ("curl", "--proxy-user", Shape::AfterColon),
    ("curl", "--cert", Shape::AfterColon),
    ("curl", "--oauth2-bearer", Shape::Whole),
    ("sshpass", "-p", Shape::Whole),
    ("mysql", "-p", Shape::Attached),
    ("mariadb", "-p", Shape::Attached),
    ("mongo", "-p", Shape::Whole),
    ("redis-cli", "-a", Shape::Whole),
    ("mosquitto", "-P", Shape::Whole),
    ("mosquitto", "--pw", Shape::Whole),
    ("ldap", "-w", Shape::Whole),
    ("smbclient", "-U", Shape::AfterPercent),
    ("ipmitool", "-P", Shape::Whole),
    ("snmpget", "-c", Shape::Whole),
    ("snmpset", "-c", Shape::Whole),
    ("snmpwalk", "-c", Shape::Whole),
    ("snmp", "-A", Shape::Whole),
    ("snmp", "-X", Shape::Whole),
    ("nmcli", "password", Shape::Whole),
    ("nmcli", "wifi-sec.psk", Shape::Whole),
    ("nmcli", "802-11-wireless-security.psk", Shape::Whole),
    ("unzip", "-P", Shape::Whole),
    ("zip", "-P", Shape::Whole),
    ("7z", "-p", Shape::Attached),
    ("useradd", "-p", Shape::Whole),
    ("usermod", "-p", Shape::Whole),
];

/// Where in an option's value the secret is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// All of it.
    Whole,
    /// All of it, and it is never in an argument of its own.
    Attached,
    /// `user:secret`.
    AfterColon,
    /// `user%secret`.
    AfterPercent,
}

/// Where the value of an option is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the same word, from here on.
    Here(usize, Shape),
    /// Behind the word.
    Next(Shape),
}

/// Which of the options count: those of the programs that have been named so far. One program
/// often starts another, as sudo does.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Options(u32);

const _: () = assert!(OPTIONS.len() <= u32::BITS as usize);

impl Options {
    /// Those of the program that `word` names, too, if it names one.
    pub(super) fn with(self, word: &[u8]) -> Options {
        let name = word.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let of_it = |program: &str| name.starts_with(program.as_bytes());
        let named = OPTIONS.iter().enumerate().filter(|(_, (program, ..))| of_it(program));
        Options(named.fold(self.0, |all, (number, _)| all | 1 << number))
    }

    /// Where the value is if `word` begins with one of the options.
    pub(super) fn find(self, word: &[u8]) -> Option<Place> {
        let counts = |number: usize| self.0 & 1 << number != 0;
        let counting = OPTIONS.iter().enumerate().filter(|(number, _)| counts(*number));
        counting.filter_map(|(_, (_, option, shape))| place(word, option, *shape)).next()
    }
}

fn place(word: &[u8], option: &str, shape: Shape) -> Option<Place> {
    let value = value_behind(word, option.as_bytes(), shape)?;
    if value.is_empty() {
        return Some(Place::Next(shape));
    }
    let is_short = option.starts_with('-') && !option.starts_with("--");
    let value = value.strip_prefix(b"=").or(is_short.then_some(value))?;
    Some(Place::Here(word.len() - value.len(), shape))
}

/// What follows an option in an argument that begins with it. Letters of other options may stand
/// before a short one, as in `-su user:secret`, where a mark tells a secret from those letters.
fn value_behind<'a>(argument: &'a [u8], option: &[u8], shape: Shape) -> Option<&'a [u8]> {
    if let Some(value) = argument.strip_prefix(option) {
        return Some(value);
    }
    let [b'-', letter] = option else { return None };
    let letters = argument.strip_prefix(b"-")?;
    let at = letters.iter().position(|byte| byte == letter)?;
    let is_marked = matches!(shape, Shape::AfterColon | Shape::AfterPercent);
    let is_group = letters[..at].iter().all(u8::is_ascii_alphabetic);
    (is_marked && is_group).then(|| &letters[at + 1..])
}

/// Appends an option's value with its secret masked.
pub(super) fn mask_value(value: &[u8], shape: Shape, out: &mut Vec<u8>) {
    let mark = match shape {
        Shape::AfterColon => b':',
        Shape::AfterPercent => b'%',
        Shape::Whole | Shape::Attached => {
            return out.extend_from_slice(if value.is_empty() { value } else { MASK });
        }
    };
    match value.iter().position(|byte| *byte == mark) {
        Some(at) if at + 1 < value.len() => {
            out.extend_from_slice(&value[..=at]);
            out.extend_from_slice(MASK);
        }
        _ => out.extend_from_slice(value),
    }
}
