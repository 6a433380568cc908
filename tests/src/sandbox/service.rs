//! Services and their EndpointSlices as `kubectl get -o yaml` prints them.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use lb_userspace::{source::manifests, status::Status};
use serde_json::{Value, json};

use super::{
    addresses::{Family, Pair},
    endpoint::Endpoint,
    manifests::NAMESPACE,
    pod::Pod,
    server::Protocol,
};

/// A Service and the EndpointSlices that belong to it.
#[derive(Clone, Debug)]
pub struct Service {
    name: String,
    ips: Pair,
    ports: Vec<Port>,
    endpoints: Vec<Endpoint>,
    kind: &'static str,
    load_balancers: Vec<(Pair, &'static str)>,
    external_ips: Vec<Pair>,
    source_ranges: Vec<IpNet>,
    internal_policy: &'static str,
    external_policy: &'static str,
    /// Seconds.
    affinity: Option<u32>,
    health_check: Option<u16>,
}

#[derive(Clone, Debug)]
struct Port {
    name: String,
    protocol: Protocol,
    port: u16,
    target: u16,
    node_port: Option<u16>,
}

impl Service {
    /// A dual-stack Service without ports and endpoints.
    pub fn new(name: &str, ips: Pair) -> Self {
        Self {
            name: name.to_owned(),
            ips,
            ports: Vec::new(),
            endpoints: Vec::new(),
            kind: "ClusterIP",
            load_balancers: Vec::new(),
            external_ips: Vec::new(),
            source_ranges: Vec::new(),
            internal_policy: "Cluster",
            external_policy: "Cluster",
            affinity: None,
            health_check: None,
        }
    }

    /// Adds a port: what clients dial, and what the pods listen on.
    #[must_use]
    pub fn port(mut self, name: &str, protocol: Protocol, port: u16, target: u16) -> Self {
        self.ports.push(Port {
            name: name.to_owned(),
            protocol,
            port,
            target,
            node_port: None,
        });
        self
    }

    /// Offers the port that was added last on the nodes too.
    #[must_use]
    pub fn node_port(mut self, node_port: u16) -> Self {
        if let Some(port) = self.ports.last_mut() {
            port.node_port = Some(node_port);
        }
        if self.kind == "ClusterIP" {
            self.kind = "NodePort";
        }
        self
    }

    /// Takes the ports off the nodes again.
    #[must_use]
    pub fn without_node_ports(mut self) -> Self {
        for port in &mut self.ports {
            port.node_port = None;
        }
        if self.kind == "NodePort" {
            self.kind = "ClusterIP";
        }
        self
    }

    /// Adds the addresses of a load balancer that delivers packets unchanged.
    #[must_use]
    pub fn load_balancer(self, ips: Pair) -> Self {
        self.ingress(ips, "VIP")
    }

    /// Adds the addresses of a load balancer that is a proxy.
    #[must_use]
    pub fn proxy_load_balancer(self, ips: Pair) -> Self {
        self.ingress(ips, "Proxy")
    }

    fn ingress(mut self, ips: Pair, mode: &'static str) -> Self {
        self.load_balancers.push((ips, mode));
        self.kind = "LoadBalancer";
        self
    }

    /// Adds external IPs.
    #[must_use]
    pub fn external_ip(mut self, ips: Pair) -> Self {
        self.external_ips.push(ips);
        self
    }

    /// Adds a network that may use the load balancers.
    #[must_use]
    pub fn source_range(mut self, range: IpNet) -> Self {
        self.source_ranges.push(range);
        self
    }

    /// Sets `internalTrafficPolicy: Local`.
    #[must_use]
    pub fn internal_local(self) -> Self {
        Self {
            internal_policy: "Local",
            ..self
        }
    }

    /// Sets `externalTrafficPolicy: Local`.
    #[must_use]
    pub fn external_local(self) -> Self {
        Self {
            external_policy: "Local",
            ..self
        }
    }

    /// Sets `sessionAffinity: ClientIP` for some seconds.
    #[must_use]
    pub fn affinity(self, seconds: u32) -> Self {
        Self {
            affinity: Some(seconds),
            ..self
        }
    }

    /// Takes the session affinity away.
    #[must_use]
    pub fn without_affinity(self) -> Self {
        Self {
            affinity: None,
            ..self
        }
    }

    /// Sets the port at which nodes say whether they have an endpoint.
    #[must_use]
    pub fn health_check(self, port: u16) -> Self {
        Self {
            health_check: Some(port),
            ..self
        }
    }

    /// Takes all endpoints out.
    #[must_use]
    pub fn without_endpoints(mut self) -> Self {
        self.endpoints.clear();
        self
    }

    /// Adds an endpoint.
    #[must_use]
    pub fn endpoint(mut self, endpoint: impl Into<Endpoint>) -> Self {
        self.endpoints.push(endpoint.into());
        self
    }

    /// Adds an endpoint for each of several pods.
    #[must_use]
    pub fn endpoints<'a>(self, pods: impl IntoIterator<Item = &'a Pod>) -> Self {
        pods.into_iter().fold(self, Self::endpoint)
    }

