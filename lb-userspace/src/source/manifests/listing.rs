//! The objects of all files, as a list of each kind.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    iter,
};

use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};

use super::parse::{Content, Object};
use crate::world::{
    Change, EndpointSlice, Event, Kind, Namespace, Node, ObjectKey, Pod, Policy, Row, Service,
    ServiceCidr,
    endpoint_slice::{self, SERVICE_NAME_LABEL},
    namespace, node, pod,
    policy::{cluster_network_policy, network_policy},
    service, service_cidr,
};

/// How to write what only a cluster's controllers fill in.
const AS_PRINTED: &str = "write it as `kubectl get -o yaml` prints it";

/// The rows of every kind.
#[derive(Default, PartialEq, Eq)]
pub struct Listing {
    services: BTreeMap<ObjectKey, Row<Service>>,
    slices: BTreeMap<ObjectKey, Row<EndpointSlice>>,
    nodes: BTreeMap<ObjectKey, Row<Node>>,
    pods: BTreeMap<ObjectKey, Row<Pod>>,
    service_cidrs: BTreeMap<ObjectKey, Row<ServiceCidr>>,
    namespaces: BTreeMap<ObjectKey, Row<Namespace>>,
    network_policies: BTreeMap<ObjectKey, Row<Policy>>,
    cluster_network_policies: BTreeMap<ObjectKey, Row<Policy>>,
}

