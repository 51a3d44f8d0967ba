//! The pool of texts: paths, arguments and the like of processes and flows. One allocation at
//! start, cut into blocks; a text is a chain of them that its owners share by counting. Full:
//! [`Texts::store`] says so, and the owner does without. Pure.

/// Bytes of a text in one block: with its links a block fills a cache line.
const BLOCK_TEXT_BYTES: usize = 56;
/// Ends a chain, and stands for the empty text.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Block {
    next: u32,
    /// Owners of the text whose first block this is.
    owners: u32,
    bytes: [u8; BLOCK_TEXT_BYTES],
}

/// A text in the pool. A copy is no owner: [`Texts::share`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text {
    first: u32,
    bytes: u32,
}

impl Text {
    /// No text; nobody owns it.
    pub const EMPTY: Text = Text { first: NONE, bytes: 0 };

    /// Its length, bytes.
    pub fn len(self) -> usize {
        self.bytes as usize
    }

    /// Whether it is the empty one.
    pub fn is_empty(self) -> bool {
        self.bytes == 0
    }
}

/// The pool.
#[derive(Debug)]
pub struct Texts {
    blocks: Box<[Block]>,
    /// First of the chain of free blocks, and how many there are.
    free: u32,
    free_count: usize,
}

impl Texts {
    /// A pool whose blocks, links included, take `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> Texts {
        let count = (bytes_max / size_of::<Block>()).min(NONE as usize);
        let block = |index: usize| {
            let next = if index + 1 < count { index as u32 + 1 } else { NONE };
            Block { next, owners: 0, bytes: [0; BLOCK_TEXT_BYTES] }
        };
        Texts {
            blocks: (0..count).map(block).collect(),
            free: if count > 0 { 0 } else { NONE },
            free_count: count,
        }
    }

    /// Whether a text of so many bytes finds place.
    pub fn has_room(&self, bytes: usize) -> bool {
        bytes.div_ceil(BLOCK_TEXT_BYTES) <= self.free_count
    }

    /// Keeps a text, with the caller as its owner; none if there is no room.
    pub fn store(&mut self, text: &[u8]) -> Option<Text> {
        if text.is_empty() {
            return Some(Text::EMPTY);
        }
        if !self.has_room(text.len()) {
            return None;
        }
        let first = self.free;
        let mut last = first;
        for part in text.chunks(BLOCK_TEXT_BYTES) {
            last = self.free;
            let block = &mut self.blocks[last as usize];
            block.owners = 1;
            block.bytes[..part.len()].copy_from_slice(part);
            self.free = block.next;
            self.free_count -= 1;
        }
        self.blocks[last as usize].next = NONE;
        Some(Text { first, bytes: text.len() as u32 })
    }

    /// One more owner of a text.
    pub fn share(&mut self, text: Text) -> Text {
        if let Some(block) = self.blocks.get_mut(text.first as usize) {
            block.owners += 1;
        }
        text
    }

    /// An owner lets go of a text.
    pub fn release(&mut self, text: Text) {
        let Some(block) = self.blocks.get_mut(text.first as usize) else { return };
        block.owners -= 1;
        if block.owners > 0 {
            return;
        }
        let mut next = text.first;
        while let Some(block) = self.blocks.get_mut(next as usize) {
            let after = std::mem::replace(&mut block.next, self.free);
            self.free = next;
            self.free_count += 1;
            next = after;
        }
    }

    /// Appends a text to `out`.
    pub fn append(&self, text: Text, out: &mut Vec<u8>) {
        let (mut next, mut left) = (text.first, text.len());
        while let Some(block) = self.blocks.get(next as usize) {
            let part = left.min(BLOCK_TEXT_BYTES);
            out.extend_from_slice(&block.bytes[..part]);
            left -= part;
            next = block.next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(texts: &Texts, text: Text) -> Vec<u8> {
        let mut out = Vec::new();
        texts.append(text, &mut out);
        out
    }

    #[test]
    fn texts_of_all_lengths_come_back() {
        let mut texts = Texts::new(64 * 100);
        for length in [0, 1, 55, 56, 57, 112, 113, 1000] {
            let written: Vec<u8> = (0..length).map(|n| n as u8).collect();
            let text = texts.store(&written).unwrap();
            assert_eq!(read(&texts, text), written);
            texts.release(text);
        }
        assert_eq!(texts.free_count, 100);
    }

    #[test]
    fn a_full_pool_refuses_until_the_last_owner_has_let_go() {
        let mut texts = Texts::new(64 * 3);
        let long = texts.store(&[7; 120]).unwrap();
        assert_eq!(texts.store(b"x"), None);
        let shared = texts.share(long);
        texts.release(long);
        assert_eq!(texts.store(b"x"), None);
        assert_eq!(read(&texts, shared), [7; 120]);
        texts.release(shared);
        let (a, b) = (texts.store(&[1; 56]).unwrap(), texts.store(&[2; 112]).unwrap());
        assert_eq!((read(&texts, a), read(&texts, b)), (vec![1; 56], vec![2; 112]));
        assert_eq!(texts.store(b"x"), None);
    }
}