    /// Takes the endpoint of a pod out.
    #[must_use]
    pub fn without(mut self, pod: &str) -> Self {
        self.endpoints.retain(|endpoint| endpoint.pod != pod);
        self
    }

    /// The file that [`Manifests::write_service`] writes.
    pub fn file(&self) -> String {
        format!("{}.yaml", self.name)
    }

    /// The ClusterIP of one family.
    pub fn ip(&self, family: Family) -> IpAddr {
        self.ips.get(family)
    }

    /// `namespace/name`.
    pub fn key(&self) -> String {
        format!("{NAMESPACE}/{}", self.name)
    }

    /// Whether a node's tables reflect the objects as they are.
    pub fn is_served(&self, status: &Status) -> bool {
        let key = self.key();
        let served = status.services.iter().find(|served| served.service == key);
        let expected = self.objects().into_iter().map(|object| {
            let [kind, name] = [&object["kind"], &object["metadata"]["name"]];
            let [kind, name] = [kind, name].map(|text| text.as_str().unwrap_or_default());
            (
                format!("{kind} {NAMESPACE}/{name}"),
                manifests::version(&object),
            )
        });
        served.is_some_and(|served| served.versions == expected.collect())
    }

    /// The Service, and one EndpointSlice per family and set of target ports.
    pub fn objects(&self) -> Vec<Value> {
        let listens: BTreeSet<Option<u16>> = self.endpoints.iter().map(|e| e.listens).collect();
        let usual = BTreeSet::from([None]);
        let mut objects = vec![self.service()];
        for listens in usual.union(&listens) {
            objects.extend(Family::BOTH.map(|family| self.slice(family, *listens)));
        }
        objects
    }

    fn service(&self) -> Value {
        let mut spec = self.spec();
        if self.kind != "ClusterIP" || !self.external_ips.is_empty() {
            spec["externalTrafficPolicy"] = self.external_policy.into();
        }
        if !self.external_ips.is_empty() {
            let ips = self.external_ips.iter().flat_map(Pair::each);
            spec["externalIPs"] = ips.map(|ip| ip.to_string()).collect();
        }
        if !self.source_ranges.is_empty() {
            let ranges = self.source_ranges.iter();
            spec["loadBalancerSourceRanges"] = ranges.map(IpNet::to_string).collect();
        }
        if let Some(seconds) = self.affinity {
            spec["sessionAffinity"] = "ClientIP".into();
            spec["sessionAffinityConfig"] = json!({ "clientIP": { "timeoutSeconds": seconds } });
        }
        if let Some(port) = self.health_check {
            spec["healthCheckNodePort"] = port.into();
        }
        let mut service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": self.name, "namespace": NAMESPACE },
            "spec": spec,
        });
        if !self.load_balancers.is_empty() {
            let ingress: Vec<Value> = self
                .load_balancers
                .iter()
                .flat_map(|(ips, mode)| ips.each().map(|ip| json!({ "ip": ip, "ipMode": mode })))
                .collect();
            service["status"] = json!({ "loadBalancer": { "ingress": ingress } });
        }
        service
    }

    fn spec(&self) -> Value {
        let ports: Vec<Value> = self.ports.iter().map(Port::object).collect();
        json!({
            "clusterIP": self.ips.v4,
            "clusterIPs": self.ips.each(),
            "internalTrafficPolicy": self.internal_policy,
            "ipFamilies": Family::BOTH.map(Family::name),
            "ipFamilyPolicy": "RequireDualStack",
            "ports": ports,
            "selector": { "app": self.name },
            "sessionAffinity": "None",
            "type": self.kind,
        })
    }

    fn slice(&self, family: Family, listens: Option<u16>) -> Value {
        let endpoints: Vec<Value> = self
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.listens == listens)
            .map(|endpoint| endpoint.object(family))
            .collect();
        let ports: Vec<Value> = self
            .ports
            .iter()
            .map(|port| {
                json!({
                    "name": port.name,
                    "port": listens.unwrap_or(port.target),
                    "protocol": port.protocol.name(),
                })
            })
            .collect();
        let suffix = listens.map_or_else(String::new, |port| format!("-{port}"));
        json!({
            "addressType": family.name(),
            "apiVersion": "discovery.k8s.io/v1",
            "endpoints": endpoints,
            "kind": "EndpointSlice",
            "metadata": {
                "labels": {
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                    "kubernetes.io/service-name": self.name,
                },
                "name": format!("{}-{}{suffix}", self.name, family.name().to_lowercase()),
                "namespace": NAMESPACE,
            },
            "ports": ports,
        })
    }
}

impl Port {
    fn object(&self) -> Value {
        let mut object = json!({
            "name": self.name,
            "port": self.port,
            "protocol": self.protocol.name(),
            "targetPort": self.target,
        });
        if let Some(port) = self.node_port {
            object["nodePort"] = port.into();
        }
        object
    }
}
