//! What other CPUs do between two steps of ours.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    ops::Deref,
};

use super::{
    CLIENT, Cast, Node, SECOND, casts,
    fence::{CLIENT_SLOT, DENIED_EGRESS, Fence, bump_all},
    wire,
};
use crate::{
    address::Address,
    affinity::Rank,
    endpoint::{Device, Endpoint},
    enforce::Standing,
    event::{Event, TallyKey},
    flow::{Direction, Flow, FlowKey},
    fragment::{FragmentKey, Ports},
    headers::{SYN, TCP, UDP},
    memory::MemoryTables,
    packet::Verdict,
    policy::{Guard, PeerKey, Rule, RuleKey, SourceKey},
    reason::Reason,
    service::{Affinity, AffinityKey, Backend, Cidr, Extent, FrontendKey, RangeKey, Target},
    tables::{FlowTable, NotInserted, Note, Rules, Tables},
};

/// What another CPU does.
type Act<'a> = Box<dyn FnOnce(&MemoryTables) + 'a>;

/// When it does that.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Moment {
    BeforeInsert(u32),
    BeforeLook(u32),
    AfterRule,
}

/// Tables on which another CPU acts at a moment of our way, once.
struct Raced<'a> {
    tables: &'a MemoryTables,
    inserts: Cell<u32>,
    looks: Cell<u32>,
    act: RefCell<Option<(Moment, Act<'a>)>>,
}

impl<'a> Raced<'a> {
    fn at(tables: &'a MemoryTables, moment: Moment, act: impl FnOnce(&MemoryTables) + 'a) -> Self {
        Self {
            tables,
            inserts: Cell::new(0),
            looks: Cell::new(0),
            act: RefCell::new(Some((moment, Box::new(act)))),
        }
    }

    fn act_if(&self, now: Moment) {
        let due = self.act.borrow_mut().take_if(|(moment, _)| *moment == now);
        if let Some((_, act)) = due {
            act(self.tables);
        }
    }
}

/// Counts one more.
fn next(count: &Cell<u32>) -> u32 {
    count.set(count.get() + 1);
    count.get()
}

impl Rules for Raced<'_> {
    fn identity(&self, address: &Address) -> u32 {
        self.tables.identity(address)
    }
    fn class(&self, key: &PeerKey) -> Option<u32> {
        self.tables.class(key)
    }
    fn rule(&self, key: &RuleKey) -> Option<Rule> {
        let rule = self.tables.rule(key);
        self.act_if(Moment::AfterRule);
        rule
    }
}

