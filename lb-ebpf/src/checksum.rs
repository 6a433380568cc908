//! SCTP's checksum in a function of its own to the verifier, which would follow its hundreds of steps
//! anew on every way that leads there.
#![expect(
    unsafe_code,
    reason = "functions that the verifier knows are named by symbol"
)]

use lb_common::crc32c;

#[inline(always)]
pub fn corrected(field: [u8; 4], old: [u8; 4], new: [u8; 4], length: u32) -> [u8; 4] {
    let [field, old, new] = [field, old, new].map(u32::from_ne_bytes);
    corrected_crc(field, old, new, length).to_ne_bytes()
}

/// The arguments are bytes in the order in which they are on the wire, but for the length.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn corrected_crc(field: u32, old: u32, new: u32, length: u32) -> u32 {
    let [field, old, new] = [field, old, new].map(u32::to_ne_bytes);
    u32::from_ne_bytes(crc32c::corrected(field, old, new, length))
}
