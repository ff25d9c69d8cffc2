//! `pilotlight cluster status|drain|resume|rebalance|forget|export`: the nodes of a cluster, and what an operator does about them.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use pilotlight::at_rest::{self, AtRestError, ClusterCopy};

use super::server::{self, ServerOptions};
use super::{show, with_server};
use crate::args::{FAILED, MISUSED, Options, block_on, complain, note, start_log};

#[derive(Args)]
pub(crate) struct ClusterOptions {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// List the live nodes and the users that each has
    Status {
        #[command(flatten)]
        server: ServerOptions,
    },
    /// Have the node that is asked take no further users and hand over those it has
    Drain {
        #[command(flatten)]
        server: ServerOptions,
    },
    /// Have the node that is asked take users again
    Resume {
        #[command(flatten)]
        server: ServerOptions,
    },
    /// Let resting users of the node that is asked go to the nodes where they have their place
    Rebalance {
        /// Maximum number of users
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=10_000))]
        most: u16,
        #[command(flatten)]
        server: ServerOptions,
    },
    /// Remove what a dead node has left in etcd
    Forget {
        /// Name of the node (`cluster.node`)
        name: String,
        #[command(flatten)]
        server: ServerOptions,
    },
    /// Write all users to a data directory for a single node, from etcd and the store; no node is asked
    Export {
        /// New or empty directory
        directory: PathBuf,
        /// Configuration file (TOML) of any node
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Also while nodes run; what they store meanwhile is missing
        #[arg(long)]
        running: bool,
    },
}

pub(crate) fn run(options: &ClusterOptions) -> ExitCode {
    match &options.verb {
        Verb::Status { server } => with_server(server, async |api| {
            let answer = api.get("/v1/cluster", &[]).await?;
            if server.json { show::json(&answer) } else { show::cluster(&answer) }
        }),
        Verb::Drain { server } => changed(server, "/v1/cluster/drain"),
        Verb::Resume { server } => changed(server, "/v1/cluster/resume"),
        Verb::Rebalance { most, server } => with_server(server, async |api| {
            let most = most.to_string();
            let answer = api.post("/v1/cluster/rebalance", &[("limit", most.as_str())]).await?;
            if server.json {
                return show::json(&answer);
            }
            show::line(&format!(
                "{} users go to other nodes, {} are left for later calls",
                answer["moved"], answer["left"]
            ));
            Ok(())
        }),
        Verb::Export { directory, config, running } => export(directory, config.clone(), *running),
        Verb::Forget { name, server } => with_server(server, async |api| {
            let answer = api.delete(&format!("/v1/cluster/nodes/{}", server::encode(name)), &[]).await?;
            if server.json {
                return show::json(&answer);
            }
            show::line(&format!("removed, with {} users that it had", answer["owners"]));
            Ok(())
        }),
    }
}

fn export(directory: &Path, config: Option<PathBuf>, is_running: bool) -> ExitCode {
    let config = start_log().and_then(|()| Options { config, ..Options::default() }.configuration());
    let config = match config {
        Ok(config) => config,
        Err(error) => return complain(&error.to_string(), MISUSED),
    };
    block_on(async {
        match at_rest::export_cluster(&config, directory, is_running).await {
            Ok(ClusterCopy { users, sessions, lossy, left_out, failed, .. }) => {
                note(&format!("exported: {users} users, {sessions} sessions"));
                if lossy > 0 {
                    note(&format!(
                        "{lossy} users may lack their latest turns, which their conversations report"
                    ));
                }
                if left_out > 0 {
                    note(&format!("left out: stored responses of {left_out} users without a conversation"));
                }
                if failed > 0 {
                    let problem =
                        format!("{failed} users are missing: their data could not be read, as the log says");
                    return complain(&problem, FAILED);
                }
                ExitCode::SUCCESS
            }
            Err(error @ AtRestError::NoCluster) => complain(&error.to_string(), MISUSED),
            Err(error) => complain(&error.to_string(), FAILED),
        }
    })
}

fn changed(server: &ServerOptions, path: &str) -> ExitCode {
    with_server(server, async |api| {
        let answer = api.post(path, &[]).await?;
        if server.json { show::json(&answer) } else { show::cluster(&answer) }
    })
}
