//! The command `lb`.

use std::process::ExitCode;

use clap::Parser as _;
use lb_userspace::cli::{self, Cli};

#[tokio::main]
async fn main() -> ExitCode {
    match cli::execute(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("lb: {failure}");
            failure.exit_code()
        }
    }
}
