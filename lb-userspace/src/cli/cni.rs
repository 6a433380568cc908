//! `lb cni`: the plugin that container runtimes call, and its installation.

use std::{env, io, path::PathBuf};

use anyhow::{Context as _, anyhow};
use clap::{Args, Subcommand};

use super::Failure;
use crate::cni::{self, Installed, Variables};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Cni {
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Copy this program to the node's CNI plugins and put it at the end of the network
    /// configuration that the runtime reads; what is there already stays
    Install {
        #[command(flatten)]
        folders: Folders,
        /// The agent's unix socket, as the runtime sees it
        #[arg(
            long,
            env = "LB_SOCKET",
            value_name = "FILE",
            default_value = "/run/lb/lb.sock"
        )]
        socket: PathBuf,
    },
    /// Take the plugin out of every network configuration, then remove it
    Uninstall {
        #[command(flatten)]
        folders: Folders,
    },
}

/// Where container runtimes look.
#[derive(Debug, Args)]
pub struct Folders {
    /// Where network configurations are
    #[arg(
        long,
        env = "LB_CNI_CONF_DIR",
        value_name = "DIR",
        default_value = "/etc/cni/net.d"
    )]
    cni_conf_dir: PathBuf,
    /// Where plugins are
    #[arg(
        long,
        env = "LB_CNI_BIN_DIR",
        value_name = "DIR",
        default_value = "/opt/cni/bin"
    )]
    cni_bin_dir: PathBuf,
}

pub async fn execute(command: Option<Command>) -> Result<(), Failure> {
    match command {
        None => call().await,
        Some(Command::Install { folders, socket }) => {
            let own = env::current_exe().context("find this program")?;
            let Folders {
                cni_conf_dir,
                cni_bin_dir,
            } = folders;
            let Installed {
                conflist,
                changed,
                binary,
            } = cni::install(&cni_conf_dir, &cni_bin_dir, &own, &socket)?;
            eprintln!("installed {}", binary.display());
            let how = if changed { "added to" } else { "already in" };
            eprintln!("{how} {}", conflist.display());
            Ok(())
        }
        Some(Command::Uninstall { folders }) => {
            let changed = cni::remove(&folders.cni_conf_dir, &folders.cni_bin_dir)?;
            for file in &changed {
                eprintln!("removed from {}", file.display());
            }
            if changed.is_empty() {
                eprintln!("there was nothing to remove");
            }
            Ok(())
        }
    }
}

/// A runtime's call: what it asks for is in the environment and on stdin.
async fn call() -> Result<(), Failure> {
    let Some(variables) = Variables::of_process() else {
        return Err(Failure::Usage(
            "container runtimes call this with CNI_COMMAND; `lb cni install` has them do so"
                .to_owned(),
        ));
    };
    let input = io::read_to_string(io::stdin()).context("read the network configuration")?;
    let (answer, well) = cni::execute(&variables, &input).await;
    if let Some(answer) = &answer {
        println!("{answer}");
    }
    match (well, answer) {
        (false, Some(answer)) => {
            let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
            Err(anyhow!("{}: {}", text("msg"), text("details")).into())
        }
        _ => Ok(()),
    }
}
