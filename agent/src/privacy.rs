//! What must not leave a process: of its environment only what is allowed by name is kept, and
//! secrets in that and among its arguments are masked before anything is stored. Arguments go in,
//! the same arguments come out with `***` in place of each secret; how many there are, and where
//! one ends, does not change. Pure.
//!
//! A secret is known by its surroundings, so this is a net with holes: a password that stands
//! alone, behind an option that does not sound like one, is kept. It errs on the side of masking.

/// What stands for a secret.
const MASK: &[u8] = b"***";

/// A name is that of a secret if it ends so, letters and digits only, in lower case.
const ENDINGS: [&str; 14] = [
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
];

/// Or if it is just this: too short to look for at the end of longer names.
const WHOLE: [&str; 3] = ["pass", "pw", "auth"];

/// Options of well-known programs that take a secret and do not sound like it: the last part of
/// the executable's path begins with the first, and the option, with the value behind it or in
/// the next argument, is the second.
const OPTIONS: [(&str, &str, Shape); 10] = [
    ("curl", "-u", Shape::AfterColon),
    ("curl", "--user", Shape::AfterColon),
    ("curl", "-U", Shape::AfterColon),
    ("curl", "--proxy-user", Shape::AfterColon),
    ("sshpass", "-p", Shape::Whole),
    ("mysql", "-p", Shape::Attached),
    ("mariadb", "-p", Shape::Attached),
    ("redis-cli", "-a", Shape::Whole),
    ("ldap", "-w", Shape::Whole),
    ("smbclient", "-U", Shape::AfterPercent),
];

