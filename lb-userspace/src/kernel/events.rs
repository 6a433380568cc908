//! What the programs tell of packets at pods' interfaces.

use anyhow::Result;
use aya::maps::{Map, MapData, RingBuf};
use lb_common::event::Event;

use super::{Pins, tables::open};

/// The ring of events.
pub struct Events {
    ring: RingBuf<MapData>,
}

impl Events {
    pub fn open(pins: &Pins) -> Result<Self> {
        let ring = RingBuf::try_from(Map::RingBuf(open(pins, "EVENTS")?))?;
        Ok(Self { ring })
    }

    /// Takes out all that are there.
    pub fn take(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(item) = self.ring.next() {
            events.extend(item.first_chunk().map(Event::from_bytes));
        }
        events
    }
}