impl Tables for Raced<'_> {
    fn slot(&self, interface: u32) -> u32 {
        self.tables.slot(interface)
    }
    fn frontend(&self, key: &FrontendKey) -> Option<Target> {
        self.tables.frontend(key)
    }
    fn extent(&self, service: u32) -> Option<Extent> {
        self.tables.extent(service)
    }
    fn backend(&self, row: u32) -> Option<Backend> {
        self.tables.backend(row)
    }
    fn generation(&self, id: u32) -> u32 {
        self.tables.generation(id)
    }
    fn endpoint(&self, address: &Address) -> Option<Endpoint> {
        self.tables.endpoint(address)
    }
    fn device(&self, interface: u32) -> Option<Device> {
        self.tables.device(interface)
    }
    fn in_range(&self, key: &RangeKey) -> bool {
        self.tables.in_range(key)
    }
    fn cidr(&self, place: u32) -> Option<Cidr> {
        self.tables.cidr(place)
    }
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.tables.affinity(key)
    }
    fn set_affinity(&self, key: &AffinityKey, affinity: &Affinity) {
        self.tables.set_affinity(key, affinity);
    }
    fn row(&self, wanted: Rank, rows: (u32, u32)) -> Option<u32> {
        self.tables.row(wanted, rows)
    }
    fn fragment(&self, key: &FragmentKey) -> Option<Ports> {
        self.tables.fragment(key)
    }
    fn set_fragment(&self, key: &FragmentKey, ports: &Ports) {
        self.tables.set_fragment(key, ports);
    }
    fn standing(&self, slot: u32) -> Standing {
        self.tables.standing(slot)
    }
    fn guard(&self, slot: u32) -> Option<impl Deref<Target = Guard>> {
        self.tables.guard(slot)
    }
    fn is_source(&self, key: &SourceKey) -> bool {
        self.tables.is_source(key)
    }
    fn look<R>(&self, table: FlowTable, key: &FlowKey, at: impl FnOnce(&Flow) -> R) -> Option<R> {
        self.act_if(Moment::BeforeLook(next(&self.looks)));
        self.tables.look(table, key, at)
    }
    fn insert(&self, table: FlowTable, key: &FlowKey, flow: &Flow) -> Result<(), NotInserted> {
        self.act_if(Moment::BeforeInsert(next(&self.inserts)));
        self.tables.insert(table, key, flow)
    }
    fn note(&self, table: FlowTable, key: &FlowKey, note: Note) -> bool {
        self.tables.note(table, key, note)
    }
    fn remove(&self, table: FlowTable, key: &FlowKey) {
        self.tables.remove(table, key);
    }
    fn may_refuse(&self, now: u64) -> bool {
        self.tables.may_refuse(now)
    }
    fn count(&self, reason: Reason) {
        self.tables.count(reason);
    }
    fn may_report(&self, now: u64) -> bool {
        self.tables.may_report(now)
    }
    fn report(&self, event: &Event) -> bool {
        self.tables.report(event)
    }
    fn count_lost_event(&self) {
        self.tables.count_lost_event();
    }
    fn tally(&self, key: &TallyKey) {
        self.tables.tally(key);
    }
    fn now(&self) -> u64 {
        self.tables.now()
    }
    fn random(&self) -> u32 {
        self.tables.random()
    }
}

fn send<T: Tables>(tables: &T, bytes: &[u8]) -> wire::Seen {
    let (_, frame) = Node::cross(tables, CLIENT, Direction::FromPod, bytes, 0);
    wire::read(&frame.bytes)
}

/// Two CPUs open one flow with different choices: both packets, and all later ones, go one way, and
/// nothing of the loser stays.
#[test]
fn of_two_cpus_that_open_a_flow_the_faster_decides() {
    for Cast {
        client,
        service,
        one,
        two,
    } in casts()
    {
        for nth in [1, 2] {
            let mut node = Node::new();
            node.service(service, UDP, &[one, two]);
            node.tables.random.borrow_mut().extend([0, u32::MAX]);
            let query = wire::udp(client, service, b"?");
            let winner = RefCell::new(None);
            let raced = Raced::at(&node.tables, Moment::BeforeInsert(nth), |tables| {
                *winner.borrow_mut() = Some(send(tables, &query));
            });
            let loser = send(&raced, &query);
            let winner = winner.take().expect("the other CPU acted");
            assert_eq!(winner.to, two);
            assert_eq!(loser, winner, "the winner came before insert {nth}");
            assert_eq!(node.tables.half_open.borrow().len(), 2);
            assert_eq!(send(&node.tables, &query), winner);
        }
    }
}

/// The same with one choice: the reply's entry is shared, and must survive.
#[test]
fn two_cpus_with_one_choice_share_the_entries() {
    for Cast {
        client,
        service,
        one,
        ..
    } in casts()
    {
        for nth in [1, 2] {
            let mut node = Node::new();
            node.service(service, TCP, &[one]);
            let syn = wire::tcp(client, service, SYN);
            let raced = Raced::at(&node.tables, Moment::BeforeInsert(nth), |tables| {
                send(tables, &syn);
            });
            assert_eq!(send(&raced, &syn), wire::seen(client, one));
            assert_eq!(node.tables.half_open.borrow().len(), 2);
        }
    }
}

