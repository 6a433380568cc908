//! The programs in the kernel against the packet path in memory: each story runs packets through
//! both, `BPF_PROG_TEST_RUN` for the kernel's part, and every packet must meet the same fate, come
//! out with the same bytes and leave the same tables behind.

mod errors;
mod expiry;
mod flows;
#[path = "../../../lb-common/src/tests/frames.rs"]
mod frames;
mod kernel;
mod limits;
mod odd;
mod pair;
mod policies;
mod random;
mod refusals;
mod services;
#[path = "../../../lb-common/src/tests/wire.rs"]
mod wire;

use std::{
    net::SocketAddr,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;
use lb_common::headers;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use nix::unistd::geteuid;

use crate::{kernel::Kernel, pair::Pair};

/// Interface of the client pod, and of the pod that backs services on this node.
const CLIENT: u32 = 7;
const SERVER: u32 = 9;

/// Who plays in a story: the same in both families.
struct Cast {
    client: SocketAddr,
    /// Two services.
    service: SocketAddr,
    other: SocketAddr,
    /// Two backends.
    one: SocketAddr,
    two: SocketAddr,
}

impl Cast {
    fn v4() -> Self {
        Self {
            client: socket("10.244.0.5:40000"),
            service: socket("10.96.0.10:80"),
            other: socket("10.96.0.11:81"),
            one: socket("10.244.1.7:8080"),
            two: socket("10.244.1.8:8080"),
        }
    }

    fn v6() -> Self {
        Self {
            client: socket("[fd00:244::5]:40000"),
            service: socket("[fd00:96::10]:80"),
            other: socket("[fd00:96::11]:81"),
            one: socket("[fd00:244:1::7]:8080"),
            two: socket("[fd00:244:1::8]:8080"),
        }
    }
}

fn socket(text: &str) -> SocketAddr {
    text.parse().expect("an address and a port")
}

/// What happens, and what it is called.
type Story = (&'static str, fn(&mut Pair, &Cast));

/// Loaded by the first story; loading takes longer than any of them.
type Shared = Arc<Mutex<Option<Kernel>>>;

fn main() -> Result<ExitCode> {
    let mut arguments = Arguments::from_args();
    // This thread goes to a namespace, and the tests with it.
    arguments.test_threads = Some(1);
    if geteuid().is_root() {
        kernel::enter_namespace(&[CLIENT, SERVER])?;
    }

    let shared = Shared::default();
    let both = [
        services::STORIES,
        flows::STORIES,
        refusals::STORIES,
        errors::STORIES,
        odd::STORIES,
        random::STORIES,
        expiry::STORIES,
        policies::STORIES,
    ]
    .concat();
    let mut trials = vec![as_root("limits".to_owned(), limits::check)];
    for &(name, story) in both.iter().chain(odd::V4) {
        trials.push(play(format!("{name} v4"), &shared, story, Cast::v4()));
    }
    for &(name, story) in both.iter().chain(odd::V6) {
        trials.push(play(format!("{name} v6"), &shared, story, Cast::v6()));
    }
    Ok(libtest_mimic::run(&arguments, trials).exit_code())
}

fn play(name: String, shared: &Shared, story: fn(&mut Pair, &Cast), cast: Cast) -> Trial {
    trial(name, shared, move |kernel| {
        kernel.clear();
        story(&mut Pair::new(kernel), &cast);
        Ok(Completion::Completed)
    })
}

fn trial(
    name: String,
    shared: &Shared,
    run: impl FnOnce(&mut Kernel) -> Result<Completion> + Send + 'static,
) -> Trial {
    let shared = Arc::clone(shared);
    as_root(name, move || {
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        let kernel = match shared.take() {
            Some(kernel) => kernel,
            None => Kernel::load()?,
        };
        run(shared.insert(kernel))
    })
}

fn as_root(name: String, run: impl FnOnce() -> Result<Completion> + Send + 'static) -> Trial {
    Trial::ignorable_test(name, move || {
        if !geteuid().is_root() {
            return Ok(Completion::ignored_with("only root may load programs"));
        }
        run().map_err(|error| Failed::from(format!("{error:#}")))
    })
}
