//! Who may talk to whom: what the tables of policies should say.
//!
//! Rules ask for *marks* of the other side: to be a pod that a selector selects, to be in a network,
//! to be a node, to call a port by a name. The marks that an address has make its *identity*.
//! All policies that select a local pod make, for each direction, its *rule set*; what one says about
//! an identity is a *class* of rules, in which precedence is settled.
//!
//! The result depends on the world alone, but for the numbers: each stays what it is while it means
//! the same, so that a change touches little. A mark that no policy asks for any more is forgotten
//! one update later, when no rule set depends on it: see [`Policies::pending`].

mod identity;
mod marks;
mod numbers;
mod rule_set;
mod tables;
#[cfg(test)]
mod tests;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use lb_common::policy::{CLOSED, OPEN, PeerKey};

use self::{
    identity::{Addresses, Holder, Identities, Keys, namespace_labels},
    marks::{MarkId, Marks},
    numbers::Numbers,
    rule_set::{CompiledPolicy, PolicyUse, RuleSet, RuleSetKey, Signature},
    tables::Ledger,
    verdict::Entry,
};
pub use self::{
    rule_set::RuleName,
    tables::{Changes, RuleEntry, RuleSets, Sizes, Tables},
};
use super::Range;
use crate::world::{Kind, ObjectKey, Pod, PolicyDirty, PolicyName, World, policy::Direction};

/// Marks that are looked for among all addresses one by one; with more, each address is looked at.
const FEW: usize = 32;

/// What has a number in `RULES` and `PEERS`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Numbered {
    RuleSet(RuleSetKey),
    /// Rule sets that say the same about some identities share what they say.
    Class(Vec<Entry>),
}

/// A rule set that some endpoint has, and whom it tells apart.
#[derive(Clone, Debug)]
struct InForce {
    set: RuleSet,
    everybody: Vec<Entry>,
    /// Of each identity that has rules of its own.
    signatures: BTreeMap<u32, Signature>,
    classes: BTreeMap<Signature, Class>,
    /// It does not fit any more: nobody may have it.
    broken: bool,
}

/// What a rule set says about all identities with one signature.
#[derive(Clone, Copy, Debug)]
struct Class {
    /// `None` where it says what it says about everybody.
    number: Option<u32>,
    identities: usize,
}

/// The last number of each kind that an earlier agent gave: new ones are above.
#[derive(Clone, Copy, Debug, Default)]
pub struct LastNumbers {
    pub identity: u32,
    /// Of rule sets and classes.
    pub class: u32,
    pub rule: u32,
}

/// The compiled policies.
#[derive(Clone, Debug)]
pub struct Policies {
    sizes: Sizes,
    started: bool,
    marks: Marks,
    /// Marks that no policy has asked for since the last update.
    unused: BTreeSet<MarkId>,
    policies: BTreeMap<PolicyName, CompiledPolicy>,
    /// The last version that a side of a policy was given.
    version: u64,
    addresses: Addresses,
    identities: Identities,
    /// Networks whose identity does not fit.
    homeless: BTreeSet<IpNet>,
    rule_names: Numbers<RuleName>,
    numbers: Numbers<Numbered>,
    rule_sets: BTreeMap<u32, InForce>,
    /// The rule sets that ask for a mark.
    asking: BTreeMap<MarkId, BTreeSet<u32>>,
    /// The rule sets that each endpoint uses.
    used: BTreeMap<ObjectKey, [u32; 2]>,
    ledger: Ledger,
}

impl Policies {
    pub fn new(sizes: Sizes, last: LastNumbers) -> Self {
        Self {
            sizes,
            started: false,
            marks: Marks::default(),
            unused: BTreeSet::new(),
            policies: BTreeMap::new(),
            version: 0,
            addresses: Addresses::default(),
            identities: Identities::above(last.identity),
            homeless: BTreeSet::new(),
            rule_names: Numbers::above(last.rule),
            numbers: Numbers::above(last.class),
            rule_sets: BTreeMap::new(),
            asking: BTreeMap::new(),
            used: BTreeMap::new(),
            ledger: Ledger::default(),
        }
    }

    /// Everything in a world, compiled with room for all of it.
    pub fn boundless(world: &World) -> Self {
        let mut policies = Self::new(Sizes::BOUNDLESS, LastNumbers::default());
        policies.update(world, &PolicyDirty::default());
        policies
    }

    /// What the tables should say.
    pub fn tables(&self) -> &Tables {
        self.ledger.tables()
    }

    /// What the numbers of rules stand for.
    pub fn rule_names(&self) -> impl Iterator<Item = (u32, &RuleName)> {
        self.rule_names.iter()
    }

