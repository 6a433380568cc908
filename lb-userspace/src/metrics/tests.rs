use std::{collections::BTreeMap, env, fs, path::Path};

use anyhow::{Context as _, Result};
use axum::{body::Body, http::Request};
use http_body_util::BodyExt as _;
use lb_common::{
    event::{ALLOWED, TallyKey},
    flow::Direction,
    reason::Reason,
};
use serde_json::json;
use tower::ServiceExt as _;

use super::*;
use crate::{
    status::{Fill, Interface, Problem, Verdict},
    tallies::Tallies,
    world::ObjectKey,
};

/// Of a pod, and of an interface that nobody knows.
fn tallies() -> Tallies {
    let key = |slot, outcome, audited_differs| TallyKey {
        slot,
        outcome,
        direction: Direction::ToPod as u8,
        audited_differs,
    };
    let counts = [
        (key(1, ALLOWED, 0), 5),
        (key(1, ALLOWED, 1), 2),
        (key(1, Reason::IngressDenied as u16, 0), 3),
        (key(2, ALLOWED, 0), 7),
    ];
    let pod = ObjectKey::new("shop", "web-0");
    Tallies::of(counts, [(1, Some(&pod)), (2, None)])
}

/// Something of everything.
fn busy() -> Metrics {
    let metrics = Metrics::new();
    metrics.queued(
        Changes {
            services: 2,
            slices: 3,
        },
        Timestamp::constant(1_700_000_000, 0),
    );
    metrics.synced(
        Duration::from_millis(3),
        [(Family::IPv6, Duration::from_millis(1_500))],
        Timestamp::constant(1_700_000_001, 500_000_000),
    );
    metrics.queued(
        Changes {
            services: 0,
            slices: 1,
        },
        Timestamp::constant(1_700_000_002, 0),
    );
    metrics.answered_healthz(503);
    metrics.answered_livez(200);
    metrics.answered_livez(200);
    metrics.publish(Snapshot {
        packets: [("no-endpoints".to_owned(), 12)].into(),
        tables: vec![Fill {
            table: "FLOWS".to_owned(),
            used: 10,
            size: 100,
        }],
        interfaces: vec![Interface {
            index: 1,
            name: "lo".to_owned(),
            verdict: Verdict::Left {
                reason: "not a veth".to_owned(),
            },
        }],
        problems: vec![Problem {
            kind: "Service".to_owned(),
            object: "default/web".to_owned(),
            problem: "no".to_owned(),
        }],
        without_local: [((Family::IPv4, "external"), 4)].into(),
        tallies: tallies(),
        lost_events: 9,
        closed_pods: 3,
    });
    metrics
}

