//! Usage, and what the shell sees.

use super::*;

fn run(arguments: &[&str]) -> Run {
    let arguments = ["lb", "run"].iter().chain(arguments);
    match Cli::try_parse_from(arguments)
        .expect("correct usage")
        .command
    {
        Command::Run(run) => *run,
        other => panic!("parsed as {other:?}"),
    }
}

fn fails(arguments: &[&str]) -> String {
    Cli::try_parse_from(arguments)
        .expect_err("wrong usage")
        .to_string()
}

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn every_flag_has_a_variable_named_after_it() {
    fn check(command: &clap::Command) {
        for flag in command.get_arguments().filter(|a| !a.is_positional()) {
            let long = flag.get_long().expect("a long form");
            if !["help", "version"].contains(&long) {
                let variable = format!("LB_{}", long.to_uppercase().replace('-', "_"));
                assert_eq!(flag.get_env(), Some(variable.as_ref()), "--{long}");
            }
        }
        command.get_subcommands().for_each(check);
    }
    check(&Cli::command());
}

#[test]
fn a_flag_outweighs_the_environment_and_that_the_pod() {
    let environment = || Some("/env".into());
    let choose = |arguments: &[&str]| choose_source(&run(arguments), environment(), true);
    assert_eq!(
        choose(&["--manifests", "m"]),
        Ok(Source::Manifests("m".into()))
    );
    assert_eq!(
        choose(&["--kubeconfig", "k"]),
        Ok(Source::Kubeconfig(Some("k".into())))
    );
    assert_eq!(choose(&[]), Ok(Source::Kubeconfig(None)));
    assert_eq!(choose_source(&run(&[]), None, true), Ok(Source::InCluster));
    assert_eq!(
        choose_source(&run(&[]), Some("".into()), true),
        Ok(Source::InCluster)
    );
}

#[test]
fn no_source_is_an_error_that_names_all_three() {
    let error = choose_source(&run(&[]), None, false).expect_err("no source");
    for source in [
        "--manifests",
        "--kubeconfig",
        "$KUBECONFIG",
        "service account",
    ] {
        assert!(error.contains(source), "{error}");
    }
}

#[test]
fn two_sources_are_wrong_usage() {
    let error = fails(&["lb", "run", "--manifests", "m", "--kubeconfig", "k"]);
    assert!(error.contains("cannot be used with"), "{error}");
    let error = fails(&["lb", "run", "--manifests", "m", "--apiserver", "https://a"]);
    assert!(error.contains("cannot be used with"), "{error}");
}

#[test]
fn repeatable_flags_also_take_lists() {
    let run = run(&["--pod-interface", "veth*,cali*", "--pod-interface", "tap?"]);
    let patterns: Vec<_> = run.pod_interface.iter().map(Pattern::as_str).collect();
    assert_eq!(patterns, ["veth*", "cali*", "tap?"]);
    assert!(fails(&["lb", "run", "--pod-interface", "[a"]).contains("--pod-interface"));
}

#[test]
fn pods_send_from_their_own_addresses_alone_unless_told_otherwise() {
    assert!(run(&[]).allow_pod_sources.is_empty());
    let given = ["--allow-pod-sources", "10.9.0.0/16,fd09::/64"];
    assert_eq!(run(&given).allow_pod_sources.len(), 2);
    assert!(fails(&["lb", "run", "--allow-pod-sources", "10.9.0.1"]).contains("10.9.0.1"));
}

#[test]
fn nodeports_are_served_on_the_primary_addresses_unless_told_otherwise() {
    let addresses = |arguments: &[&str]| {
        let items = run(arguments).nodeport_addresses;
        items.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(addresses(&[]), ["primary"]);
    let given = ["--nodeport-addresses", "localhost,10.0.0.0/8"];
    assert_eq!(addresses(&given), ["localhost", "10.0.0.0/8"]);
    let error = fails(&["lb", "run", "--nodeport-addresses", "10.0.0.1"]);
    assert!(error.contains("such as 10.0.0.0/8"), "{error}");
}

#[test]
fn a_cgroup_root_must_be_one() {
    assert!(fails(&["lb", "run", "--cgroup-root", "/"]).contains("not a cgroup v2 directory"));
    assert!(fails(&["lb", "run", "--cgroup-root", "/nowhere"]).contains("ENOENT"));
}

#[test]
fn a_connection_is_asked_for_by_pods_or_addresses() {
    let arguments = [
        "lb",
        "explain",
        "--manifests",
        "m",
        "a/web",
        "::ffff:10.0.0.1",
        "53",
    ];
    let parsed = Cli::try_parse_from(arguments.into_iter().chain(["UDP"]));
    let Command::Explain(question) = parsed.expect("correct usage").command else {
        panic!("another command");
    };
    let parties = [&question.source, &question.destination].map(ToString::to_string);
    assert_eq!(parties, ["a/web", "10.0.0.1"]);
    assert_eq!((question.port, question.protocol), (53, 17));
    let wrong = [
        "lb",
        "explain",
        "--manifests",
        "m",
        "a/b/c",
        "10.0.0.1",
        "53",
    ];
    assert!(fails(&wrong).contains("neither an IP address nor a pod"));
    let wrong = ["lb", "explain", "--manifests", "m", "a", "b", "53", "ip"];
    assert!(fails(&wrong).contains("not a protocol"));
}

#[test]
fn a_service_is_named_in_both_ways() {
    assert_eq!(service_key("a/web", None).as_deref(), Ok("a/web"));
    assert_eq!(service_key("web", Some("a")).as_deref(), Ok("a/web"));
    assert_eq!(service_key("a/web", Some("a")).as_deref(), Ok("a/web"));
    assert_eq!(service_key("web", None).as_deref(), Ok("default/web"));
    assert!(service_key("a/web", Some("b")).is_err());
}
