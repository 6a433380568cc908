//! The checksum of SCTP (RFC 9260, appendix A), corrected for changed ports instead of computed
//! anew.
//!
//! A CRC is linear: what two packets of one length differ in, taken through the CRC without its
//! initial and final inversion, is what their checksums differ in. Bytes that are equal only move
//! the difference on, by x^8 each in GF(2)\[x\] modulo the polynomial, and x^8 to any power comes
//! from a table of squares. So the packet itself is never read.

/// Castagnoli's polynomial, reflected: the highest bit stands for x^0, the lowest for x^31.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// x^0.
const ONE: u32 = 1 << 31;

/// x^8, one byte.
const BYTE: u32 = ONE >> 8;

/// x^(8·2^k) for each bit k of a length that an IP packet can have.
const POWERS: [u32; 16] = {
    let mut powers = [BYTE; 16];
    let mut k = 1;
    while k < powers.len() {
        powers[k] = multiplied(powers[k - 1], powers[k - 1]);
        k += 1;
    }
    powers
};

/// A checksum field after the four bytes of the ports went from `old` to `new`.
///
/// All values are as they are on the wire. `length` is bytes from the start of the SCTP header to
/// the packet's end, at most 65,535. A field of zero stays zero: the device has yet to compute it
/// (the kernel's offload), or the peers agreed on none (RFC 9653).
#[inline(always)]
pub fn corrected(field: [u8; 4], old: [u8; 4], new: [u8; 4], length: u32) -> [u8; 4] {
    let checksum = u32::from_le_bytes(field);
    if checksum == 0 {
        return field;
    }
    // The four bytes at the packet's start, moved on by the whole length: by themselves, and by
    // the rest that follows them.
    let mut difference = u32::from_le_bytes(old) ^ u32::from_le_bytes(new);
    for (k, power) in POWERS.iter().enumerate() {
        // A mask, not a branch: the eBPF verifier would follow both ways of each.
        let set = 0u32.wrapping_sub((length >> k) & 1);
        difference = multiplied(difference, (power & set) | (ONE & !set));
    }
    (checksum ^ difference).to_le_bytes()
}

/// The product of two polynomials modulo the CRC's.
#[inline(always)]
const fn multiplied(a: u32, b: u32) -> u32 {
    let (mut a, mut b, mut product) = (a, b, 0);
    let mut step = 0;
    while step < u32::BITS {
        product ^= b & 0u32.wrapping_sub(a >> 31);
        b = (b >> 1) ^ (POLYNOMIAL & 0u32.wrapping_sub(b & 1));
        a <<= 1;
        step += 1;
    }
    product
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Where an SCTP header has its checksum.
    const FIELD: core::ops::Range<usize> = 8..12;

    /// A packet's checksum field, computed from all of it.
    fn whole(packet: &[u8]) -> [u8; 4] {
        let mut packet = packet.to_vec();
        packet[FIELD].fill(0);
        crc32c::crc32c(&packet).to_le_bytes()
    }

    #[test]
    fn a_field_of_zero_stays_zero() {
        assert_eq!(corrected([0; 4], [1; 4], [2; 4], 100), [0; 4]);
    }

    #[test]
    fn the_longest_packet_is_corrected_too() {
        let before = vec![0x5a; usize::from(u16::MAX)];
        let mut after = before.clone();
        after[..4].copy_from_slice(&[1, 2, 3, 4]);
        let field = corrected(whole(&before), [0x5a; 4], [1, 2, 3, 4], 65_535);
        assert_eq!(field, whole(&after));
    }

    proptest! {
        #[test]
        fn a_corrected_checksum_is_the_one_computed_anew(
            old: [u8; 4], new: [u8; 4], rest: u8, length in 12..=65_535_usize,
        ) {
            let mut before = vec![rest; length];
            before[..4].copy_from_slice(&old);
            let mut after = before.clone();
            after[..4].copy_from_slice(&new);
            let field = corrected(whole(&before), old, new, length as u32);
            prop_assert_eq!(field, whole(&after));
        }

        #[test]
        fn a_correction_back_undoes_one(
            field in any::<[u8; 4]>(), old: [u8; 4], new: [u8; 4], length in 12u32..=65_535,
        ) {
            let there = corrected(field, old, new, length);
            prop_assume!(there != [0; 4]);
            prop_assert_eq!(corrected(there, new, old, length), field);
        }
    }
}