/// A flow is promoted while another looks whether its reply key is free: it is not.
#[test]
fn a_reply_key_that_was_promoted_meanwhile_is_taken() {
    for Cast {
        client,
        service,
        one,
        ..
    } in casts()
    {
        let mut other_service = service;
        other_service.set_port(81);
        let mut node = Node::new();
        node.service(service, UDP, &[one]);
        node.service(other_service, UDP, &[one]);
        let question = wire::udp(client, service, b"?");
        send(&node.tables, &question);
        node.to(CLIENT, &wire::udp(one, client, b"!"));
        let raced = Raced::at(&node.tables, Moment::BeforeInsert(1), |tables| {
            send(tables, &question);
        });
        let seen = send(&raced, &wire::udp(client, other_service, b"?"));
        assert_eq!(seen.to, one);
        assert_ne!(seen.from, client);
        assert_eq!(node.tables.flows.borrow().len(), 2);
        assert_eq!(node.tables.half_open.borrow().len(), 2);
    }
}

/// A flow is promoted while an answer of it looks for it, in one table and then in the other.
#[test]
fn a_flow_that_was_promoted_meanwhile_is_found() {
    for Cast {
        client,
        service,
        one,
        ..
    } in casts()
    {
        for nth in [1, 2, 3] {
            let mut node = Node::new();
            node.service(service, UDP, &[one]);
            let question = wire::udp(client, service, b"?");
            let answer = wire::udp(one, client, b"!");
            send(&node.tables, &question);
            node.to(CLIENT, &answer);
            let raced = Raced::at(&node.tables, Moment::BeforeLook(nth), |tables| {
                send(tables, &question);
            });
            let (_, frame) = Node::cross(&raced, CLIENT, Direction::ToPod, &answer, 0);
            let seen = wire::read(&frame.bytes);
            assert_eq!(seen, wire::seen(service, client), "before look {nth}");
        }
    }
}

/// Two flows want the key of one that is over at once: who has not claimed it leaves it alone, since
/// it may be the other's at any moment.
#[test]
fn the_key_of_a_flow_that_is_over_goes_to_who_claims_it() {
    for Cast {
        client,
        service,
        one,
        ..
    } in casts()
    {
        let mut node = Node::new();
        let services = [80, 81, 82].map(|port| SocketAddr::new(service.ip(), port));
        for service in services {
            node.service(service, UDP, &[one]);
        }
        let [old, first, second] = services.map(|service| wire::udp(client, service, b"?"));
        send(&node.tables, &old);
        node.to(CLIENT, &wire::udp(one, client, b"!"));
        send(&node.tables, &old);
        node.pass_time(1000 * SECOND);
        let over = node.tables.flows.borrow().clone();
        assert_eq!(send(&node.tables, &first).from, client);
        // As if the first had claimed the key, and not removed the old flow yet.
        node.tables.flows.replace(over.clone());
        assert_ne!(send(&node.tables, &second).from, client);
        assert_eq!(*node.tables.flows.borrow(), over);
    }
}

/// The memory of an entry is recycled for another flow between the look-up and the copy.
#[test]
fn a_recycled_entry_is_not_taken_for_the_flow() {
    for Cast {
        client,
        service,
        one,
        two,
    } in casts()
    {
        let mut node = Node::new();
        node.service(service, UDP, &[one]);
        send(&node.tables, &wire::udp(client, service, b"?"));
        let mut stranger = client;
        stranger.set_port(50_000);
        let recycled = {
            send(&node.tables, &wire::udp(stranger, two, b"?"));
            let half_open = node.tables.half_open.borrow();
            let (_, flow) = half_open
                .iter()
                .find(|(key, _)| key.tuple.source_port == 50_000)
                .expect("the stranger's flow");
            *flow
        };
        for (key, flow) in node.tables.half_open.borrow_mut().iter_mut() {
            if key.tuple.source_port == client.port() {
                *flow = recycled;
            }
        }
        let seen = send(&node.tables, &wire::udp(client, service, b"?"));
        assert_eq!(seen, wire::seen(client, one));
    }
}

