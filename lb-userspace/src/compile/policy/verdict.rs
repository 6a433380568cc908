//! Who has the last word on each port: tiers and their order, settled once and for all.
//!
//! The order is that of network-policy-api: the Admin tier, then NetworkPolicies, which decide
//! everything for the pods that they isolate, then the Baseline tier; what nobody decides passes.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::policy::{NO_RULE, Rule, RuleKey};

use crate::world::{
    Protocol,
    policy::{Action, Tier},
};

/// What one rule says about one peer.
#[derive(Clone, Debug)]
pub struct Claim {
    pub tier: Tier,
    pub action: Action,
    /// It is not enforced.
    pub audited: bool,
    /// Its number.
    pub rule: u32,
    /// `None`: everything, with ports or without.
    pub spans: Option<Vec<Span>>,
}

/// Destination ports of a protocol, the first and the last among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    pub protocol: Protocol,
    pub first: u16,
    pub last: u16,
}

/// The rules by which pods are isolated: the number of the rule that nothing else passes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Isolation {
    /// By a policy that is enforced.
    pub enforced: Option<u32>,
    /// By any policy.
    pub audited: Option<u32>,
}

/// An entry of a class of rules in `RULES`, without its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// IANA protocol number; 0 where the entry speaks of all.
    pub protocol: u8,
    /// Host order; 0 where the entry speaks of all.
    pub port: u16,
    /// Leading bits of [`RuleKey`] that count.
    pub bits: u32,
    pub rule: Rule,
}

impl Entry {
    pub fn key(&self, class: u32) -> RuleKey {
        RuleKey::new(class, self.protocol, self.port)
    }
}

/// The entries by whose longest prefix every packet has the verdict that the claims, in order of
/// precedence, give it.
pub fn entries(claims: &[Claim], isolation: Isolation) -> Vec<Entry> {
    let enforced = settle(claims.iter().filter(|it| !it.audited), isolation.enforced);
    let audited =
        if claims.iter().any(|claim| claim.audited) || isolation.audited != isolation.enforced {
            settle(claims.iter(), isolation.audited)
        } else {
            enforced.clone()
        };
    let segments: Vec<_> = (0..SPACES)
        .map(|space| overlay(&enforced.0[space], &audited.0[space]))
        .collect();
    let base = segments[OTHERS][0].rule;
    let mut entries = vec![Entry {
        protocol: 0,
        port: 0,
        bits: RuleKey::CLASS_BITS,
        rule: base,
    }];
    for (protocol, segments) in Protocol::ALL.into_iter().zip(&segments) {
        entries.extend(protocol_entries(protocol, segments, base));
    }
    entries
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Verdict {
    rule: u32,
    allow: bool,
}

/// Spaces of ports: one of each protocol of [`Protocol::ALL`], and one for packets without ports.
const SPACES: usize = Protocol::ALL.len() + 1;
const OTHERS: usize = Protocol::ALL.len();

/// Ports that nobody has decided on, in each space: the last of each span by the first.
struct Undecided([BTreeMap<u16, u16>; SPACES]);

impl Undecided {
    fn all() -> Self {
        Self(std::array::from_fn(|_| [(0, u16::MAX)].into()))
    }

    fn none() -> Self {
        Self(Default::default())
    }

    /// Takes out what a rule speaks of.
    fn take(&mut self, spans: Option<&[Span]>) -> Vec<(usize, u16, u16)> {
        let Some(spans) = spans else {
            return (0..SPACES)
                .flat_map(|space| {
                    let taken = std::mem::take(&mut self.0[space]);
                    taken.into_iter().map(move |(a, b)| (space, a, b))
                })
                .collect();
        };
        let mut taken = Vec::new();
        for span in spans {
            let space = Protocol::ALL.iter().position(|it| *it == span.protocol);
            if let Some(space) = space {
                self.take_span(space, span.first, span.last, &mut taken);
            }
        }
        taken
    }

    fn take_span(
        &mut self,
        space: usize,
        first: u16,
        last: u16,
        taken: &mut Vec<(usize, u16, u16)>,
    ) {
        let undecided = &mut self.0[space];
        let before = undecided.range(..first).next_back();
        let begin = before.filter(|(_, end)| **end >= first).map(|(a, _)| *a);
        let begin = begin.unwrap_or(first);
        let hit: Vec<_> = undecided
            .range(begin..=last)
            .map(|(a, b)| (*a, *b))
            .collect();
        for (a, b) in hit {
            undecided.remove(&a);
            if a < first {
                undecided.insert(a, first - 1);
            }
            if b > last {
                undecided.insert(last + 1, b);
            }
            taken.push((space, a.max(first), b.min(last)));
        }
    }

    fn add(&mut self, spans: Vec<(usize, u16, u16)>) {
        for (space, first, last) in spans {
            self.0[space].insert(first, last);
        }
    }
}

/// Who decided, in each space: the last port of each span and the verdict, by the first.
#[derive(Clone, Default)]
struct Settled([BTreeMap<u16, (u16, Verdict)>; SPACES]);

impl Settled {
    fn put(&mut self, spans: Vec<(usize, u16, u16)>, verdict: Verdict) {
        for (space, first, last) in spans {
            self.0[space].insert(first, (last, verdict));
        }
    }
}

fn settle<'a>(claims: impl Iterator<Item = &'a Claim> + Clone, isolation: Option<u32>) -> Settled {
    let of = |tier| claims.clone().filter(move |claim| claim.tier == tier);
    let verdict = |rule, allow| Verdict { rule, allow };
    let (mut undecided, mut passed) = (Undecided::all(), Undecided::none());
    let mut settled = Settled::default();
    for claim in of(Tier::Admin) {
        let taken = undecided.take(claim.spans.as_deref());
        match claim.action {
            Action::Accept => settled.put(taken, verdict(claim.rule, true)),
            Action::Deny => settled.put(taken, verdict(claim.rule, false)),
            Action::Pass => passed.add(taken),
        }
    }
    undecided.add(passed.take(None));
    if let Some(isolation) = isolation {
        for claim in of(Tier::NetworkPolicy) {
            let taken = undecided.take(claim.spans.as_deref());
            settled.put(taken, verdict(claim.rule, true));
        }
        settled.put(undecided.take(None), verdict(isolation, false));
        return settled;
    }
    for claim in of(Tier::Baseline) {
        let taken = undecided.take(claim.spans.as_deref());
        settled.put(taken, verdict(claim.rule, claim.action != Action::Deny));
    }
    settled.put(undecided.take(None), verdict(NO_RULE, true));
    settled
}

