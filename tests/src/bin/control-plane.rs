//! Finds the control plane that the cluster tests need, or builds it once for this machine, and
//! prints the folders it is in, to be put in front of `PATH`.

use std::process::ExitCode;

use lb_tests::control_plane;

fn main() -> ExitCode {
    match control_plane::ensure().and_then(|binaries| Ok(std::env::join_paths(binaries.folders())?))
    {
        Ok(folders) => {
            println!("{}", folders.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
