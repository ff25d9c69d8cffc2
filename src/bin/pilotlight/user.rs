//! `pilotlight user`: exports or deletes the data of one user.
//!
//! A deletion asks the running server by its admin listener. Without one it works on the data directory itself.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use pilotlight::at_rest::{self, AtRestError};
use pilotlight::model::ids::UserId;
use pilotlight::{Config, StartError};

use crate::args::{FAILED, MISUSED, block_on, complain, note};
use crate::backup::{DataOptions, report};
use crate::operate::server::{encode, reachable, read_key};

/// The end of all children of a user takes less, unless hundreds run.
const ANSWERS_WITHIN: Duration = Duration::from_secs(600);

#[derive(Args)]
pub(crate) struct UserOptions {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Copy all data of a user to a directory, without credentials and links
    Export {
        /// The user
        id: OsString,
        /// New or empty directory
        #[arg(long, value_name = "DIRECTORY")]
        to: PathBuf,
        #[command(flatten)]
        data: DataOptions,
    },
    /// Delete a user with all data; a running server does it itself
    Delete {
        /// The user
        id: OsString,
        /// File with an admin key, for a running server with keys
        #[arg(long, value_name = "FILE")]
        admin_key: Option<PathBuf>,
        #[command(flatten)]
        data: DataOptions,
    },
}

pub(crate) fn run(options: &UserOptions) -> ExitCode {
    let (Command::Export { id, data, .. } | Command::Delete { id, data, .. }) = &options.command;
    let user = match UserId::new(id.as_bytes()) {
        Ok(user) => user,
        Err(error) => return complain(&error.to_string(), MISUSED),
    };
    let config = match data.configuration() {
        Ok(config) => config,
        Err(error) => return complain(&error.to_string(), MISUSED),
    };
    match &options.command {
        Command::Export { to, .. } => report("exported", at_rest::export_user(&config.data_dir, &user, to)),
        Command::Delete { admin_key, .. } => match at_rest::delete_user(&config.data_dir, &user) {
            Ok(sessions) => deleted(sessions),
            Err(AtRestError::DataDir(StartError::DataDirLocked(_))) => {
                block_on(ask_server(&config, &user, admin_key.as_deref()))
            }
            Err(error) => complain(&error.to_string(), FAILED),
        },
    }
}

fn deleted(sessions: usize) -> ExitCode {
    note(&format!("deleted the user with {sessions} sessions"));
    ExitCode::SUCCESS
}

async fn ask_server(config: &Config, user: &UserId, key: Option<&Path>) -> ExitCode {
    match request(config, user, key).await {
        Ok(sessions) => deleted(sessions),
        Err(problem) => complain(
            &format!(
                "a server uses the data directory, and its admin listener did not delete the user: {problem}"
            ),
            FAILED,
        ),
    }
}

async fn request(config: &Config, user: &UserId, key: Option<&Path>) -> Result<usize, String> {
    let address = reachable(config.admin.listen, "admin.listen")?;
    // In the query: clients resolve `.` and `..` in a path.
    let user = encode(user.as_bytes());
    let client = reqwest::Client::builder().no_proxy().timeout(ANSWERS_WITHIN).build();
    let client = client.map_err(|error| error.to_string())?;
    let mut request = client.delete(format!("http://{address}/v1/users?user={user}"));
    if let Some(file) = key {
        request = request.bearer_auth(read_key(file)?);
    }
    // The address has the user.
    let response = request.send().await.map_err(|error| error.without_url().to_string())?;
    let status = response.status();
    let answer: serde_json::Value = response.json().await.map_err(|error| error.without_url().to_string())?;
    let sessions = answer["sessions"].as_u64().and_then(|sessions| usize::try_from(sessions).ok());
    let problem = || answer["error"]["message"].as_str().unwrap_or("no answer of a server").to_owned();
    sessions.filter(|_| status.is_success()).ok_or_else(problem)
}