/// Ports with one verdict.
#[derive(Clone, Copy, Debug)]
struct Segment {
    first: u16,
    last: u16,
    rule: Rule,
}

/// All ports with both verdicts, neighbours that agree as one.
fn overlay(
    enforced: &BTreeMap<u16, (u16, Verdict)>,
    audited: &BTreeMap<u16, (u16, Verdict)>,
) -> Vec<Segment> {
    let at = |settled: &BTreeMap<u16, (u16, Verdict)>, port: u16| {
        let found = settled.range(..=port).next_back();
        found.map_or(
            Verdict {
                rule: NO_RULE,
                allow: false,
            },
            |(_, (_, verdict))| *verdict,
        )
    };
    let starts: BTreeSet<u16> = enforced.keys().chain(audited.keys()).copied().collect();
    let mut segments: Vec<Segment> = Vec::new();
    for first in starts {
        let (one, other) = (at(enforced, first), at(audited, first));
        let rule = Rule {
            rule: one.rule,
            audited_rule: other.rule,
            allow: one.allow.into(),
            audited_allow: other.allow.into(),
            _pad: [0; 2],
        };
        if let Some(before) = segments.last_mut() {
            before.last = first - 1;
            if before.rule == rule {
                continue;
            }
        }
        segments.push(Segment {
            first,
            last: u16::MAX,
            rule,
        });
    }
    if let Some(last) = segments.last_mut() {
        last.last = u16::MAX;
    }
    segments
}

/// What most ports have is said of the protocol, the rest of ranges.
fn protocol_entries(protocol: Protocol, segments: &[Segment], base: Rule) -> Vec<Entry> {
    let mut sizes: BTreeMap<Rule, u32> = BTreeMap::new();
    for segment in segments {
        let size = u32::from(segment.last - segment.first) + 1;
        *sizes.entry(segment.rule).or_default() += size;
    }
    let most = sizes.into_iter().max_by_key(|(_, size)| *size);
    let most = most.map_or(base, |(rule, _)| rule);
    let protocol = protocol.number();
    let whole = (most != base).then_some(Entry {
        protocol,
        port: 0,
        bits: RuleKey::PROTOCOL_BITS,
        rule: most,
    });
    let others = segments.iter().filter(|segment| segment.rule != most);
    let parts = others.flat_map(|&Segment { first, last, rule }| {
        prefixes(first, last).map(move |(port, length)| Entry {
            protocol,
            port,
            bits: RuleKey::PROTOCOL_BITS + length,
            rule,
        })
    });
    whole.into_iter().chain(parts).collect()
}