impl Listing {
    /// The rows of what the files hold, for the agent of `own_node`. Of an object that is there
    /// twice, the first counts.
    pub fn of<'a>(files: impl Iterator<Item = (&'a str, &'a [Object])>, own_node: &str) -> Self {
        let mut listing = Self::default();
        let mut origins = BTreeMap::new();
        let mut with_selector = Vec::new();
        for (file, object) in
            files.flat_map(|(file, objects)| objects.iter().map(move |o| (file, o)))
        {
            match origins.entry((object.kind(), &object.key)) {
                Entry::Vacant(entry) => {
                    entry.insert(file);
                    listing.add(object, own_node);
                    if object.has_selector() {
                        with_selector.push(&object.key);
                    }
                }
                Entry::Occupied(entry) => {
                    let first = entry.get();
                    let problem = format!("is in {first} and again in {file}: the first counts");
                    if let Some(problems) = listing.problems_of(object) {
                        problems.push(problem);
                    }
                }
            }
        }
        listing.note_missing_slices(&with_selector);
        listing
    }

    /// Lists each kind in which anything differs from `before`; all kinds where there is none.
    pub fn changes_since(&self, before: Option<&Self>) -> Vec<Change> {
        let Self {
            services,
            slices,
            nodes,
            pods,
            service_cidrs,
            namespaces,
            network_policies,
            cluster_network_policies,
        } = self;
        let mut changes = Vec::new();
        // Backends first, so that a new service has them from the start.
        if before.is_none_or(|before| before.slices != *slices) {
            changes.extend(relist(slices).map(Change::EndpointSlice));
        }
        if before.is_none_or(|before| before.services != *services) {
            changes.extend(relist(services).map(Change::Service));
        }
        if before.is_none_or(|before| before.nodes != *nodes) {
            changes.extend(relist(nodes).map(Change::Node));
        }
        if before.is_none_or(|before| before.pods != *pods) {
            changes.extend(relist(pods).map(Change::Pod));
        }
        if before.is_none_or(|before| before.service_cidrs != *service_cidrs) {
            changes.extend(relist(service_cidrs).map(Change::ServiceCidr));
        }
        if before.is_none_or(|before| before.namespaces != *namespaces) {
            changes.extend(relist(namespaces).map(Change::Namespace));
        }
        if before.is_none_or(|before| before.network_policies != *network_policies) {
            changes.extend(relist(network_policies).map(Change::NetworkPolicy));
        }
        let policies = cluster_network_policies;
        if before.is_none_or(|before| before.cluster_network_policies != *policies) {
            changes.extend(relist(policies).map(Change::ClusterNetworkPolicy));
        }
        changes
    }

    pub fn node_names(&self) -> Vec<String> {
        self.nodes.keys().map(|key| key.name.clone()).collect()
    }

    fn add(&mut self, object: &Object, own_node: &str) {
        fn put<R>(rows: &mut BTreeMap<ObjectKey, Row<R>>, object: &Object, row: Row<R>) {
            let version = object.version.clone();
            rows.insert(object.key.clone(), Row { version, ..row });
        }
        match &object.content {
            Content::Service(service) => {
                let mut row = service::reduce(service);
                row.problems.extend(missing_cluster_ip(service));
                put(&mut self.services, object, row);
            }
            Content::EndpointSlice(slice) => {
                let mut row = endpoint_slice::reduce(slice);
                row.problems.extend(missing_service_name(slice));
                put(&mut self.slices, object, row);
            }
            Content::Node(node) => put(&mut self.nodes, object, node::reduce(node, own_node)),
            Content::Pod(pod) => put(&mut self.pods, object, pod::reduce(pod, own_node)),
            Content::ServiceCidr(cidr) => {
                put(&mut self.service_cidrs, object, service_cidr::reduce(cidr));
            }
            Content::Namespace(namespace) => {
                put(&mut self.namespaces, object, namespace::reduce(namespace));
            }
            Content::NetworkPolicy(policy) => {
                let row = network_policy::reduce(policy);
                put(&mut self.network_policies, object, row);
            }
            Content::ClusterNetworkPolicy(policy) => {
                let row = cluster_network_policy::reduce(policy);
                put(&mut self.cluster_network_policies, object, row);
            }
        }
    }

    fn problems_of(&mut self, object: &Object) -> Option<&mut Vec<String>> {
        fn of<'a, R>(
            rows: &'a mut BTreeMap<ObjectKey, Row<R>>,
            key: &ObjectKey,
        ) -> Option<&'a mut Vec<String>> {
            rows.get_mut(key).map(|row| &mut row.problems)
        }
        match object.kind() {
            Kind::Service => of(&mut self.services, &object.key),
            Kind::EndpointSlice => of(&mut self.slices, &object.key),
            Kind::Node => of(&mut self.nodes, &object.key),
            Kind::Pod => of(&mut self.pods, &object.key),
            Kind::ServiceCidr => of(&mut self.service_cidrs, &object.key),
            Kind::Namespace => of(&mut self.namespaces, &object.key),
            Kind::NetworkPolicy => of(&mut self.network_policies, &object.key),
            Kind::ClusterNetworkPolicy => of(&mut self.cluster_network_policies, &object.key),
        }
    }

    /// No controller makes the slices of a Service that selects Pods.
    fn note_missing_slices(&mut self, with_selector: &[&ObjectKey]) {
        let slices = self.slices.values().filter_map(|row| row.value.as_ref());
        let have_slices: BTreeSet<_> = slices.map(|slice| &slice.service).collect();
        for &key in with_selector {
            if let Some(row) = self.services.get_mut(key)
                && row.value.is_some()
                && !have_slices.contains(key)
            {
                row.problems.push(format!(
                    "has a selector but no EndpointSlice: {AS_PRINTED}, with its slices"
                ));
            }
        }
    }
}

impl Object {
    fn kind(&self) -> Kind {
        match self.content {
            Content::Service(_) => Kind::Service,
            Content::EndpointSlice(_) => Kind::EndpointSlice,
            Content::Node(_) => Kind::Node,
            Content::Pod(_) => Kind::Pod,
            Content::ServiceCidr(_) => Kind::ServiceCidr,
            Content::Namespace(_) => Kind::Namespace,
            Content::NetworkPolicy(_) => Kind::NetworkPolicy,
            Content::ClusterNetworkPolicy(_) => Kind::ClusterNetworkPolicy,
        }
    }

