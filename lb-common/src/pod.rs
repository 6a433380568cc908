//! Lets aya copy table entries as bytes.
#![expect(unsafe_code, reason = "aya::Pod is an unsafe marker trait")]

use crate::{
    address::Address,
    endpoint::{Bucket, Device, DeviceKey, Endpoint, EndpointKey, Interface},
    event::{Event, TallyKey},
    flow::{Flow, FlowKey, Tuple},
    fragment::{FragmentKey, Ports},
    policy::{Guard, PeerKey, Rule, RuleKey, SourceKey},
    service::{Affinity, AffinityKey, Backend, Cidr, Extent, Frontend, FrontendKey, RangeKey},
    socket::{Settings, Socket, SocketKey},
};

macro_rules! plain_data {
    ($($type:ty),+ $(,)?) => {
        $(
            // SAFETY: `repr(C)` of integers and byte arrays with every pad byte a field, so any
            // bytes are a value and a value has no uninitialised bytes.
            unsafe impl aya::Pod for $type {}
        )+
    };
}

plain_data!(
    Address,
    FrontendKey,
    Frontend,
    Extent,
    Backend,
    RangeKey,
    Cidr,
    AffinityKey,
    Affinity,
    Interface,
    Bucket,
    EndpointKey,
    Endpoint,
    DeviceKey,
    Device,
    Tuple,
    FlowKey,
    Flow,
    Settings,
    SocketKey,
    Socket,
    FragmentKey,
    Ports,
    Guard,
    PeerKey,
    RuleKey,
    Rule,
    SourceKey,
    TallyKey,
    Event,
);
