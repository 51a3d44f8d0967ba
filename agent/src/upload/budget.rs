//! What a metered link may carry: a [`DayBudget`] of bytes, counted before each request and after
//! it. What is held back stays in the spool.

use codec::CLASSES;

use crate::day_budget::DayBudget;

/// Name of the state file, in the state folder.
pub const FILE: &str = "budget";

/// What a request costs beside its body at most: a handshake with two chains of certificates, the
/// heads, the answer.
const REQUEST_BYTES: u64 = 16 * 1024;

/// How large a body of each class may be now; 0: none.
pub(super) fn body_bytes_max(budget: &DayBudget) -> [usize; CLASSES] {
    budget.left().map(|left| match left {
        u64::MAX => usize::MAX,
        left => usize::try_from(left.saturating_sub(REQUEST_BYTES)).unwrap_or(usize::MAX),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_leaves_room_for_what_carries_it() {
        assert_eq!(body_bytes_max(&DayBudget::unlimited()), [usize::MAX; CLASSES]);
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(FILE);
        let mut budget = DayBudget::open(&file, 1 << 20, [1; 16], 0).unwrap();
        let request = REQUEST_BYTES as usize;
        assert_eq!(body_bytes_max(&budget), [(1 << 20) - request, (3 << 18) - request]);
        budget.spend((1 << 20) - REQUEST_BYTES).unwrap();
        assert_eq!(body_bytes_max(&budget), [0, 0]);
    }
}
