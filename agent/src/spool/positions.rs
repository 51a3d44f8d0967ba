//! How far the spool is settled, as its file of positions says.

use codec::CLASSES;

use super::shared::lane_of;

/// Bytes of the positions in the file: of each class segment number and offset.
pub(super) const POSITION_BYTES: usize = 16 * CLASSES;

/// Up to where each class is settled: segment number, and offset in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Positions([(u64, u64); CLASSES]);

impl Positions {
    pub(super) fn parse(bytes: &[u8; POSITION_BYTES]) -> Positions {
        let mut positions = Positions::default();
        for (position, bytes) in positions.0.iter_mut().zip(bytes.chunks_exact(16)) {
            let number = |bytes: Option<&[u8; 8]>| bytes.map_or(0, |b| u64::from_le_bytes(*b));
            *position = (number(bytes.first_chunk()), number(bytes.last_chunk()));
        }
        positions
    }

    pub(super) fn bytes(&self) -> [u8; POSITION_BYTES] {
        let mut bytes = [0; POSITION_BYTES];
        for ((number, end), bytes) in self.0.iter().zip(bytes.chunks_exact_mut(16)) {
            let (number_bytes, end_bytes) = bytes.split_at_mut(8);
            number_bytes.copy_from_slice(&number.to_le_bytes());
            end_bytes.copy_from_slice(&end.to_le_bytes());
        }
        bytes
    }

    /// The segments up to which the classes are settled.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u64> {
        self.0.into_iter().map(|(number, _)| number)
    }

    /// Everything of a class up to here is settled.
    pub(super) fn settle(&mut self, class: u8, number: u64, end: u64) {
        if let Some(position) = self.0.get_mut(lane_of(class)) {
            *position = (*position).max((number, end));
        }
    }

    /// Up to which offset frames of a class are settled in a segment.
    pub(super) fn settled_in(&self, class: u8, number: u64) -> u64 {
        let (settled, end) = self.0.get(lane_of(class)).copied().unwrap_or_default();
        match number.cmp(&settled) {
            std::cmp::Ordering::Less => u64::MAX,
            std::cmp::Ordering::Equal => end,
            std::cmp::Ordering::Greater => 0,
        }
    }
}