/// Where in an option's value the secret is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// All of it.
    Whole,
    /// All of it, and it is never in an argument of its own.
    Attached,
    /// `user:secret`.
    AfterColon,
    /// `user%secret`.
    AfterPercent,
}

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
            if self.environment.iter().any(|allowed| allowed == name) {
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
        let program = exe.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let mut expected = None;
        let whole = args.strip_suffix(b"\0").unwrap_or(args);
        for (number, argument) in whole.split(|byte| *byte == 0).enumerate() {
            if number > 0 {
                out.push(0);
            }
            match expected.take() {
                // Another option: the one before had no value, unless its program wants one.
                Some((shape, is_sure)) if is_sure || !argument.starts_with(b"-") => {
                    mask_value(argument, shape, out);
                }
                _ => expected = self.argument(program, argument, out),
            }
        }
        if args.last() == Some(&0) {
            out.push(0);
        }
        out.get(start..) != Some(args)
    }

    /// Appends one argument. Returns where in the next one the secret is that this one announces,
    /// and whether that is sure to be its value.
    fn argument(
        &self,
        program: &[u8],
        argument: &[u8],
        out: &mut Vec<u8>,
    ) -> Option<(Shape, bool)> {
        for (of, option, shape) in OPTIONS {
            if !program.starts_with(of.as_bytes()) {
                continue;
            }
            let Some(value) = value_behind(argument, option.as_bytes(), shape) else { continue };
            if value.is_empty() {
                out.extend_from_slice(argument);
                return (shape != Shape::Attached).then_some((shape, true));
            }
            let is_long = option.starts_with("--");
            if let Some(value) = value.strip_prefix(b"=").or((!is_long).then_some(value)) {
                out.extend_from_slice(&argument[..argument.len() - value.len()]);
                mask_value(value, shape, out);
                return None;
            }
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
        self.text(argument, out);
        (is_option && self.is_secret(&argument[name..])).then_some((Shape::Whole, false))
    }

    /// Appends a text, masking `NAME=value`, `NAME: value`, `--name value`, the password in a
    /// URL, and tokens, wherever in it they are.
    fn text(&self, text: &[u8], out: &mut Vec<u8>) {
        let mut at = 0;
        while let Some(byte) = text.get(at) {
            let rest = &text[at..];
            let begins = at == 0 || !is_name(text[at - 1]);
            if begins && let Some(length) = token(rest) {
                out.extend_from_slice(MASK);
                at += length;
            } else if let Some(length) = url_user(rest) {
                out.extend_from_slice(&rest[..length.0]);
                out.extend_from_slice(MASK);
                at += length.1;
            } else if begins && is_name(*byte) {
                let end = rest.iter().position(|b| !is_name(*b)).unwrap_or(rest.len());
                let name = &rest[..end];
                out.extend_from_slice(name);
                at += end;
                if self.is_secret(name)
                    && let Some((before, after)) = value_of(&text[at..], name)
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
fn mask_value(value: &[u8], shape: Shape, out: &mut Vec<u8>) {
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

/// Where behind a secret's name its value begins and ends; none if none follows.
fn value_of(rest: &[u8], name: &[u8]) -> Option<(usize, usize)> {
    let spaces = |from: usize| {
        rest.get(from..).unwrap_or_default().iter().take_while(|b| **b == b' ').count()
    };
    // The quote that ends a name in JSON.
    let mut at = usize::from(matches!(rest.first(), Some(b'"' | b'\'')));
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
    let quote = rest.get(at).copied().filter(|byte| matches!(byte, b'"' | b'\''));
    at += usize::from(quote.is_some());
    let value = rest.get(at..)?;
    // A scheme and what it wants: `Authorization: Bearer …`.
    let is_header = Plain::of(name).ends_with(b"authorization");
    let is_end = |byte: &u8| match quote {
        Some(quote) => *byte == quote,
        None if is_header => *byte == b'\n',
        None => matches!(byte, b'&' | b';' | b',' | b' ' | b'\t' | b'\n' | b'"' | b'\''),
    };
    let length = value.iter().position(is_end).unwrap_or(value.len());
    // What follows `//` is a URL, and what follows a lone `-` another option.
    let is_other = match mark {
        // Another option, or a URL whose scheme sounds like a secret.
        b' ' => value.starts_with(b"-"),
        b':' => value.starts_with(b"//"),
        _ => false,
    };
    (length > 0 && !is_other).then_some((at, at + length))
}

/// The length of the token or private key that `text` begins with.
fn token(text: &[u8]) -> Option<usize> {
    if text.starts_with(PEM) {
        let line = text.iter().position(|byte| *byte == b'\n').unwrap_or(text.len());
        let is_key = text[..line].windows(11).any(|words| words == b"PRIVATE KEY");
        return is_key.then_some(text.len());
    }
    let (prefix, least) = TOKENS.iter().find(|(prefix, _)| text.starts_with(prefix.as_bytes()))?;
    let follows = &text[prefix.len()..];
    let length = follows.iter().position(|byte| !is_name(*byte)).unwrap_or(follows.len());
    (length >= *least).then_some(prefix.len() + length)
}

/// In `://user:secret@host`, which `text` begins with: where the secret begins and ends. People
/// leave `/`, `?` and `#` in a secret as they are, though they should not; what comes before such
/// an `@` is a secret unless it is a port.
fn url_user(text: &[u8]) -> Option<(usize, usize)> {
    let rest = text.strip_prefix(b"://")?;
    let end = rest.iter().position(|b| matches!(b, b' ' | b'"' | b'\'' | b'\n'));
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
            rest.iter().position(|byte| *byte == b'@')?
        }
    };
    let colon = rest[..at].iter().position(|byte| *byte == b':')?;
    (colon + 1 < at).then_some((3 + colon + 1, 3 + at))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn masked(privacy: &Privacy, exe: &[u8], args: &[u8]) -> (Vec<u8>, bool) {
        let mut out = Vec::new();
        let found = privacy.arguments(exe, args, &mut out);
        (out, found)
    }

    fn redacted(exe: &str, args: &str) -> String {
        let before: Vec<u8> = args.bytes().map(|b| if b == b'|' { 0 } else { b }).collect();
        let (bytes, found) = masked(&Privacy::default(), exe.as_bytes(), &before);
        assert_eq!(found, bytes != before);
        String::from_utf8(bytes).unwrap().replace('\0', "|")
    }

    #[test]
    fn secrets_behind_their_names_are_masked() {
        for (args, masked) in [
            ("--password=hunter2|-v|", "--password=***|-v|"),
            ("--password|hunter2|-v|", "--password|***|-v|"),
            ("--db-password|a b c|", "--db-password|***|"),
            ("DB_PASSWORD=x y|", "DB_PASSWORD=*** y|"),
            ("-H|Authorization: Bearer abc.def|u|", "-H|Authorization: ***|u|"),
            ("-H|X-Api-Key: 12345|", "-H|X-Api-Key: ***|"),
            ("-c|mysql --password=abc -u me|", "-c|mysql --password=*** -u me|"),
            ("-c|tool --token abc --next|", "-c|tool --token *** --next|"),
            ("http://h/?user=a&token=b&c=d|", "http://h/?user=a&token=***&c=d|"),
            ("Server=h;Password=p;Timeout=3|", "Server=h;Password=***;Timeout=3|"),
            ("{\"password\": \"a b\", \"x\": 1}|", "{\"password\": \"***\", \"x\": 1}|"),
            ("postgres://me:pa:ss@db:5432/x|", "postgres://me:***@db:5432/x|"),
            ("postgres://me:p/a#s?s@db:5432/x@y|", "postgres://me:***@db:5432/x@y|"),
            ("AWS_SECRET_ACCESS_KEY=abc|", "AWS_SECRET_ACCESS_KEY=***|"),
            ("--pass|x|", "--pass|***|"),
            ("--password=-x|", "--password=***|"),
            ("--password=//x, y;z|", "--password=***|"),
            (
                "-H|Authorization: Digest username=\"bob\", response=\"x\"|",
                "-H|Authorization: ***|",
            ),
        ] {
            assert_eq!(redacted("/usr/bin/tool", args), masked);
        }
    }

    #[test]
    fn tokens_and_keys_are_masked_by_their_form() {
        let token = format!("ghp_{}", "a1".repeat(18));
        assert_eq!(redacted("/bin/t", &format!("push|{token}|")), "push|***|");
        assert_eq!(redacted("/bin/t", &format!("x/{token}/y|")), "x/***/y|");
        assert_eq!(redacted("/bin/t", "AKIAIOSFODNN7EXAMPLE|"), "***|");
        assert_eq!(redacted("/bin/t", "-----BEGIN RSA PRIVATE KEY-----\nabc|"), "***|");
        assert_eq!(redacted("/bin/t", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIx.abc|"), "***|");
    }

    #[test]
    fn options_of_known_programs_are_masked_for_them_only() {
        assert_eq!(redacted("/usr/bin/curl", "-u|me:pw|http://h|"), "-u|me:***|http://h|");
        assert_eq!(redacted("/usr/bin/curl", "-ume:pw|"), "-ume:***|");
        assert_eq!(redacted("/usr/bin/curl", "-sSu|me:pw|x|"), "-sSu|me:***|x|");
        assert_eq!(redacted("/usr/bin/curl", "-sume:pw|"), "-sume:***|");
        assert_eq!(redacted("/usr/bin/curl", "-o|out:put|-sS|a:b|"), "-o|out:put|-sS|a:b|");
        assert_eq!(redacted("/usr/bin/curl", "--user=me:pw|"), "--user=me:***|");
        assert_eq!(redacted("/usr/bin/mysqldump", "-psecret|-p|db|"), "-p***|-p|db|");
        assert_eq!(redacted("/usr/bin/sshpass", "-p|x|ssh|-p|22|"), "-p|***|ssh|-p|***|");
        assert_eq!(redacted("/usr/bin/sshpass", "-p|-x|ssh|"), "-p|***|ssh|");
        assert_eq!(redacted("/usr/bin/ssh", "-p|22|me:x|"), "-p|22|me:x|");
    }

    #[test]
    fn other_words_are_kept() {
        for args in [
            "--password-file|/etc/x|",
            "--tokenizer=fast|",
            "--max-tokens|5|",
            "--password|--next|",
            "--password|",
            "a|b||c|",
            "http://host:80/path@x|",
            "http://[2001:db8::1]/path@x|",
            "http://host/a:b@x|",
            "secret|store|",
            "sk-short|",
            "token://x|",
            "",
        ] {
            assert_eq!(redacted("/usr/bin/tool", args), args);
        }
    }

    #[test]
    fn names_can_be_added_and_all_can_be_switched_off() {
        let more = Privacy::new(true, &["PIN-code".into()], &[]);
        let (args, found) = masked(&more, b"/bin/modem", b"--sim-pincode\x001234\0");
        assert_eq!((args.as_slice(), found), (&b"--sim-pincode\0***\0"[..], true));
        let off = Privacy::new(false, &[], &[]);
        let (args, found) = masked(&off, b"/bin/modem", b"--password=x\0");
        assert_eq!((args.as_slice(), found), (&b"--password=x\0"[..], false));
        let long = [b"-", "pin".repeat(50).as_bytes(), b"code\0x\0"].concat();
        assert!(masked(&more, b"/bin/modem", &long).1);
    }

    #[test]
    fn of_an_environment_only_allowed_variables_are_kept() {
        let names = ["LANG".to_string(), "DB_PASSWORD".to_string(), "CUT".to_string()];
        let privacy = Privacy::new(true, &[], &names);
        let env = b"PATH=/bin\0LANG=C\0LANGUAGE=de\0DB_PASSWORD=x\0CUT=of";
        let mut kept = Vec::new();
        let is_redacted = privacy.environment(env, &mut kept);
        assert_eq!((kept.as_slice(), is_redacted), (&b"LANG=C\0DB_PASSWORD=***\0"[..], true));
        kept.clear();
        assert!(!Privacy::default().environment(env, &mut kept) && kept.is_empty());
    }

    proptest! {
        #[test]
        fn the_number_of_arguments_stays(
            parts in proptest::collection::vec(
                prop_oneof![
                    Just("--password".to_string()),
                    Just("token=".to_string()),
                    Just("://a:".to_string()),
                    Just("@".to_string()),
                    Just("\0".to_string()),
                    "[ -~]{0,12}",
                ],
                0..20,
            ),
        ) {
            let args = parts.concat().into_bytes();
            let nuls = |bytes: &[u8]| bytes.iter().filter(|b| **b == 0).count();
            let (told, _) = masked(&Privacy::default(), b"/usr/bin/curl", &args);
            prop_assert_eq!(nuls(&args), nuls(&told));
        }

        #[test]
        fn the_value_of_a_secret_option_never_stays(
            others in proptest::collection::vec("[ -~]{0,12}", 0..4),
            option in prop_oneof![Just("--password"), Just("-db_passwd"), Just("--api-key")],
            tail in "[ -~]{0,10}",
        ) {
            let secret = format!("{option}=S3CR{tail}");
            let args = others.iter().chain([&secret]).fold(Vec::new(), |mut all, arg| {
                all.extend_from_slice(arg.as_bytes());
                all.push(0);
                all
            });
            let (args, _) = masked(&Privacy::default(), b"/usr/bin/tool", &args);
            prop_assert!(!args.windows(4).any(|bytes| bytes == b"S3CR"));
        }
    }
}
