//! The command `lb`.

use std::process::ExitCode;

use lb_userspace::cli;

#[tokio::main]
async fn main() -> ExitCode {
    let (cli, settings) = cli::parse();
    match cli::execute(cli, settings).await {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("lb: {failure}");
            failure.exit_code()
        }
    }
}
