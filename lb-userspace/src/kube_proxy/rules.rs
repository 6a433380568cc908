//! What kube-proxy's iptables and ipvs modes leave among iptables' rules, and the script that takes it
//! out. Pure: from the text of `iptables-save` to that of `iptables-restore --noflush`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail, ensure};

/// Chains of kube-proxy with names of their own (`iptables/proxier.go`, `ipvs/proxier.go`). Those of
/// the kubelet are not among them: KUBE-FIREWALL, KUBE-KUBELET-CANARY, KUBE-IPTABLES-HINT and
/// KUBE-MARK-DROP.
const CHAINS: [&str; 13] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-MARK-MASQ",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
    "KUBE-LOAD-BALANCER",
    "KUBE-NODE-PORT",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
];
/// Beginnings of the names of its chains for single services and endpoints.
const PREFIXES: [&str; 6] = [
    "KUBE-SVC-",
    "KUBE-SVL-",
    "KUBE-EXT-",
    "KUBE-FW-",
    "KUBE-SEP-",
    "KUBE-XLB-",
];
/// Marks packets for [`MASQUERADES`] to masquerade; others have been known to use it.
const MARKS: &str = "KUBE-MARK-MASQ";
const MASQUERADES: &str = "KUBE-POSTROUTING";

/// What has to be done to one table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removal {
    pub table: String,
    /// Rules in built-in chains that jump to kube-proxy's, as `iptables-save` writes them, without `-A`.
    jumps: Vec<String>,
    /// Chains that go.
    chains: BTreeSet<String>,
    /// Chains that others use and that therefore stay.
    pub kept: BTreeSet<String>,
}

impl Removal {
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    /// How many chains and jumps go.
    pub fn counts(&self) -> (usize, usize) {
        (self.chains.len(), self.jumps.len())
    }

    /// The text that `iptables-restore --noflush` is given. Only what it names is touched, and all of
    /// it in one step.
    pub fn script(&self) -> String {
        let lines =
            |form: &dyn Fn(&String) -> String| -> String { self.chains.iter().map(form).collect() };
        let jumps: String = self
            .jumps
            .iter()
            .map(|rule| format!("-D {rule}\n"))
            .collect();
        format!(
            "*{}\n{}{jumps}{}COMMIT\n",
            self.table,
            lines(&|chain| format!(":{chain} - [0:0]\n")),
            lines(&|chain| format!("-X {chain}\n")),
        )
    }
}

/// What has to be done to each table to be rid of kube-proxy.
///
/// # Errors
///
/// Where the text has a line that `iptables-save` does not write: nothing is guessed.
pub fn removals(saved: &str) -> Result<Vec<Removal>> {
    let tables = parse(saved)?;
    Ok(tables.iter().map(Table::removal).collect())
}

#[derive(Default)]
struct Table<'a> {
    name: &'a str,
    /// Whether each chain is built in.
    chains: BTreeMap<&'a str, bool>,
    rules: Vec<Rule<'a>>,
}

struct Rule<'a> {
    chain: &'a str,
    /// With the name of its chain.
    text: &'a str,
    target: Option<&'a str>,
}

fn parse(saved: &str) -> Result<Vec<Table<'_>>> {
    let mut tables = Vec::new();
    let mut open: Option<Table> = None;
    for line in saved.lines() {
        match (line.as_bytes().first(), &mut open) {
            (None | Some(b'#'), _) => {}
            (Some(b'*'), None) => {
                open = Some(Table {
                    name: &line[1..],
                    ..Table::default()
                });
            }
            (Some(b':'), Some(table)) => {
                let [chain, policy, _counters] = words(line)?[..] else {
                    bail!("cannot read the chain `{line}`")
                };
                table.chains.insert(&chain[1..], policy != "-");
            }
            (Some(b'-'), Some(table)) => table.rules.push(rule(line)?),
            (Some(b'C'), Some(_)) if line == "COMMIT" => tables.extend(open.take()),
            _ => bail!("cannot read the line `{line}`"),
        }
    }
    if let Some(table) = open {
        bail!("the table {} has no end", table.name);
    }
    Ok(tables)
}

fn rule(line: &str) -> Result<Rule<'_>> {
    let words = words(line)?;
    let ["-A", chain, ..] = words[..] else {
        bail!("cannot read the rule `{line}`")
    };
    let mut targets = words
        .windows(2)
        .filter(|pair| matches!(pair[0], "-j" | "-g"))
        .map(|pair| pair[1]);
    let target = targets.next();
    ensure!(targets.next().is_none(), "two targets in the rule `{line}`");
    Ok(Rule {
        chain,
        text: line[3..].trim_start(),
        target,
    })
}

/// The words of a line; what is in quotes is one word.
fn words(line: &str) -> Result<Vec<&str>> {
    let mut words = Vec::new();
    let mut begin = None;
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in line.bytes().enumerate() {
        if byte == b' ' && !quoted {
            words.extend(begin.take().map(|begin: usize| &line[begin..at]));
            continue;
        }
        begin.get_or_insert(at);
        if byte == b'"' && !escaped {
            quoted = !quoted;
        }
        escaped = byte == b'\\' && !escaped;
    }
    ensure!(!quoted, "a quote without an end in `{line}`");
    words.extend(begin.map(|begin| &line[begin..]));
    Ok(words)
}

