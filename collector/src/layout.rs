//! Where things are in the store, and what names may be used there.
//!
//! ```text
//! <directory>/<agent>/usage.json                                          bytes in the folder, where they are bounded
//! <directory>/<agent>/certificates/<SHA-256>.pem                          certificates that frames came with
//! <directory>/<agent>/<boot uuid>/clock.json                              one offset for object ids
//! <directory>/<agent>/<boot uuid>/<run tag>/<class>/<sequence>.frame      a frame, as received
//! <directory>/<agent>/<boot uuid>/<run tag>/<class>/<generation>.start    the generation's first frame, again
//! <directory>/<agent>/sysflow/<start>-<run>-<class>-<generation>.sf       what SysFlow tools read
//! <directory>/<agent>/sysflow/<start>-<run>-<class>-<generation>.json     what it is made of and leaves out
//! ```
//! Names that begin with a dot are files in the making; readers pass over them.

use std::path::{Path, PathBuf};

/// Longest agent id, bytes.
const AGENT_ID_BYTES_MAX: usize = 63;

/// The folder of an agent's `.sf` files.
pub(crate) const SYSFLOW: &str = "sysflow";

/// The folder of the certificates that an agent showed.
pub(crate) const CERTIFICATES: &str = "certificates";

/// The file of what an agent takes of the store.
pub(crate) const USAGE: &str = "usage.json";

/// The file of a boot's fixed clock offset.
pub(crate) const CLOCK: &str = "clock.json";

/// Whether `id` is an agent id: `[a-z0-9][a-z0-9._-]{0,62}`. Such an id is also a safe name
/// for a folder: it has no separator and never begins with a dot.
pub(crate) fn is_agent_id(id: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut bytes = id.bytes();
    id.len() <= AGENT_ID_BYTES_MAX
        && bytes.next().is_some_and(alphanumeric)
        && bytes.all(|byte| alphanumeric(byte) || matches!(byte, b'.' | b'_' | b'-'))
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Sixteen bytes as a UUID.
pub(crate) fn uuid(bytes: [u8; 16]) -> String {
    let mut text = hex(&bytes);
    // From the back, so that the places in front stay what they are.
    for place in [20, 16, 12, 8] {
        text.insert(place, '-');
    }
    text
}

/// The bytes of a UUID in its usual form.
pub(crate) fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let bytes = unhex::<16>(&digits)?;
    (uuid(bytes) == text).then_some(bytes)
}

/// The bytes of lower-case hexadecimal.
pub(crate) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let digits = text.as_bytes();
    if digits.len() != N * 2 || digits.iter().any(u8::is_ascii_uppercase) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// One generation of one stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct GenerationKey {
    pub(crate) agent: String,
    pub(crate) boot: [u8; 16],
    pub(crate) run: [u8; 8],
    pub(crate) class: u8,
    pub(crate) generation: u32,
}

impl GenerationKey {
    /// The folder of the stream's frames, below the store's directory.
    pub(crate) fn stream_directory(&self) -> PathBuf {
        stream_directory(&self.agent, self.boot, self.run, self.class)
    }

    /// The name of the generation's `.sf` file without its ending.
    pub(crate) fn file_stem(&self, start_s: i64) -> String {
        let [a, b, c, d, ..] = self.run;
        format!("{start_s}-{}-{}-{}", hex(&[a, b, c, d]), self.class, self.generation)
    }
}

impl std::fmt::Display for GenerationKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let GenerationKey { agent, boot, run, class, generation } = self;
        let (boot, run) = (uuid(*boot), hex(run));
        write!(f, "agent {agent}, boot {boot}, run {run}, class {class}, generation {generation}")
    }
}

/// The folder of a boot, below the store's directory.
pub(crate) fn boot_directory(agent: &str, boot: [u8; 16]) -> PathBuf {
    Path::new(agent).join(uuid(boot))
}

/// The folder of a stream's frames, below the store's directory.
pub(crate) fn stream_directory(agent: &str, boot: [u8; 16], run: [u8; 8], class: u8) -> PathBuf {
    boot_directory(agent, boot).join(hex(&run)).join(class.to_string())
}

/// The name of a frame's file; twenty digits hold every sequence and sort by it.
pub(crate) fn frame_name(sequence: u64) -> String {
    format!("{sequence:020}.frame")
}

/// The sequence that a frame's file name says.
pub(crate) fn parse_frame_name(name: &str) -> Option<u64> {
    name.strip_suffix(".frame").filter(|digits| digits.len() == 20)?.parse().ok()
}

/// The name of the second link to the first frame of a generation. It answers in one look
/// whether a generation's start is held, and where it is.
pub(crate) fn start_name(generation: u32) -> String {
    format!("{generation:010}.start")
}

/// The generation that such a name says.
pub(crate) fn parse_start_name(name: &str) -> Option<u32> {
    name.strip_suffix(".start").filter(|digits| digits.len() == 10)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agent_ids_are_safe_folder_names() {
        for good in ["a", "0", "gw-0001", "a.b_c-d", &"x".repeat(63)] {
            assert!(is_agent_id(good), "{good}");
        }
        for bad in ["", ".", "..", "-a", "_a", "A", "a/b", "a\0", "ä", "a b", &"x".repeat(64)] {
            assert!(!is_agent_id(bad), "{bad}");
        }
    }

    #[test]
    fn names_can_be_read_back() {
        let boot: [u8; 16] = std::array::from_fn(|i| (i * 17) as u8);
        assert_eq!(uuid(boot), "00112233-4455-6677-8899-aabbccddeeff");
        assert_eq!(parse_uuid(&uuid(boot)), Some(boot));
        assert_eq!(parse_uuid("00112233445566778899aabbccddeeff"), None);
        assert_eq!(unhex::<2>("0aF0"), None);
        assert_eq!(parse_frame_name(&frame_name(u64::MAX)), Some(u64::MAX));
        assert_eq!(parse_frame_name("1.frame"), None);
        assert_eq!(parse_start_name(&start_name(7)), Some(7));
    }
}
