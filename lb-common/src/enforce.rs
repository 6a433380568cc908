//! Policy on the packet path: judging flows when they open, and again when what was decided may not
//! hold any longer.
//!
//! A flow is judged as its opener sends it, whichever of its packets is at hand: a pod's egress rules
//! decide about the flows that it opens, with the address and the port that they have after
//! translation, and its ingress rules about those that reach it. What comes back belongs to a flow
//! and is not judged.

use crate::{
    address::Address,
    flow::{Direction, Flow, FlowKey, Judging, Tuple},
    headers::has_ports,
    policy::{CLOSED, OPEN, PeerKey, Rule, RuleKey},
    reason::Reason,
    scratch::Scratch,
    tables::{Rules, Tables},
};

/// What holds for an endpoint, as one packet sees it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Rule sets for what the pod receives and sends.
    pub ingress: u32,
    pub egress: u32,
    /// Read before the rule sets.
    pub epoch: u32,
    /// Whether the pod may only send from its own addresses.
    pub bound: bool,
}

impl Standing {
    /// Of what is no endpoint.
    pub const NONE: Self = Self {
        ingress: OPEN,
        egress: OPEN,
        epoch: 0,
        bound: false,
    };
    /// Of an endpoint that is not to be found.
    pub const CLOSED: Self = Self {
        ingress: CLOSED,
        egress: CLOSED,
        epoch: 0,
        bound: true,
    };

    /// Whether policy restricts what crosses the pod's interface in this direction.
    #[inline(always)]
    pub const fn isolates(&self, direction: Direction) -> bool {
        match direction {
            Direction::FromPod => self.egress != OPEN,
            Direction::ToPod => self.ingress != OPEN,
            Direction::FromWire | Direction::ToWire => false,
        }
    }

    /// Whether policy restricts anything.
    #[inline(always)]
    pub const fn is_isolated(&self) -> bool {
        self.egress | self.ingress != OPEN
    }
}

/// What policy says of a flow, and which of the pod's two rule sets says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ruling {
    pub rule: Rule,
    /// Whether it is the rule set for what the pod sends.
    pub egress: bool,
}

impl Ruling {
    /// Of what nobody has asked policy about.
    pub const NONE: Self = Self {
        rule: Rule::ALLOW,
        egress: false,
    };

    /// The direction in which the flow crosses the pod's interface when it opens.
    pub const fn direction(&self) -> Direction {
        if self.egress {
            Direction::FromPod
        } else {
            Direction::ToPod
        }
    }

    /// Why a packet is dropped that this does not allow.
    pub const fn reason(&self) -> Reason {
        if self.egress {
            Reason::EgressDenied
        } else {
            Reason::IngressDenied
        }
    }
}

/// Whether a rule set lets a flow through: to this port from or to this peer.
#[inline(always)]
pub fn rule<T: Rules>(tables: &T, rule_set: u32, peer: &Address, protocol: u8, port: u16) -> Rule {
    match rule_set {
        OPEN => Rule::ALLOW,
        CLOSED => Rule::DENY,
        _ => {
            let identity = tables.identity(peer);
            let class = tables.class(&PeerKey { rule_set, identity });
            let key = RuleKey::new(class.unwrap_or(rule_set), protocol, port);
            tables.rule(&key).unwrap_or(Rule::DENY)
        }
    }
}

/// Which rule sets have a say about a flow, and on which ports.
#[derive(Clone, Copy, Debug)]
struct Say {
    egress: bool,
    ingress: bool,
    /// Host order; the port that the pod would send to, and the one that it would be reached on.
    egress_port: u16,
    ingress_port: u16,
}