#[test]
fn everything_has_the_name_that_dashboards_know() -> Result<()> {
    let text = busy().text()?;
    for line in [
        r#"kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1"#,
        r#"kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="0.004",ip_family="IPv6"} 1"#,
        r#"kubeproxy_network_programming_duration_seconds_bucket{le="1.0",ip_family="IPv6"} 0"#,
        r#"kubeproxy_network_programming_duration_seconds_bucket{le="2.0",ip_family="IPv6"} 1"#,
        r#"kubeproxy_network_programming_duration_seconds_bucket{le="300.0",ip_family="IPv6"} 1"#,
        "kubeproxy_sync_proxy_rules_endpoint_changes_total 4",
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending 1",
        "kubeproxy_sync_proxy_rules_service_changes_total 2",
        "kubeproxy_sync_proxy_rules_service_changes_pending 0",
        r#"kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"} 1700000001.5"#,
        r#"kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family="IPv6"} 1700000002.0"#,
        r#"kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="external"} 4"#,
        r#"kubeproxy_proxy_healthz_total{code="503"} 1"#,
        r#"kubeproxy_proxy_livez_total{code="200"} 2"#,
        r#"lb_packets_total{reason="no-endpoints"} 12"#,
        r#"lb_table_entries{table="FLOWS"} 10"#,
        r#"lb_table_size{table="FLOWS"} 100"#,
        r#"lb_interfaces{state="left"} 1"#,
        r#"lb_problems{kind="Service"} 1"#,
        r#"lb_pod_packets_total{namespace="shop",pod="web-0",direction="ingress",reason="allowed"} 7"#,
        r#"lb_pod_packets_total{namespace="shop",pod="web-0",direction="ingress",reason="ingress-denied"} 3"#,
        r#"lb_pod_audited_packets_total{namespace="shop",pod="web-0",direction="ingress",reason="allowed"} 2"#,
        "lb_lost_events_total 9",
        "lb_closed_pods 3",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert_eq!(text.matches("lb_pod_packets_total{").count(), 2, "{text}");
    let build = format!(r#"lb_build_info{{version="{}""#, env!("CARGO_PKG_VERSION"));
    assert!(text.contains(&build), "{text}");
    for of_the_process in [
        "process_cpu_seconds_total ",
        "process_resident_memory_bytes ",
    ] {
        assert!(text.contains(&format!("\n{of_the_process}")), "{text}");
    }
    Ok(())
}

/// The table of `docs/metrics.md`, from what a scrape says.
fn table(scrape: &str) -> Result<String> {
    let mut rows = BTreeMap::new();
    let mut help = "";
    let mut name = "";
    let mut kind = "";
    for line in scrape.lines() {
        if let Some(text) = line.strip_prefix("# HELP ") {
            help = text
                .split_once(' ')
                .context("a help")?
                .1
                .trim_end_matches('.');
        } else if let Some(text) = line.strip_prefix("# TYPE ") {
            (name, kind) = text.split_once(' ').context("a type")?;
        } else if !line.starts_with('#') {
            let suffix = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            let labels = line.split_once('{').map_or("", |(_, rest)| rest);
            let labels = labels.split_once('}').map_or("", |(labels, _)| labels);
            let labels: Vec<_> = labels
                .split(',')
                .filter_map(|label| label.split_once('='))
                .map(|(label, _)| label)
                .filter(|label| *label != "le")
                .map(|label| format!("`{label}`"))
                .collect();
            let row = format!("| {kind} | {} | {help} |", labels.join(", "));
            rows.insert(format!("{name}{suffix}"), row);
        }
    }
    let rows = rows.iter().map(|(name, row)| format!("| `{name}` {row}\n"));
    Ok(format!(
        "| name | type | labels | meaning |\n|---|---|---|---|\n{}",
        rows.collect::<String>()
    ))
}

/// `UPDATE=1` writes the table anew.
#[test]
fn the_page_lists_every_metric() -> Result<()> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let table = table(&busy().text()?)?;
    let text = fs::read_to_string(&page)?;
    let begin = text.find("| name |").context("no table on the page")?;
    let end = text[begin..]
        .find("\n\n")
        .map_or(text.len(), |length| begin + length + 1);
    if env::var_os("UPDATE").is_some() {
        fs::write(&page, format!("{}{table}{}", &text[..begin], &text[end..]))?;
    } else {
        assert_eq!(text[begin..end], table, "UPDATE=1 writes it anew");
    }
    Ok(())
}

async fn asked(path: &str) -> Result<(String, String)> {
    let router = router(busy(), json!({"node-name": "node-a"}));
    let answer = router
        .oneshot(Request::get(path).body(Body::empty())?)
        .await?;
    assert_eq!(answer.status(), 200, "{path}");
    let kind = answer.headers()["content-type"].to_str()?.to_owned();
    let body = answer.into_body().collect().await?.to_bytes();
    Ok((kind, String::from_utf8(body.to_vec())?))
}

#[tokio::test]
async fn the_server_answers_what_kube_proxy_answers() -> Result<()> {
    let text = |body: &str| ("text/plain; charset=utf-8".to_owned(), body.to_owned());
    assert_eq!(asked("/healthz").await?, text("ok"));
    assert_eq!(asked("/proxyMode").await?, text("ebpf"));
    let json = |body: &str| ("application/json".to_owned(), body.to_owned());
    assert_eq!(
        asked("/configz").await?,
        json(r#"{"lb":{"node-name":"node-a"}}"#)
    );
    let (kind, metrics) = asked("/metrics").await?;
    assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
    Ok(())
}
