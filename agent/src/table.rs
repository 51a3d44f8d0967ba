//! A table of bounded size: all its memory is taken when it is made. Entries stand in a slice, and
//! an index of small entries finds them, so that a large entry is not spread over the spare room
//! that a hash table needs. Full: [`Table::insert`] gives the value back. Pure.

use std::collections::HashMap;
use std::hash::Hash;

/// Bytes that the standard library's hash map takes for so many entries: at most seven of eight
/// places are used, their number is a power of two, and each has a byte of its own beside.
pub fn hash_map_bytes<K, V>(entries: usize) -> usize {
    const GROUP_BYTES: usize = 16;
    let places = match entries {
        0 => return 0,
        1..=3 => 4,
        4..=7 => 8,
        _ => (entries * 8 / 7).next_power_of_two(),
    };
    places * (size_of::<(K, V)>() + 1) + 2 * GROUP_BYTES
}

/// The table.
#[derive(Debug)]
pub struct Table<K, V> {
    index: HashMap<K, u32>,
    slots: Vec<Option<(K, V)>>,
    free: Vec<u32>,
    entries_max: usize,
}

impl<K: Copy + Eq + Hash, V> Table<K, V> {
    /// A table for at most so many entries.
    pub fn new(entries_max: usize) -> Table<K, V> {
        Table {
            // With entries coming and going, a hash table that is at most half full makes room
            // in place, and never grows.
            index: HashMap::with_capacity(entries_max * 2),
            slots: Vec::with_capacity(entries_max),
            free: Vec::with_capacity(entries_max),
            entries_max,
        }
    }

    /// Bytes that a table for so many entries takes.
    pub fn memory_bytes(entries_max: usize) -> usize {
        hash_map_bytes::<K, u32>(entries_max * 2)
            + entries_max * (size_of::<Option<(K, V)>>() + size_of::<u32>())
    }

    /// Entries.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Whether another key finds no place.
    pub fn is_full(&self) -> bool {
        self.len() >= self.entries_max
    }

    /// Whether there is an entry for a key.
    pub fn contains(&self, key: &K) -> bool {
        self.index.contains_key(key)
    }

    /// The value of a key.
    pub fn get(&self, key: &K) -> Option<&V> {
        let slot = *self.index.get(key)?;
        self.slots.get(slot as usize)?.as_ref().map(|(_, value)| value)
    }

    /// The value of a key.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let slot = *self.index.get(key)?;
        self.slots.get_mut(slot as usize)?.as_mut().map(|(_, value)| value)
    }

    /// Enters a value under a key that has none.
    ///
    /// # Errors
    /// The value, if the table is full or the key has one.
    pub fn insert(&mut self, key: K, value: V) -> Result<(), V> {
        if self.is_full() || self.contains(&key) {
            return Err(value);
        }
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(None);
                self.slots.len() as u32 - 1
            }
        };
        self.slots[slot as usize] = Some((key, value));
        self.index.insert(key, slot);
        Ok(())
    }

    /// Takes a value out.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let slot = self.index.remove(key)?;
        self.free.push(slot);
        self.slots.get_mut(slot as usize)?.take().map(|(_, value)| value)
    }

    /// Places in use or used before.
    pub fn places(&self) -> usize {
        self.slots.len()
    }

    /// The entry in a place, if one is there.
    pub fn at_mut(&mut self, place: usize) -> Option<(&K, &mut V)> {
        self.slots.get_mut(place)?.as_mut().map(|(key, value)| (&*key, value))
    }

    /// All entries, in the order of their places.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.slots.iter().flatten().map(|(key, value)| (key, value))
    }

    /// All values, in the order of their places.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.slots.iter_mut().flatten().map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_and_go_within_the_bound() {
        let mut table = Table::new(3);
        for round in 0..100_u32 {
            for key in 0..3 {
                assert_eq!(table.insert(round + key, key), Ok(()));
            }
            assert_eq!(table.insert(round + 3, 3), Err(3));
            assert_eq!(table.iter().count(), 3);
            for key in 0..3 {
                assert_eq!(table.remove(&(round + key)), Some(key));
            }
        }
        assert!(table.is_empty() && table.slots.len() == 3);
    }

    #[test]
    fn a_key_has_one_value() {
        let mut table = Table::new(2);
        assert_eq!((table.insert(1, 'a'), table.insert(1, 'b')), (Ok(()), Err('b')));
        assert_eq!(table.get(&1), Some(&'a'));
    }
}
