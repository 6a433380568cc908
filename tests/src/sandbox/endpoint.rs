//! Endpoints of Services.

use serde_json::{Value, json};

use super::{
    addresses::{Family, Pair},
    manifests::NAMESPACE,
    node::Node,
    pod::Pod,
};

/// What an EndpointSlice says of a pod.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub(super) pod: String,
    node: String,
    addresses: Pair,
    ready: bool,
    serving: bool,
    terminating: bool,
    zone: Option<String>,
    for_node: Option<String>,
    /// What it listens on in place of the target of each port.
    pub(super) listens: Option<u16>,
}

impl From<&Pod> for Endpoint {
    fn from(pod: &Pod) -> Self {
        Self::ready(pod.name(), pod.node(), pod.addresses())
    }
}

impl From<&Node> for Endpoint {
    /// The host-network pod that [`super::Sandbox::objects`] gives every node.
    fn from(node: &Node) -> Self {
        Self::ready(
            &format!("host-{}", node.name()),
            node.name(),
            node.addresses(),
        )
    }
}

impl Endpoint {
    fn ready(pod: &str, node: &str, addresses: Pair) -> Self {
        Self {
            pod: pod.to_owned(),
            node: node.to_owned(),
            addresses,
            ready: true,
            serving: true,
            terminating: false,
            zone: None,
            for_node: None,
            listens: None,
        }
    }

    /// The same while the pod shuts down and still answers.
    #[must_use]
    pub fn terminating(self) -> Self {
        Self {
            ready: false,
            terminating: true,
            ..self
        }
    }

    /// The same while the pod cannot answer.
    #[must_use]
    pub fn unready(self) -> Self {
        Self {
            ready: false,
            serving: false,
            ..self
        }
    }

    /// The same with a hint that it is meant for clients in a zone.
    #[must_use]
    pub fn for_zone(self, zone: &str) -> Self {
        Self {
            zone: Some(zone.to_owned()),
            ..self
        }
    }

    /// The same with a hint that it is meant for clients on a node.
    #[must_use]
    pub fn for_node(self, node: &str) -> Self {
        Self {
            for_node: Some(node.to_owned()),
            ..self
        }
    }

    /// The same with a port of its own behind the name of every port.
    #[must_use]
    pub fn listening_on(self, port: u16) -> Self {
        Self {
            listens: Some(port),
            ..self
        }
    }

    pub(super) fn object(&self, family: Family) -> Value {
        let mut object = self.plain_object(family);
        let hint =
            |name: &Option<String>| name.iter().map(|name| json!({ "name": name })).collect();
        if self.zone.is_some() || self.for_node.is_some() {
            let (zones, nodes): (Vec<Value>, Vec<Value>) = (hint(&self.zone), hint(&self.for_node));
            object["hints"] = json!({ "forZones": zones, "forNodes": nodes });
        }
        object
    }

    fn plain_object(&self, family: Family) -> Value {
        json!({
            "addresses": [self.addresses.get(family)],
            "conditions": {
                "ready": self.ready,
                "serving": self.serving,
                "terminating": self.terminating,
            },
            "nodeName": self.node,
            "targetRef": { "kind": "Pod", "name": self.pod, "namespace": NAMESPACE },
        })
    }
}
