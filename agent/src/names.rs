//! Paths from the kernel's pieces: turns a walked path round, joins a program's words to the
//! directory that they start from, and takes out `.` and `..`. Pure.

use bpf::{Named, Walked, path};
use codec::file;

/// Appends the absolute path of a walk. A detached one keeps the kernel's single name for it.
pub fn walked(walked: &Walked<'_>, out: &mut Vec<u8>) {
    let start = out.len();
    walked.each_part(|part| {
        if !part.starts_with(b"/") {
            out.push(b'/');
        }
        out.extend_from_slice(part);
    });
    if out.len() == start {
        out.push(b'/');
    }
}

/// Appends the absolute path that a program's words mean, without following symbolic links.
/// Where there is no directory to start from, the words alone.
pub fn named(named: &Named<'_>, out: &mut Vec<u8>) {
    if named.base.flags & path::UNKNOWN != 0 && !named.name.starts_with(b"/") {
        return out.extend_from_slice(named.name);
    }
    let root_names = named.base.names.len().saturating_sub(named.root_bytes);
    let root_names = named.base.names.get(root_names..).unwrap_or_default();
    let root_parts = root_names.split(|b| *b == 0).filter(|name| !name.is_empty()).count();
    let start = out.len();
    let mut depth = 0;
    let mut climb = |part: &[u8]| match part {
        b"" | b"." => {}
        // Nobody climbs above the root that the process has.
        b".." if depth > root_parts => {
            let parent = out.iter().rposition(|byte| *byte == b'/');
            out.truncate(parent.map_or(start, |at| at.max(start)));
            depth -= 1;
        }
        b".." => {}
        name => {
            out.push(b'/');
            out.extend_from_slice(name);
            depth += 1;
        }
    };
    named.base.each_part(|part| part.split(|b| *b == b'/').for_each(&mut climb));
    named.name.split(|b| *b == b'/').for_each(&mut climb);
    if out.len() == start {
        out.push(b'/');
    }
}

/// The kernel side's path flags in the wire's words.
pub fn file_flags(walked_flags: u8) -> u32 {
    [
        (path::TRUNCATED | path::UNKNOWN, file::PATH_TRUNCATED),
        (path::DELETED, file::DELETED),
        (path::DETACHED, file::DETACHED),
        (path::CHROOT, file::CHANGED_ROOT),
        (path::OUTSIDE, file::OUTSIDE_ROOT),
    ]
    .into_iter()
    .filter(|(from, _)| walked_flags & from != 0)
    .fold(0, |flags, (_, to)| flags | to)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(names: &[u8]) -> Walked<'_> {
        Walked { names, flags: 0 }
    }

    fn told(words: &Named<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        named(words, &mut out);
        out
    }

    #[test]
    fn a_walk_is_turned_round() {
        let told = |names| {
            let mut out = b"x".to_vec();
            walked(&walk(names), &mut out);
            out
        };
        assert_eq!(told(b"passwd\0etc\0"), b"x/etc/passwd");
        assert_eq!(told(b""), b"x/");
    }

    #[test]
    fn words_are_joined_and_normalised() {
        let name =
            |base: &'static [u8], name| told(&Named { base: walk(base), root_bytes: 0, name });
        assert_eq!(name(b"b\0a\0", b"../c/./d"), b"/a/c/d");
        assert_eq!(name(b"", b"/x//y/"), b"/x/y");
        assert_eq!(name(b"", b"../.."), b"/");
    }

    #[test]
    fn nobody_climbs_above_a_changed_root() {
        let base = walk(b"d\0jail\0srv\0");
        let climb = Named { base, root_bytes: b"jail\0srv\0".len(), name: b"../../../etc" };
        assert_eq!(told(&climb), b"/srv/jail/etc");
    }

    #[test]
    fn words_without_a_directory_stay_alone() {
        let base = Walked { names: b"", flags: path::UNKNOWN };
        assert_eq!(told(&Named { base, root_bytes: 0, name: b"x" }), b"x");
        assert_eq!(file_flags(path::UNKNOWN), file::PATH_TRUNCATED);
    }
}
