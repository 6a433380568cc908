//! Real TCP and UDP through network namespaces, links, routes and netfilter.

mod choice;
mod cleanup;
mod connections;
mod cycles;
mod devices;
mod enforcement;
mod errors;
mod flows;
mod forwarding;
mod kube_proxy;
mod manifests;
mod outside;
mod policies;
mod reach;
mod restart;
mod sockets;
mod surface;
mod updates;
mod world;

use std::process::ExitCode;

use anyhow::Result;
use lb_tests::sandbox::{Family, Protocol, remove_on_signal};
use libtest_mimic::{Arguments, Failed, Trial};

use self::{
    outside::Outside,
    world::{Scene, Shape, Shared, Stage},
};

fn main() -> Result<ExitCode> {
    remove_on_signal(130)?;
    let mut trials = Vec::new();
    for shape in Shape::all() {
        trials.extend(connections::trials(&Shared::<Stage>::new(shape)));
    }
    for shape in outside::SHAPES {
        let shared = Shared::<Outside>::new(shape);
        trials.extend(reach::trials(&shared));
        trials.extend(forwarding::trials(&shared));
        if shape == outside::PLAIN {
            trials.extend(policies::trials(&shared));
            trials.extend(choice::trials(&shared));
            trials.extend(cycles::trials(&shared));
        }
    }
    trials.extend(flows::trials(&Shared::<Stage>::new(Shape::PLAIN)));
    trials.extend(updates::trials());
    trials.extend(errors::trials());
    trials.extend(manifests::trials());
    trials.extend(restart::trials());
    trials.extend(cleanup::trials());
    trials.extend(devices::trials());
    trials.extend(enforcement::trials());
    trials.extend(surface::trials());
    trials.extend(sockets::trials());
    trials.extend(kube_proxy::trials());
    Ok(libtest_mimic::run(&Arguments::from_args(), trials).exit_code())
}

/// A trial of its own.
fn trial(name: impl Into<String>, test: impl Fn() -> Result<()> + Send + 'static) -> Trial {
    Trial::test(name, move || {
        test().map_err(|error| Failed::from(format!("{error:#}")))
    })
}

/// One trial per protocol and family in a shared world.
fn each<T: Scene + Send + Sync + 'static>(
    shared: &Shared<T>,
    what: &str,
    test: fn(&T, Protocol, Family) -> Result<()>,
) -> Vec<Trial> {
    let mut trials = Vec::new();
    for protocol in Protocol::BOTH {
        for family in Family::BOTH {
            let shared = shared.clone();
            let name = format!(
                "{what} {} {} {}",
                shared.name(),
                protocol.name(),
                family.name()
            );
            trials.push(trial(name, move || {
                shared.run(|scene| test(scene, protocol, family))
            }));
        }
    }
    trials
}