    pub fn rule_name(&self, number: u32) -> Option<&RuleName> {
        self.rule_names.value(number)
    }

    /// The policies that an endpoint's rule set is made of, in order of precedence.
    pub fn policies_of(&self, rule_set: u32) -> impl Iterator<Item = &PolicyName> {
        let policies = match self.numbers.value(rule_set) {
            Some(Numbered::RuleSet(key)) => key.policies.as_slice(),
            Some(Numbered::Class(_)) | None => &[],
        };
        policies.iter().map(|policy| &policy.name)
    }

    /// The endpoints that nothing may pass because their rules do not fit.
    pub fn closed(&self) -> impl Iterator<Item = &ObjectKey> {
        let endpoints = self.tables().endpoints.iter();
        endpoints
            .filter(|(_, sets)| [sets.ingress, sets.egress].contains(&CLOSED))
            .map(|(pod, _)| pod)
    }

    /// The policies that say something about a local pod, whether or not they fit.
    pub fn policies_for(&self, world: &World, pod: &ObjectKey) -> Vec<PolicyName> {
        let row = world.pod(pod).into_iter();
        let keys = row.flat_map(|row| {
            let key = |direction| self.rule_set_key(world, pod, row, direction);
            Direction::BOTH.map(key)
        });
        let names = keys.flat_map(|key| key.policies).map(|policy| policy.name);
        names.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Whether there is something to be forgotten: once the changes are in force, another update,
    /// which may be of nothing, does so.
    pub fn pending(&self) -> bool {
        !self.unused.is_empty()
    }

    /// Compiles what is dirty; the first time everything. Returns what has changed by it.
    pub fn update(&mut self, world: &World, dirty: &PolicyDirty) -> Changes {
        let all;
        let dirty = if self.started {
            dirty
        } else {
            all = everything(world);
            &all
        };
        self.started = true;
        let mut endpoints = self.closed().cloned().collect::<BTreeSet<_>>();
        endpoints.extend(dirty.pods.iter().cloned());
        for namespace in &dirty.namespaces {
            endpoints.extend(local_in(world, namespace));
        }
        let fresh = self.replace_policies(world, dirty, &mut endpoints);
        let left = self.identify(world, dirty, &fresh);
        self.settle_endpoints(world, endpoints);
        self.forget_identities(left);
        self.ledger.take_changes()
    }

    /// Compiles the policies that are dirty. Returns the marks that no rule set in force asks for,
    /// those that are new and those that are about to go.
    fn replace_policies(
        &mut self,
        world: &World,
        dirty: &PolicyDirty,
        endpoints: &mut BTreeSet<ObjectKey>,
    ) -> Fresh {
        let mut new = BTreeSet::new();
        for name in &dirty.policies {
            let was = self.policies.remove(name);
            let is = world.policy(name).map(|policy| {
                let Self { marks, version, .. } = self;
                CompiledPolicy::new(policy, was.as_ref(), marks, version, &mut new)
            });
            let sides = was.iter().flat_map(CompiledPolicy::sides);
            for mark in sides.flat_map(|side| side.marks()) {
                self.marks.release(mark);
            }
            if let Some(is) = is {
                self.policies.insert(name.clone(), is);
            }
            if name.kind == Kind::NetworkPolicy {
                endpoints.extend(local_in(world, &name.key.namespace));
            } else {
                endpoints.extend(world.local_pods().map(|(key, ..)| key.clone()));
            }
        }
        let unused = self.marks.unused();
        let old = self.unused.intersection(&unused).copied().collect();
        self.unused = &unused - &old;
        Fresh { new, old }
    }

    /// Gives identities to all addresses that may have another one. Returns those that addresses
    /// have left.
    fn identify(&mut self, world: &World, dirty: &PolicyDirty, fresh: &Fresh) -> Vec<u32> {
        let homeless = std::mem::take(&mut self.homeless);
        let mut networks = BTreeSet::new();
        self.find_holders(world, dirty, &mut networks);
        if fresh.new.len() > FEW {
            networks.extend(self.addresses.all().map(IpNet::from));
            networks.extend(self.identities.networks());
            networks.extend(self.marks.edges());
        } else {
            for mark in fresh.new.iter().filter_map(|id| self.marks.get(*id)) {
                networks.extend(self.identities.touched(mark, &self.addresses, world));
            }
        }
        networks.extend(self.identities.marked(&fresh.old));
        for mark in &fresh.old {
            if let Some(mark) = self.marks.forget(*mark) {
                networks.extend(marks::edges_of(&mark));
            }
        }
        let Self {
            marks,
            addresses,
            identities,
            ..
        } = self;
        let both = &fresh.new | &fresh.old;
        let mut keys = Keys {
            marks,
            addresses,
            world,
            pods: BTreeMap::new(),
        };
        let reassigned = identities.reassign(&networks, &both, |network| keys.of(network));
        for identity in &reassigned.new {
            self.introduce(*identity);
        }
        let mut changed = reassigned.changed;
        for network in homeless {
            let identity = self.identities.of(network);
            changed.entry(network).or_insert(identity);
        }
        // What goes makes room for what comes.
        let (come, go): (Vec<_>, Vec<_>) = changed.into_iter().partition(|(_, it)| it.is_some());
        for (network, identity) in go.into_iter().chain(come) {
            self.write_identity(network, identity);
        }
        self.judge_again(&reassigned.moved);
        reassigned.left
    }

    /// Has the flows of those endpoints judged again whose rule sets ask for one of these marks: the
    /// others say of every address what they said.
    fn judge_again(&mut self, marks: &BTreeSet<MarkId>) {
        let asking = marks.iter().filter_map(|mark| self.asking.get(mark));
        let asking: BTreeSet<u32> = asking.flatten().copied().collect();
        for (pod, sets) in &self.used {
            if sets.iter().any(|set| asking.contains(set)) {
                self.ledger.judge_again(pod);
            }
        }
    }

    fn find_holders(&mut self, world: &World, dirty: &PolicyDirty, networks: &mut BTreeSet<IpNet>) {
        for key in &dirty.pods {
            let ips = world.pod(key).map(|pod| pod.ips.iter().copied().collect());
            let holder = Holder::Pod(key.clone());
            self.addresses
                .set(holder, ips.unwrap_or_default(), networks);
        }
        for name in &dirty.nodes {
            let addresses = world.node(name).map(|node| node.all_addresses.clone());
            let holder = Holder::Node(name.clone());
            self.addresses
                .set(holder, addresses.unwrap_or_default(), networks);
        }
        for namespace in &dirty.namespaces {
            for (key, _) in world.pods_in(namespace) {
                let holder = Holder::Pod(key.clone());
                networks.extend(self.addresses.of(&holder).map(IpNet::from));
            }
        }
    }

    fn write_identity(&mut self, network: IpNet, identity: Option<u32>) {
        let range = Range::from(network);
        let identities = &self.tables().identities;
        let full = identities.len() >= self.sizes.identities;
        if identity.is_some() && full && !identities.contains_key(&range) {
            self.homeless.insert(network);
        } else {
            self.ledger.set_identity(range, identity);
        }
    }

    /// Lets every rule set in force know a new identity.
    fn introduce(&mut self, identity: u32) {
        let Some(key) = self.identities.key(identity) else {
            return;
        };
        let names = key.ports.iter().map(|(mark, ..)| mark);
        let asking = key.marks.iter().chain(names);
        let asking = asking.filter_map(|mark| self.asking.get(mark));
        let asking: BTreeSet<u32> = asking.flatten().copied().collect();
        for rule_set in asking {
            self.join(rule_set, identity);
        }
    }

    /// Gives an identity the class that it has in a rule set.
    fn join(&mut self, rule_set: u32, identity: u32) {
        let Self {
            rule_sets,
            identities,
            numbers,
            ledger,
            sizes,
            ..
        } = self;
        let (Some(in_force), Some(key)) = (rule_sets.get_mut(&rule_set), identities.key(identity))
        else {
            return;
        };
        let signature = in_force.set.signature(key);
        if signature.is_empty() || in_force.broken {
            return;
        }
        let known = in_force.classes.get(&signature).copied();
        let known = known.or_else(|| {
            let entries = in_force.set.class(&signature);
            let number = match entries == in_force.everybody {
                true => None,
                false => Some(take_class(entries, numbers, ledger, sizes)?),
            };
            Some(Class {
                number,
                identities: 0,
            })
        });
        let Some(mut class) = known else {
            in_force.broken = true;
            return;
        };
        if let Some(class) = class.number {
            if ledger.peers() < sizes.peers {
                ledger.put_peer(PeerKey { rule_set, identity }, class);
            } else {
                in_force.broken = true;
            }
        }
        class.identities += 1;
        in_force.classes.insert(signature.clone(), class);
        in_force.signatures.insert(identity, signature);
    }

    /// Gives the endpoints the rule sets that they should have, and forgets those that no endpoint
    /// has any more.
    fn settle_endpoints(&mut self, world: &World, endpoints: BTreeSet<ObjectKey>) {
        let mut left = Vec::new();
        let broken: BTreeSet<u32> = self.broken().collect();
        let mut settled = endpoints;
        if !broken.is_empty() || !self.homeless.is_empty() {
            settled.extend(self.used.keys().cloned());
        }
        for key in settled {
            let pod = world.pod(&key).filter(|pod| pod.local.is_some());
            let sets = pod.map(|pod| {
                Direction::BOTH.map(|direction| self.use_rule_set(world, &key, pod, direction))
            });
            let was = match sets {
                Some(sets) => self.used.insert(key.clone(), sets),
                None => self.used.remove(&key),
            };
            left.extend(was.into_iter().flatten());
            let closed = !self.homeless.is_empty();
            let sets = sets.map(|sets| {
                let [ingress, egress] =
                    sets.map(|set| if closed && set != OPEN { CLOSED } else { set });
                RuleSets { ingress, egress }
            });
            self.ledger.set_endpoint(key, sets);
        }
        for rule_set in left {
            self.release_rule_set(rule_set);
        }
    }

    fn broken(&self) -> impl Iterator<Item = u32> {
        let broken = self.rule_sets.iter().filter(|(_, it)| it.broken);
        broken.map(|(number, _)| *number)
    }

    /// The number of the rule set that a pod has, with one more user.
    fn use_rule_set(
        &mut self,
        world: &World,
        key: &ObjectKey,
        pod: &Pod,
        direction: Direction,
    ) -> u32 {
        let key = self.rule_set_key(world, key, pod, direction);
        if key.policies.is_empty() {
            return OPEN;
        }
        let numbered = Numbered::RuleSet(key);
        let (number, new) = self.numbers.take(&numbered);
        if let (Numbered::RuleSet(key), true) = (&numbered, new) {
            self.put_in_force(number, key);
        }
        if self.rule_sets.get(&number).is_some_and(|it| it.broken) {
            self.release_rule_set(number);
            return CLOSED;
        }
        number
    }

    fn rule_set_key(
        &self,
        world: &World,
        key: &ObjectKey,
        pod: &Pod,
        direction: Direction,
    ) -> RuleSetKey {
        let namespace = key.namespace.as_str();
        let labels = namespace_labels(world, namespace);
        let audited = world.namespace(namespace).is_some_and(|row| row.audited);
        let from = |kind, namespace| {
            let key = ObjectKey::new(namespace, "");
            self.policies.range(PolicyName { kind, key }..)
        };
        let own = from(Kind::NetworkPolicy, namespace).take_while(|(name, _)| {
            name.kind == Kind::NetworkPolicy && name.key.namespace == namespace
        });
        let policies = own.chain(from(Kind::ClusterNetworkPolicy, ""));
        let policies = policies.filter(|(_, policy)| {
            !policy.side(direction).is_silent()
                && marks::matches(&policy.subject, namespace, &labels, &pod.labels)
        });
        let policies: Vec<_> = policies.collect();
        let names = policies
            .iter()
            .flat_map(|(_, it)| it.side(direction).port_names());
        let names: BTreeSet<&str> = names.collect();
        let ports = pod.named_ports.iter();
        let ports = ports
            .filter(|port| direction == Direction::Ingress && names.contains(port.name.as_str()));
        let uses = policies.iter().map(|(name, policy)| PolicyUse {
            tier: policy.tier,
            priority: policy.priority,
            name: (*name).clone(),
            audited: policy.audited || audited && name.kind == Kind::NetworkPolicy,
            version: policy.side(direction).version,
        });
        let mut policies: Vec<_> = uses.collect();
        policies.sort();
        RuleSetKey {
            direction,
            policies,
            ports: ports.cloned().collect(),
        }
    }

    /// Compiles a rule set for all identities that there are.
    fn put_in_force(&mut self, number: u32, key: &RuleSetKey) {
        let policies = &self.policies;
        let side = |name: &PolicyName| Some(policies.get(name)?.side(key.direction));
        let set = RuleSet::new(key, side, &mut self.rule_names);
        let everybody = set.class(&Signature::default());
        let broken = self.ledger.rules() + everybody.len() > self.sizes.rules;
        if !broken {
            put_entries(&mut self.ledger, number, &everybody);
        }
        let marks: Vec<_> = set.marks().collect();
        let in_force = InForce {
            set,
            everybody,
            signatures: BTreeMap::new(),
            classes: BTreeMap::new(),
            broken,
        };
        self.rule_sets.insert(number, in_force);
        let mut identities = BTreeSet::new();
        for mark in marks {
            self.asking.entry(mark).or_default().insert(number);
            identities.extend(self.identities.having(mark));
        }
        for identity in identities {
            self.join(number, identity);
        }
    }

    /// One endpoint less has a rule set.
    fn release_rule_set(&mut self, number: u32) {
        if number == OPEN || number == CLOSED || self.numbers.release(number).is_none() {
            return;
        }
        let Some(in_force) = self.rule_sets.remove(&number) else {
            return;
        };
        for mark in in_force.set.marks() {
            if let Some(asking) = self.asking.get_mut(&mark) {
                asking.remove(&number);
                if asking.is_empty() {
                    self.asking.remove(&mark);
                }
            }
        }
        for (identity, signature) in &in_force.signatures {
            let class = in_force.classes.get(signature);
            if class.is_some_and(|class| class.number.is_some()) {
                let (rule_set, identity) = (number, *identity);
                self.ledger.remove_peer(PeerKey { rule_set, identity });
            }
        }
        for class in in_force.classes.values().filter_map(|it| it.number) {
            self.release_class(class);
        }
        for rule in in_force.set.numbers() {
            self.rule_names.release(*rule);
        }
        remove_entries(&mut self.ledger, number, &in_force.everybody);
    }

    fn release_class(&mut self, class: u32) {
        if let Some(Numbered::Class(entries)) = self.numbers.release(class) {
            remove_entries(&mut self.ledger, class, &entries);
        }
    }

    /// Forgets the identities that no address has any more.
    fn forget_identities(&mut self, left: Vec<u32>) {
        for identity in left {
            let Some(key) = self.identities.release(identity) else {
                continue;
            };
            let names = key.ports.iter().map(|(mark, ..)| mark);
            let asking = key.marks.iter().chain(names);
            let asking = asking.filter_map(|mark| self.asking.get(mark));
            for rule_set in asking.flatten().copied().collect::<BTreeSet<_>>() {
                self.part(rule_set, identity);
            }
        }
    }

    /// Takes an identity out of a rule set.
    fn part(&mut self, rule_set: u32, identity: u32) {
        let Some(in_force) = self.rule_sets.get_mut(&rule_set) else {
            return;
        };
        let Some(signature) = in_force.signatures.remove(&identity) else {
            return;
        };
        let Some(class) = in_force.classes.get_mut(&signature) else {
            return;
        };
        class.identities -= 1;
        let Class { number, identities } = *class;
        if identities == 0 {
            in_force.classes.remove(&signature);
        }
        if let Some(number) = number {
            self.ledger.remove_peer(PeerKey { rule_set, identity });
            if identities == 0 {
                self.release_class(number);
            }
        }
    }
}

/// Marks that no rule set in force asks for.
struct Fresh {
    new: BTreeSet<MarkId>,
    old: BTreeSet<MarkId>,
}

fn everything(world: &World) -> PolicyDirty {
    PolicyDirty {
        pods: world.pods().map(|(key, _)| key.clone()).collect(),
        namespaces: BTreeSet::new(),
        nodes: world.nodes().map(|(key, _)| key.name.clone()).collect(),
        policies: world.policies().map(|(name, _)| name).collect(),
    }
}

fn local_in(world: &World, namespace: &str) -> Vec<ObjectKey> {
    let pods = world.pods_in(namespace);
    let local = pods.filter(|(_, pod)| pod.local.is_some());
    local.map(|(key, _)| key.clone()).collect()
}

/// The number of a class, with one more user; `None` where it does not fit.
fn take_class(
    entries: Vec<Entry>,
    numbers: &mut Numbers<Numbered>,
    ledger: &mut Ledger,
    sizes: &Sizes,
) -> Option<u32> {
    let room = sizes.rules.saturating_sub(ledger.rules());
    let fits = entries.len() <= room;
    let class = Numbered::Class(entries);
    if !fits && numbers.number(&class).is_none() {
        return None;
    }
    let (number, new) = numbers.take(&class);
    if let (Numbered::Class(entries), true) = (&class, new) {
        put_entries(ledger, number, entries);
    }
    Some(number)
}

fn put_entries(ledger: &mut Ledger, class: u32, entries: &[Entry]) {
    for entry in entries {
        ledger.put_rule(rule_entry(class, entry), entry.rule);
    }
}

fn remove_entries(ledger: &mut Ledger, class: u32, entries: &[Entry]) {
    for entry in entries {
        ledger.remove_rule(rule_entry(class, entry));
    }
}

fn rule_entry(class: u32, entry: &Entry) -> RuleEntry {
    RuleEntry {
        key: entry.key(class),
        bits: entry.bits,
    }
}
