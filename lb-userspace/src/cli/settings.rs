//! The flags that are in force, as data.

use clap::{ArgAction, ArgMatches, Command};
use serde_json::{Map, Value};

/// Every flag of `lb run` under its name in camel case, wherever its value comes from; empty for
/// other commands. A flag without a value is null.
pub fn of_run(command: &Command, matches: &ArgMatches) -> Value {
    let run = matches.subcommand_matches("run");
    let flags = command.find_subcommand("run").zip(run);
    let settings: Map<String, Value> = flags
        .into_iter()
        .flat_map(|(command, matches)| {
            let flags = command.get_arguments();
            flags.filter_map(|flag| {
                let name = camel_case(flag.get_long()?);
                let values = matches.get_raw(flag.get_id().as_str());
                let mut values = values
                    .into_iter()
                    .flatten()
                    .map(|value| value.to_string_lossy().into_owned());
                let value = match flag.get_action() {
                    ArgAction::Append => values.collect(),
                    ArgAction::SetTrue => (values.next().as_deref() == Some("true")).into(),
                    _ => values.next().map_or(Value::Null, Value::from),
                };
                Some((name, value))
            })
        })
        .collect();
    settings.into()
}

fn camel_case(flag: &str) -> String {
    let mut name = String::new();
    for (index, word) in flag.split('-').enumerate() {
        let (first, rest) = word.split_at(word.len().min(1));
        if index == 0 {
            name.push_str(first);
        } else {
            name.push_str(&first.to_uppercase());
        }
        name.push_str(rest);
    }
    name
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    fn settings(arguments: &[&str]) -> Value {
        let command = Cli::command();
        let matches = command.clone().try_get_matches_from(arguments);
        of_run(&command, &matches.expect("correct usage"))
    }

    #[test]
    fn every_flag_is_shown_with_its_value_or_default() {
        let given = settings(&[
            "lb",
            "run",
            "--manifests",
            "m",
            "--pod-interface",
            "veth*,cali*",
            "--metrics-bind-address",
            "",
        ]);
        for (name, value) in [
            ("manifests", "m".into()),
            ("podInterface", vec!["veth*", "cali*"].into()),
            ("apiserver", Value::Array(Vec::new())),
            ("healthzBindAddress", "0.0.0.0:10256".into()),
            ("metricsBindAddress", "".into()),
            ("bindAddressHardFail", false.into()),
            ("allowServiceExternalIps", "true".into()),
            ("bpffs", "/sys/fs/bpf".into()),
            ("kubeconfig", Value::Null),
        ] {
            assert_eq!(given.get(name), Some(&value), "{name}");
        }
        let hard = settings(&["lb", "run", "--bind-address-hard-fail"]);
        assert_eq!(hard["bindAddressHardFail"], true);
        assert_eq!(settings(&["lb", "status"]), Value::Object(Map::new()));
    }
}