/// Who has a say about the flow of this entry; `opener`: the entry is the opener's.
#[inline(always)]
fn say(key: &FlowKey, flow: &Flow, opener: bool) -> Say {
    let from_pod = key.direction == Direction::FromPod as u8;
    let Tuple {
        source_port,
        destination_port,
        ..
    } = *outside(key, flow);
    let (theirs, own) = if from_pod {
        (destination_port, source_port)
    } else {
        (source_port, destination_port)
    };
    if reaches_itself(key, flow) {
        // One port, that of the server, who answers with what it was sent.
        let port = if opener {
            flow.to.destination_port
        } else {
            key.tuple.source_port
        };
        return Say {
            egress: true,
            ingress: true,
            egress_port: port,
            ingress_port: port,
        };
    }
    let either = flow.judging == Judging::Either as u8;
    Say {
        egress: either || from_pod == opener,
        ingress: either || from_pod != opener,
        egress_port: theirs,
        ingress_port: own,
    }
}

/// Whether a pod has opened the flow to itself, through a service.
#[inline(always)]
const fn reaches_itself(key: &FlowKey, flow: &Flow) -> bool {
    key.direction == Direction::FromPod as u8 && flow.twin == Direction::FromPod as u8
}

/// The packet as it is between the pod and its peer, none of whom sees a service.
#[inline(always)]
const fn outside<'a>(key: &'a FlowKey, flow: &'a Flow) -> &'a Tuple {
    if key.direction == Direction::FromPod as u8 {
        &flow.to
    } else {
        &key.tuple
    }
}

/// The other end of a flow; a pod that reaches itself is its own peer.
#[inline(always)]
const fn peer<'a>(key: &'a FlowKey, flow: &'a Flow) -> &'a Address {
    if key.direction == Direction::FromPod as u8 {
        &flow.to.destination
    } else {
        &key.tuple.source
    }
}

/// Whether policy has anything to say about the flow of `scratch`.
#[inline(always)]
pub fn concerns(scratch: &Scratch) -> bool {
    let Scratch {
        key,
        flow,
        standing,
        ..
    } = scratch;
    if !standing.is_isolated() || flow.judging == Judging::Nobody as u8 {
        return false;
    }
    let say = say(key, flow, scratch.is_opener());
    say.egress && standing.egress != OPEN || say.ingress && standing.ingress != OPEN
}

/// Whether what was decided of a flow that was found may not hold any longer.
#[inline(always)]
pub fn is_stale(scratch: &Scratch) -> bool {
    let Scratch { flow, standing, .. } = scratch;
    (flow.epoch == 0 || flow.epoch != standing.epoch) && concerns(scratch)
}

/// Judges the flow of `scratch`, into `scratch.ruling`.
#[inline(always)]
pub fn judge<T: Tables>(tables: &T, scratch: &mut Scratch) {
    let opener = scratch.is_opener();
    let Scratch {
        key,
        flow,
        standing,
        ruling,
        ..
    } = scratch;
    let peer = peer(key, flow);
    let protocol = key.protocol;
    let port = |port| if has_ports(protocol) { port } else { 0 };
    let say = say(key, flow, opener);
    let either = flow.judging == Judging::Either as u8 && !reaches_itself(key, flow);
    for (egress, asked, rule_set, number) in [
        (true, say.egress, standing.egress, say.egress_port),
        (false, say.ingress, standing.ingress, say.ingress_port),
    ] {
        if !asked {
            continue;
        }
        ruling.rule = rule(tables, rule_set, peer, protocol, port(number));
        ruling.egress = egress;
        // Of two that are asked the first that decides it is the one that is told of.
        if (ruling.rule.allow == 1) == either {
            break;
        }
    }
}

/// Names the flow of `scratch` in its event: as its opener sends it, between the pod and its peer.
#[inline(always)]
pub fn name_flow(scratch: &mut Scratch) {
    let opener = scratch.is_opener();
    let Scratch {
        key, flow, event, ..
    } = scratch;
    let packet = outside(key, flow);
    if opener {
        event.tuple = *packet;
    } else {
        event.tuple.reverse(packet);
    }
    if reaches_itself(key, flow) {
        event.tuple.source = flow.to.destination;
    }
}