impl Table<'_> {
    fn removal(&self) -> Removal {
        let mut ours: BTreeSet<&str> = self
            .chains
            .iter()
            .filter(|(name, built_in)| !**built_in && is_kube_proxys(name))
            .map(|(name, _)| *name)
            .collect();
        let kept = self.used_by_others(&ours);
        ours.retain(|chain| !kept.contains(chain));
        let jumps = self.rules.iter().filter(|rule| {
            let goes = rule.target.is_some_and(|target| ours.contains(target));
            goes && self.is_built_in(rule.chain)
        });
        Removal {
            table: self.name.to_owned(),
            jumps: jumps.map(|rule| rule.text.to_owned()).collect(),
            chains: ours.into_iter().map(str::to_owned).collect(),
            kept: kept.into_iter().map(str::to_owned).collect(),
        }
    }

    /// Those of `ours` that chains of others jump to, and all that these need.
    fn used_by_others<'a>(&'a self, ours: &BTreeSet<&'a str>) -> BTreeSet<&'a str> {
        let others = self
            .rules
            .iter()
            .filter(|rule| !ours.contains(rule.chain) && !self.is_built_in(rule.chain));
        let mut next: Vec<&str> = others.filter_map(|rule| rule.target).collect();
        let mut used = BTreeSet::new();
        while let Some(chain) = next.pop() {
            if !ours.contains(chain) || !used.insert(chain) {
                continue;
            }
            // Nobody jumps there from the other, but a mark is of no use alone.
            if chain == MARKS {
                next.push(MASQUERADES);
            }
            let rules = self.rules.iter().filter(|rule| rule.chain == chain);
            next.extend(rules.filter_map(|rule| rule.target));
        }
        used
    }

    fn is_built_in(&self, chain: &str) -> bool {
        self.chains.get(chain).copied().unwrap_or_default()
    }
}

fn is_kube_proxys(chain: &str) -> bool {
    CHAINS.contains(&chain) || PREFIXES.iter().any(|prefix| chain.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = r#"# Generated by iptables-save v1.8.9 on Sat Nov 21 12:00:00 2026
*nat
:PREROUTING ACCEPT [10:600]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-MARK-DROP - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SEP-AAAA - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-BBBB - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -m comment --comment "not -j KUBE-SERVICES \" at all" -j CNI-HOSTPORT-DNAT
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A POSTROUTING -s 10.244.0.0/16 -j MASQUERADE
-A CNI-HOSTPORT-DNAT -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.244.0.3:80
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A KUBE-SEP-AAAA -s 10.244.0.2/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-AAAA -p tcp -j DNAT --to-destination 10.244.0.2:8080
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m comment --comment "default/web cluster IP" -j KUBE-SVC-BBBB
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-SVC-BBBB -j KUBE-SEP-AAAA
COMMIT
# Completed on Sat Nov 21 12:00:00 2026
*filter
:FORWARD DROP [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -j KUBE-FIREWALL
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -j DROP
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
COMMIT
"#;

    fn scripts(saved: &str) -> Vec<String> {
        let removals = removals(saved).expect("readable");
        removals.iter().map(Removal::script).collect()
    }

    #[test]
    fn kube_proxys_chains_go_and_all_others_stay() {
        let [nat, filter] = &scripts(SAVED)[..] else {
            panic!("two tables")
        };
        assert_eq!(
            nat,
            r#"*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SEP-AAAA - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-BBBB - [0:0]
-D PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-D OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-D POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-X KUBE-MARK-MASQ
-X KUBE-NODEPORTS
-X KUBE-POSTROUTING
-X KUBE-PROXY-CANARY
-X KUBE-SEP-AAAA
-X KUBE-SERVICES
-X KUBE-SVC-BBBB
COMMIT
"#
        );
        assert_eq!(
            filter,
            r#"*filter
:KUBE-FORWARD - [0:0]
-D FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-X KUBE-FORWARD
COMMIT
"#
        );
    }

    #[test]
    fn what_others_use_stays_with_all_it_needs() {
        let used = SAVED
            .replace(
                "-A CNI-HOSTPORT-DNAT -p tcp",
                "-A CNI-HOSTPORT-DNAT -s 10.244.0.3/32 -j KUBE-MARK-MASQ\n-A CNI-HOSTPORT-DNAT -p tcp",
            )
            .replace("KUBE-KUBELET-CANARY - [0:0]", "KUBE-KUBELET-CANARY - [0:0]\n:KUBE-HP-X - [0:0]");
        let removals = removals(&used).expect("readable");
        let kept: Vec<_> = removals[0].kept.iter().collect();
        assert_eq!(kept, [MARKS, MASQUERADES]);
        let script = removals[0].script();
        assert!(
            !script.contains(MARKS) && !script.contains(MASQUERADES),
            "{script}"
        );
        assert!(script.contains("-X KUBE-SERVICES\n"), "{script}");
    }

    #[test]
    fn nothing_is_left_to_do_where_it_has_been_done() {
        let without = "*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n";
        assert!(removals(without).expect("readable")[0].is_empty());
        assert_eq!(removals("").expect("readable"), []);
    }

    #[test]
    fn nothing_is_guessed() {
        for odd in [
            "-A PREROUTING -j KUBE-SERVICES\n",
            "*nat\n:PREROUTING\nCOMMIT\n",
            "*nat\n-I PREROUTING -j X\nCOMMIT\n",
            "*nat\n-A PREROUTING -m comment --comment \"open -j X\nCOMMIT\n",
            "*nat\n-A PREROUTING -j X -j Y\nCOMMIT\n",
            "*nat\n*filter\nCOMMIT\n",
            "*nat\n",
            "table nat is incompatible\n",
        ] {
            removals(odd).expect_err(odd);
        }
    }
}