/// The fewest prefixes that cover a range of ports, with their lengths in bits.
fn prefixes(first: u16, last: u16) -> impl Iterator<Item = (u16, u32)> {
    let (mut next, end) = (u32::from(first), u32::from(last) + 1);
    std::iter::from_fn(move || {
        let left = end.checked_sub(next).filter(|left| *left > 0)?;
        let aligned = if next == 0 { 16 } else { next.trailing_zeros() };
        let size = aligned.min(left.ilog2());
        let port = u16::try_from(next).ok()?;
        next += 1 << size;
        Some((port, 16 - size))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The verdict of the longest prefix.
    fn lookup(entries: &[Entry], protocol: u8, port: u16) -> Rule {
        let matching = entries.iter().filter(|entry| {
            let bits = entry.bits - RuleKey::CLASS_BITS;
            let of_protocol = bits == 0 || entry.protocol == protocol;
            let port_bits = bits.saturating_sub(8);
            let mask = u16::MAX.checked_shl(16 - port_bits).unwrap_or(0);
            of_protocol && entry.port == port & mask
        });
        matching
            .max_by_key(|entry| entry.bits)
            .expect("an entry")
            .rule
    }

    /// What the claims say of one packet, asked one after the other.
    fn asked(claims: &[Claim], isolated: Option<u32>, protocol: u8, port: u16) -> (u32, bool) {
        let matches = |claim: &Claim| {
            claim.spans.as_ref().is_none_or(|spans| {
                spans.iter().any(|span| {
                    span.protocol.number() == protocol && (span.first..=span.last).contains(&port)
                })
            })
        };
        let first = |tier| {
            claims
                .iter()
                .find(|claim| claim.tier == tier && matches(claim))
        };
        match first(Tier::Admin).map(|claim| (claim.rule, claim.action)) {
            Some((rule, Action::Accept)) => return (rule, true),
            Some((rule, Action::Deny)) => return (rule, false),
            Some((_, Action::Pass)) | None => {}
        }
        if let Some(isolated) = isolated {
            let first = first(Tier::NetworkPolicy);
            return first.map_or((isolated, false), |claim| (claim.rule, true));
        }
        match first(Tier::Baseline) {
            Some(claim) => (claim.rule, claim.action != Action::Deny),
            None => (NO_RULE, true),
        }
    }

    const EDGES: [u16; 12] = [0, 1, 2, 79, 80, 81, 127, 128, 8080, 32767, 32768, u16::MAX];

    fn claims() -> impl Strategy<Value = Vec<Claim>> {
        let port = || prop::sample::select(EDGES.to_vec());
        let protocol = prop::sample::select(Protocol::ALL.to_vec());
        let span = (protocol, port(), port()).prop_map(|(protocol, one, other)| Span {
            protocol,
            first: one.min(other),
            last: one.max(other),
        });
        let tier = prop::sample::select(vec![Tier::Admin, Tier::NetworkPolicy, Tier::Baseline]);
        let action = prop::sample::select(vec![Action::Accept, Action::Deny, Action::Pass]);
        let spans = prop::option::of(prop::collection::vec(span, 0..4));
        let claim = (tier, action, prop::bool::weighted(0.2), spans);
        prop::collection::vec(claim, 0..8).prop_map(|claims| {
            let claims = claims.into_iter().enumerate();
            claims
                .map(|(index, (tier, action, audited, spans))| Claim {
                    tier,
                    action,
                    audited,
                    rule: 10 + u32::try_from(index).expect("few"),
                    spans,
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn the_longest_prefix_says_what_the_rules_say(
            claims in claims(),
            enforced in prop::option::weighted(0.4, Just(1)),
            audited in prop::option::weighted(0.4, Just(2)),
        ) {
            let isolation = Isolation { enforced, audited: enforced.or(audited) };
            let entries = entries(&claims, isolation);
            let keys: BTreeSet<_> = entries.iter().map(|it| (it.protocol, it.port, it.bits)).collect();
            prop_assert_eq!(keys.len(), entries.len(), "each key once");
            let in_force: Vec<_> = claims.iter().filter(|it| !it.audited).cloned().collect();
            for protocol in [6, 17, 132, 1, 0, 255] {
                for port in EDGES {
                    let port = if [6, 17, 132].contains(&protocol) { port } else { 0 };
                    let rule = lookup(&entries, protocol, port);
                    let told = (rule.rule, rule.allow == 1);
                    prop_assert_eq!(told, asked(&in_force, isolation.enforced, protocol, port));
                    let told = (rule.audited_rule, rule.audited_allow == 1);
                    prop_assert_eq!(told, asked(&claims, isolation.audited, protocol, port));
                }
            }
        }
    }

    #[test]
    fn a_range_takes_at_most_thirty_prefixes() {
        for (first, last, count) in [
            (80, 80, 1),
            (0, u16::MAX, 1),
            (1, u16::MAX, 16),
            (1, u16::MAX - 1, 30),
            (1024, 2047, 1),
            (53, 80, 5),
        ] {
            let prefixes: Vec<_> = prefixes(first, last).collect();
            assert_eq!(prefixes.len(), count, "{first} to {last}: {prefixes:?}");
            let size: u32 = prefixes.iter().map(|(_, length)| 1 << (16 - length)).sum();
            assert_eq!(size, u32::from(last - first) + 1);
        }
    }

    #[test]
    fn ten_thousand_rules_are_one_class_with_an_entry_each() {
        let claims: Vec<_> = (0..10_000u16)
            .map(|index| Claim {
                tier: Tier::NetworkPolicy,
                action: Action::Accept,
                audited: false,
                rule: 2 + u32::from(index),
                spans: Some(vec![Span {
                    protocol: Protocol::Tcp,
                    first: 2 * index,
                    last: 2 * index,
                }]),
            })
            .collect();
        let isolation = Isolation {
            enforced: Some(1),
            audited: Some(1),
        };
        assert_eq!(entries(&claims, isolation).len(), 10_001);
    }
}
