//! Expiring flows. Userspace finds the candidates; only the kernel, which sees the flows as they
//! are now, removes one.

use crate::{
    flow::{Flow, FlowKey},
    packet::{ETHERNET, Packet},
    scratch::Scratch,
    tables::{FlowTable, Tables},
};

/// Flow keys that one run takes.
pub const BATCH: usize = 64;

/// Removes those two-way flows whose keys the packet lists, one after another behind an Ethernet
/// header, whose both entries are expired.
#[inline(always)]
pub fn expire<P: Packet, T: Tables>(packet: &P, tables: &T, scratch: &mut Scratch) {
    for place in 0..BATCH {
        if !read(packet, scratch, place) {
            return;
        }
        expire_one(tables, scratch);
    }
}

/// Reads the key at a place of the list into the scratch; false past the end.
#[inline(always)]
pub fn read<P: Packet>(packet: &P, scratch: &mut Scratch, place: usize) -> bool {
    let offset = ETHERNET + place * FlowKey::SIZE;
    scratch.key.read(packet, offset).is_some()
}

/// Removes the flow of `scratch.key` if both of its entries are expired.
#[inline(always)]
pub fn expire_one<T: Tables>(tables: &T, scratch: &mut Scratch) {
    let now = tables.now();
    let protocol = scratch.key.protocol;
    let expired = |flow: &Flow| flow.expired(FlowTable::Flows, protocol, now);
    let copy = |flow: &Flow| scratch.flow = *flow;
    if tables.look(FlowTable::Flows, &scratch.key, copy).is_none() || !expired(&scratch.flow) {
        return;
    }
    scratch.reflect();
    if tables.look(FlowTable::Flows, &scratch.twin_key, expired) != Some(false) {
        tables.remove(FlowTable::Flows, &scratch.key);
        tables.remove(FlowTable::Flows, &scratch.twin_key);
    }
}