/// The memory of a frontend likewise: its digest tells.
#[test]
fn frontends_have_digests_of_their_own() {
    let mut digests = std::collections::BTreeSet::new();
    for host in 0..64u8 {
        for port in 0..64u16 {
            for protocol in [TCP, UDP] {
                let address = crate::address::map_v4([10, 96, 0, host]);
                digests.insert(FrontendKey::new(address, 8000 + port, protocol).check());
            }
        }
    }
    assert!(digests.len() > 8100, "{} of 8192 differ", digests.len());
}

/// Changes policy as the agent does: data, then the epochs of endpoints.
fn forbid_everything(tables: &MemoryTables) {
    tables.rules.borrow_mut().clear();
    bump_all(tables);
}

fn verdict<T: Tables>(tables: &T, bytes: &[u8]) -> Verdict {
    Node::cross(tables, CLIENT, Direction::FromPod, bytes, 0).0
}

/// A client that may reach one peer, and its packet there.
fn allowed(cast: Cast) -> (Fence, Vec<u8>) {
    let Cast { client, one, .. } = cast;
    let mut fence = Fence::new(cast);
    fence.confine_client(one.ip());
    (fence, wire::udp(client, one, b"?"))
}

/// A flow opens while policy changes: its first packet may pass by what held before, no other does.
#[test]
fn a_change_while_a_flow_opens_is_seen_by_its_next_packet() {
    for cast in casts() {
        let (fence, packet) = allowed(cast);
        let raced = Raced::at(&fence.node.tables, Moment::AfterRule, forbid_everything);
        assert_eq!(verdict(&raced, &packet), Verdict::Pass);
        assert_eq!(fence.sends(&packet), DENIED_EGRESS);
    }
}

/// The same while an old flow is judged again.
#[test]
fn a_change_while_a_flow_is_judged_again_is_seen_by_its_next_packet() {
    for cast in casts() {
        let (fence, packet) = allowed(cast);
        fence.sends(&packet);
        fence.bump(CLIENT_SLOT);
        let raced = Raced::at(&fence.node.tables, Moment::AfterRule, forbid_everything);
        assert_eq!(verdict(&raced, &packet), Verdict::Pass);
        assert_eq!(fence.sends(&packet), DENIED_EGRESS);
    }
}

/// Of two CPUs that judge one flow the slower stores what it was judged by, which is older: the next
/// packet is judged once more, and no change is missed.
#[test]
fn a_slow_verdict_over_a_newer_one_is_judged_once_more() {
    for cast in casts() {
        let (fence, packet) = allowed(cast);
        fence.sends(&packet);
        fence.bump(CLIENT_SLOT);
        let raced = Raced::at(&fence.node.tables, Moment::AfterRule, |tables| {
            bump_all(tables);
            assert_eq!(verdict(tables, &packet), Verdict::Pass);
        });
        assert_eq!(verdict(&raced, &packet), Verdict::Pass);
        let epochs = |fence: &Fence| -> Vec<u32> {
            let flows = fence.node.tables.half_open.borrow();
            flows.values().map(|flow| flow.epoch).collect()
        };
        let slow = epochs(&fence);
        assert_eq!(verdict(&fence.node.tables, &packet), Verdict::Pass);
        assert_ne!(epochs(&fence), slow);
        forbid_everything(&fence.node.tables);
        assert_eq!(fence.sends(&packet), DENIED_EGRESS);
    }
}

/// Two CPUs open one flow, and policy changes in between: whoever loses adopts the entry of whoever
/// was faster, with the epoch that it was judged by.
#[test]
fn an_adopted_flow_is_as_old_as_its_verdict() {
    for cast in casts() {
        let (fence, packet) = allowed(cast);
        let raced = Raced::at(&fence.node.tables, Moment::BeforeInsert(1), |tables| {
            assert_eq!(verdict(tables, &packet), Verdict::Pass);
            forbid_everything(tables);
        });
        assert_eq!(verdict(&raced, &packet), Verdict::Pass);
        assert_eq!(fence.sends(&packet), DENIED_EGRESS);
    }
}
