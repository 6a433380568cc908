//! What policy costs a packet at a pod's interface.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddrV4,
};

use anyhow::Result;
use lb_common::{
    address::from_ip,
    flow::Direction,
    headers::TCP,
    policy::{Guard, PeerKey, Rule, RuleKey},
};

use crate::{
    measure::{Contender, Table, Unit, contest},
    programs::{Programs, enter_namespace},
    tc::{
        CLIENT, EPOCH, NEIGHBOUR, OWN, REPEAT, ROUNDS, SERVICE, SLOT, STRANGER, circle, first, pod,
        tcp,
    },
};

/// Rules of rule sets, by whose number the sets are known.
const SIZES: [u32; 3] = [1, 100, 10_000];
/// Where the classes of the peer begin: one for each rule set.
const CLASSES: u32 = 1 << 20;
/// The identity of the peer.
const IDENTITY: u32 = 1;

pub fn run() -> Result<Vec<Table>> {
    enter_namespace(OWN.into(), NEIGHBOUR.into())?;
    let mut ours = Programs::ours(&["pod_egress"])?;
    pod(&mut ours)?;
    circle(&mut ours, SLOT, Direction::FromPod)?;
    rule_sets(&mut ours)?;
    let ours = RefCell::new(ours);

    let bound = Guard {
        v4: from_ip((*CLIENT.ip()).into()),
        mac: [2, 0, 0, 0, 0, 1],
        epoch: EPOCH,
        bound: 1,
        ..Guard::NONE
    };
    let isolated = |egress| Guard { egress, ..bound };
    let with = &|guard: Guard, packet: &[u8], repeat| {
        ours.borrow_mut().set("GUARDS", SLOT, &guard)?;
        ours.borrow().run("pod_egress", packet, repeat)
    };

    let known = &tcp(CLIENT, SERVICE, false)[..];
    let free = Guard::NONE;
    let established = contest(
        "verdicts: a packet of an established flow",
        Unit::Nanoseconds,
        ROUNDS,
        [
            ("a pod of which nothing is known", free),
            ("bound to its addresses", bound),
            ("bound, and isolated by policy", isolated(SIZES[0])),
        ]
        .map(|(name, guard)| Contender::new(name, move || with(guard, known, REPEAT)))
        .into(),
    )?;

    let ports = Cell::new(1024);
    let new = &|guard| first(&ports, STRANGER, |packet| with(guard, packet, 1));
    let mut contenders = vec![Contender::new("no policy", || new(bound))];
    for size in SIZES {
        let name = format!("a policy of {size} rules");
        contenders.push(Contender::new(name, move || new(isolated(size))));
    }
    let opened = contest(
        "verdicts: the first packet of a flow, each by a system call",
        Unit::Nanoseconds,
        ROUNDS,
        contenders,
    )?;
    Ok(vec![established, opened])
}

/// Rule sets that let the peer be reached on ports from its own on, one a rule.
fn rule_sets(programs: &mut Programs) -> Result<()> {
    let allow = Rule {
        rule: 1,
        audited_rule: 1,
        ..Rule::ALLOW
    };
    let peer = |address: SocketAddrV4| from_ip((*address.ip()).into());
    programs.put_prefix("IDENTITIES", 128, &peer(STRANGER), &IDENTITY)?;
    for rule_set in SIZES {
        let identity = IDENTITY;
        let class = CLASSES + rule_set;
        programs.put("PEERS", &PeerKey { rule_set, identity }, &class)?;
        for rule in 0..rule_set {
            let key = RuleKey::new(class, TCP, STRANGER.port() + rule as u16);
            programs.put_prefix("RULES", RuleKey::PORT_BITS, &key, &allow)?;
        }
    }
    Ok(())
}