    fn has_selector(&self) -> bool {
        let Content::Service(service) = &self.content else {
            return false;
        };
        let selector = service
            .spec
            .as_ref()
            .and_then(|spec| spec.selector.as_ref());
        selector.is_some_and(|selector| !selector.is_empty())
    }
}

/// No controller gives a ClusterIP to a Service that lacks one.
fn missing_cluster_ip(service: &core::Service) -> Option<String> {
    let spec = service.spec.as_ref();
    let external = spec.is_some_and(|spec| spec.type_.as_deref() == Some("ExternalName"));
    let cluster_ip = spec.and_then(|spec| spec.cluster_ip.as_deref());
    (!external && cluster_ip.unwrap_or_default().is_empty())
        .then(|| format!("has no `spec.clusterIP`: {AS_PRINTED}"))
}

/// Nothing tells which Service a slice belongs to but its label.
fn missing_service_name(slice: &discovery::EndpointSlice) -> Option<String> {
    let labels = slice.metadata.labels.as_ref();
    let named = labels.is_some_and(|labels| labels.contains_key(SERVICE_NAME_LABEL));
    (!named).then(|| format!("has no label `{SERVICE_NAME_LABEL}`: {AS_PRINTED}"))
}

fn relist<R: Clone>(rows: &BTreeMap<ObjectKey, Row<R>>) -> impl Iterator<Item = Event<R>> {
    let objects = rows
        .iter()
        .map(|(key, row)| Event::InitApply(key.clone(), row.clone()));
    iter::once(Event::Init)
        .chain(objects)
        .chain(iter::once(Event::InitDone))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        source::manifests::parse,
        world::{Problem, World},
    };

    const SERVICE: &str = "{apiVersion: v1, kind: Service, metadata: {name: web}, \
        spec: {clusterIP: 10.96.0.10, selector: {app: web}, ports: [{port: 80}]}}";
    const SLICE: &str = "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, \
        metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}, \
        addressType: IPv4, endpoints: []}";

    fn listing(files: &[(&str, &[&str])]) -> Listing {
        let files: Vec<_> = files
            .iter()
            .map(|(name, documents)| {
                let parsed = parse::parse(documents.join("\n---\n").as_bytes());
                assert!(parsed.errors.is_empty(), "{:?}", parsed.errors);
                (*name, parsed.objects)
            })
            .collect();
        let files = files.iter();
        Listing::of(
            files.map(|(name, objects)| (*name, objects.as_slice())),
            "n1",
        )
    }

    fn world(listing: &Listing) -> World {
        let mut world = World::default();
        for change in listing.changes_since(None) {
            world.apply(change);
        }
        world
    }

    fn problems(files: &[(&str, &[&str])]) -> Vec<String> {
        let problems = world(&listing(files));
        let problems = problems.problems();
        problems
            .map(|Problem { kind, key, text }| format!("{kind} {key} {text}"))
            .collect()
    }

    #[test]
    fn the_first_list_syncs_every_kind() {
        assert!(world(&listing(&[])).synced());
    }

    #[test]
    fn only_kinds_that_differ_are_listed_again() {
        let before = listing(&[("a", &[SERVICE])]);
        assert_eq!(before.changes_since(Some(&before)), []);
        let after = listing(&[
            ("a", &[SERVICE]),
            ("b", &["{apiVersion: v1, kind: Node, metadata: {name: n1}}"]),
        ]);
        let changes = after.changes_since(Some(&before));
        assert_eq!(changes.len(), 3, "{changes:?}");
        assert_eq!(changes[0], Change::Node(Event::Init));
    }

    #[test]
    fn an_object_in_two_files_counts_once() {
        let other = SERVICE.replace("10.96.0.10", "10.96.0.11");
        let files: [(&str, &[&str]); 2] = [("a.yaml", &[SERVICE, SLICE]), ("b.yaml", &[&other])];
        let problem = "Service default/web is in a.yaml and again in b.yaml: the first counts";
        assert_eq!(problems(&files), [problem]);
        let world = world(&listing(&files));
        let service = world
            .service(&ObjectKey::new("default", "web"))
            .expect("the service");
        assert_eq!(service.cluster_ips[0].to_string(), "10.96.0.10");
    }

    #[test]
    fn what_controllers_would_fill_in_is_missed() {
        let slice = SLICE.replace("labels: {kubernetes.io/service-name: web}", "");
        let service = SERVICE.replace("clusterIP: 10.96.0.10, ", "");
        assert_eq!(problems(&[("a", &[SERVICE, SLICE])]), Vec::<String>::new());
        assert_eq!(
            problems(&[("a", &[SERVICE])]),
            [
                "Service default/web has a selector but no EndpointSlice: write it as \
              `kubectl get -o yaml` prints it, with its slices"
            ]
        );
        assert_eq!(
            problems(&[("a", &[&service, &slice])]),
            [
                "Service default/web has no `spec.clusterIP`: write it as \
                 `kubectl get -o yaml` prints it",
                "EndpointSlice default/web-1 has no label `kubernetes.io/service-name`: write it \
                 as `kubectl get -o yaml` prints it",
            ]
        );
    }

    #[test]
    fn services_that_need_no_slices_are_not_missed_any() {
        for (from, to) in [
            ("10.96.0.10", "None"),
            ("selector: {app: web}", "selector: {}"),
            (
                "spec: {",
                "spec: {type: ExternalName, externalName: example.org, ",
            ),
        ] {
            let service = SERVICE.replace(from, to);
            assert_eq!(
                problems(&[("a", &[&service])]),
                Vec::<String>::new(),
                "{service}"
            );
        }
    }

    #[test]
    fn the_pods_of_this_node_are_told_from_others() {
        let pod = |name: &str, node: &str| {
            format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, \
                 spec: {{nodeName: {node}, containers: []}}}}"
            )
        };
        let listing = listing(&[("a", &[&pod("one", "n1"), &pod("two", "n2")])]);
        let world = world(&listing);
        let local = world.local_pods().map(|(key, ..)| key.to_string());
        assert_eq!(local.collect::<Vec<_>>(), ["default/one"]);
        assert_eq!(world.pods().count(), 2);
    }

    #[test]
    fn policies_of_both_kinds_are_listed() {
        let namespaced = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, \
            metadata: {name: deny, namespace: shop}}";
        let of_cluster = "{apiVersion: policy.networking.k8s.io/v1alpha2, \
            kind: ClusterNetworkPolicy, metadata: {name: guard}, \
            spec: {tier: Baseline, priority: 7, subject: {namespaces: {}}}}";
        let namespace = "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}";
        let listing = listing(&[("a", &[namespaced, of_cluster, namespace])]);
        let world = world(&listing);
        let names: Vec<_> = world.policies().map(|(name, _)| name.to_string()).collect();
        assert_eq!(
            names,
            ["NetworkPolicy shop/deny", "ClusterNetworkPolicy guard"]
        );
        let labels = &world.namespace("shop").expect("the namespace").labels;
        assert_eq!(labels["kubernetes.io/metadata.name"], "shop");
    }

    #[test]
    fn the_networks_of_services_are_listed() {
        let cidr = "{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, \
            metadata: {name: kubernetes}, spec: {cidrs: [10.96.0.0/12, x]}}";
        let files: [(&str, &[&str]); 2] = [("a.yaml", &[cidr]), ("b.yaml", &[cidr])];
        assert_eq!(
            problems(&files),
            [
                "ServiceCIDR kubernetes `x` is not a network",
                "ServiceCIDR kubernetes is in a.yaml and again in b.yaml: the first counts",
            ]
        );
        let cidrs = world(&listing(&files)).service_cidrs();
        assert_eq!(cidrs, ["10.96.0.0/12".parse().expect("a network")].into());
    }
}
