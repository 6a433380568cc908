//! Internet checksums, corrected for what changed (RFC 1624) instead of computed anew.

/// The one's complement difference between new bytes and the old ones in their place, in the
/// machine's byte order (RFC 1071, 2.B: the sum does not depend on it).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Difference(u32);

impl Difference {
    /// Nothing changed.
    pub const NONE: Self = Self(0);

    /// Adds the change from `old` to `new`, both at an even offset of what is summed.
    #[inline(always)]
    #[must_use]
    pub fn and<const N: usize>(self, old: &[u8; N], new: &[u8; N]) -> Self {
        let mut sum = self.0;
        for (old, new) in old.as_chunks::<2>().0.iter().zip(new.as_chunks::<2>().0) {
            sum += u32::from(!u16::from_ne_bytes(*old)) + u32::from(u16::from_ne_bytes(*new));
        }
        Self(sum)
    }

    /// The sum as the kernel's helpers take it.
    #[inline(always)]
    pub const fn sum(self) -> u32 {
        self.0
    }

    /// What a checksum field is that this difference took from one value to another.
    #[inline(always)]
    pub fn shows(self, before: [u8; 2], after: [u8; 2]) -> Field {
        let begun = fold(u32::from(u16::from_ne_bytes(before)) + fold_once(self.0));
        if before == after {
            Field::Unclear
        } else if self.apply(before) == after {
            Field::Complete
        } else if begun == after.map(|byte| !byte) {
            Field::Begun
        } else {
            Field::Unclear
        }
    }

    /// A checksum field corrected by this difference (RFC 1624, equation 3).
    #[inline(always)]
    pub fn apply(self, field: [u8; 2]) -> [u8; 2] {
        fold(u32::from(!u16::from_ne_bytes(field)) + fold_once(self.0))
    }
}

/// What a transport checksum's field is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// The checksum.
    Complete,
    /// The sum of the pseudo-header alone, which a device is to complete (`CHECKSUM_PARTIAL`).
    Begun,
    /// It cannot be told.
    Unclear,
}

/// A checksum under computation, over parts that begin at even offsets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u32);

impl Sum {
    /// Adds bytes; at most 64 KiB in all. A last odd byte counts as if a zero followed it.
    #[inline(always)]
    #[must_use]
    pub fn with<const N: usize>(self, bytes: &[u8; N]) -> Self {
        let (words, rest) = bytes.as_chunks::<2>();
        let mut sum = self.0;
        for word in words {
            sum += u32::from(u16::from_ne_bytes(*word));
        }
        if let [last] = rest {
            sum += u32::from(u16::from_ne_bytes([*last, 0]));
        }
        Self(sum)
    }

    /// The checksum field, in network order.
    #[inline(always)]
    pub fn finish(self) -> [u8; 2] {
        fold(fold_once(self.0))
    }
}

#[inline(always)]
const fn fold_once(sum: u32) -> u32 {
    (sum & 0xffff) + (sum >> 16)
}

#[inline(always)]
const fn fold(sum: u32) -> [u8; 2] {
    (!(fold_once(fold_once(sum)) as u16)).to_ne_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole(bytes: &[u8; 40]) -> [u8; 2] {
        Sum::default().with(bytes).finish()
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let sum = Sum::default()
            .with(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])
            .finish();
        assert_eq!(u16::from_be_bytes(sum), !0xddf2);
    }

    #[test]
    fn an_odd_last_byte_counts_as_the_high_one() {
        assert_eq!(
            Sum::default().with(&[0x12]).finish(),
            Sum::default().with(&[0x12, 0]).finish()
        );
    }

    proptest! {
        #[test]
        fn a_corrected_checksum_is_the_one_computed_anew(
            // Not all zero: the one sum with two representations, which no IP packet has.
            first in 1u8.., rest: [u8; 32], old: [u8; 4], new: [u8; 4],
        ) {
            let mut before = [0; 40];
            before[0] = first;
            before[4..36].copy_from_slice(&rest);
            before[36..].copy_from_slice(&old);
            let mut after = before;
            after[36..].copy_from_slice(&new);
            prop_assert_eq!(Difference::NONE.and(&old, &new).apply(whole(&before)), whole(&after));
        }

        #[test]
        fn a_change_shows_whether_a_device_is_to_complete_the_sum(
            first in 1u8.., old: [u8; 4], new: [u8; 4],
        ) {
            let mut before = [0; 40];
            before[0] = first;
            before[36..].copy_from_slice(&old);
            let mut after = before;
            after[36..].copy_from_slice(&new);
            let (before, after) = (whole(&before), whole(&after));
            let begun = |field: [u8; 2]| field.map(|byte| !byte);
            let (complete, partial) = if before == after {
                (Field::Unclear, Field::Unclear)
            } else {
                (Field::Complete, Field::Begun)
            };
            let change = Difference::NONE.and(&old, &new);
            prop_assert_eq!(change.shows(before, after), complete);
            prop_assert_eq!(change.shows(begun(before), begun(after)), partial);
        }
    }
}
