//! `pilotlight keys`: creates, lists and revokes API keys. A running server follows the file.

use std::io::Write;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use pilotlight::Config;
use pilotlight::config::PermissionPolicy;
use pilotlight::model::ids::UserId;
use pilotlight::server::keys::{self, Entry, KeyFileError, KeyLimits, Role};

use crate::args::{FAILED, MISUSED, complain, environment};

#[derive(Args)]
pub(crate) struct KeysOptions {
    #[command(subcommand)]
    command: Command,
    /// Key file; default is auth.keys_file of the configuration
    #[arg(long, value_name = "FILE", global = true)]
    file: Option<PathBuf>,
    /// Configuration file that names the key file
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Create a key; it is printed once, the file stores its digest
    New(New),
    /// List keys by id, without their secrets
    List,
    /// Remove a key; a running server refuses it within two seconds
    Revoke {
        /// Id of the key, as listed
        id: String,
    },
}

#[derive(Args)]
struct New {
    #[command(flatten)]
    role: RoleOptions,
    /// Label for people
    #[arg(long)]
    label: Option<String>,
    /// Overrides http.requests_per_minute
    #[arg(long, value_name = "N")]
    requests_per_minute: Option<NonZeroU32>,
    /// Overrides http.turns_per_user
    #[arg(long, value_name = "N")]
    concurrent_turns: Option<NonZeroU32>,
    /// Users without a session whom a service may name in a minute
    #[arg(long, value_name = "N")]
    new_users_per_minute: Option<NonZeroU32>,
    /// Models that the key may use, separated by commas; the first serves requests that name none
    #[arg(long, value_name = "MODELS", value_delimiter = ',')]
    models: Option<Vec<String>>,
    /// Policy for tools that need a permission, if stricter than permissions.policy
    #[arg(long, value_enum)]
    policy: Option<Policy>,
    /// Tools of the CLI that the key may use, separated by commas; "" for none
    #[arg(long, value_name = "TOOLS")]
    tools: Option<String>,
    /// Configured MCP servers that the key may use, separated by commas; "" for none
    #[arg(long, value_name = "SERVERS")]
    mcp: Option<String>,
    /// Maximum cost per user and day in US dollars
    #[arg(long, value_name = "USD")]
    usd_per_day: Option<f64>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Policy {
    Deny,
    Ask,
    Allow,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct RoleOptions {
    /// Key of one user
    #[arg(long, value_name = "ID")]
    user: Option<String>,
    /// Key of a trusted backend that names the user of each request
    #[arg(long)]
    service: bool,
    /// Key of the operator, who sees and stops all sessions and has none
    #[arg(long)]
    admin: bool,
}

pub(crate) fn run(options: &KeysOptions) -> ExitCode {
    let file = match file(options) {
        Ok(file) => file,
        Err(problem) => return complain(&problem, MISUSED),
    };
    let done = match &options.command {
        Command::New(new) => make(&file, new),
        Command::List => keys::list(&file).map(|entries| show(&entries)),
        Command::Revoke { id } => match keys::revoke(&file, id) {
            Ok(false) => return complain(&format!("there is no key {id:?} in {}", file.display()), FAILED),
            done => done.map(drop),
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ (KeyFileError::User(_) | KeyFileError::Limit(_))) => {
            complain(&error.to_string(), MISUSED)
        }
        Err(error) => complain(&error.to_string(), FAILED),
    }
}

fn file(options: &KeysOptions) -> Result<PathBuf, String> {
    if let Some(file) = &options.file {
        return Ok(file.clone());
    }
    let config = environment().and_then(|environment| Config::load(options.config.as_deref(), environment));
    let file = config.map_err(|error| error.to_string())?.auth.keys_file;
    file.ok_or_else(|| "no key file: use --file, or --config with auth.keys_file".to_owned())
}

fn make(file: &std::path::Path, new: &New) -> Result<(), KeyFileError> {
    let role = match (&new.role.user, new.role.service) {
        (Some(user), _) => Role::User(UserId::new(user)?),
        (None, true) => Role::Service,
        (None, false) => Role::Admin,
    };
    let mut limits = KeyLimits::default();
    limits.requests_per_minute = new.requests_per_minute;
    limits.concurrent_turns = new.concurrent_turns;
    limits.new_users_per_minute = new.new_users_per_minute;
    limits.models.clone_from(&new.models);
    limits.policy = new.policy.map(|policy| match policy {
        Policy::Deny => PermissionPolicy::Deny,
        Policy::Ask => PermissionPolicy::Ask,
        Policy::Allow => PermissionPolicy::Allow,
    });
    limits.tools = new.tools.as_deref().map(names);
    limits.mcp = new.mcp.as_deref().map(names);
    limits.usd_per_day = new.usd_per_day;
    let (key, entry) = keys::add(file, role, new.label.clone(), limits)?;
    let written = writeln!(std::io::stdout(), "{}", key.expose());
    if let Err(error) = written {
        // The key was not shown, so nobody can use it.
        keys::revoke(file, entry.id())?;
        return Err(KeyFileError::Write { path: "standard output".into(), source: error });
    }
    let note = format!("key {} added to {}; it is not shown again", entry.id(), file.display());
    // A closed standard error leaves no place to report to.
    writeln!(std::io::stderr(), "{note}").ok();
    Ok(())
}

/// The names of a list with commas; an empty list has none.
fn names(list: &str) -> Vec<String> {
    list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn show(entries: &[Entry]) {
    let mut text = format!("{:<12}{:<22}{:<9}{:<20}{}\n", "ID", "CREATED", "ROLE", "LIMITS", "USER, LABEL");
    for entry in entries {
        let (role, user) = match entry.role() {
            Role::User(user) => ("user", String::from_utf8_lossy(user.as_bytes()).into_owned()),
            Role::Service => ("service", String::new()),
            Role::Admin => ("admin", String::new()),
            _ => ("?", String::new()),
        };
        let limits = entry.limits();
        let requests = limits.requests_per_minute.map(|most| format!("{most}/min"));
        let turns = limits.concurrent_turns.map(|most| format!("{most} turns"));
        let usage = [
            limits.new_users_per_minute.map(|most| format!("{most} new users/min")),
            limits.models.as_ref().map(|names| format!("models={}", names.join(","))),
            limits.policy.map(|policy| format!("policy={policy:?}").to_lowercase()),
            limits.tools.as_ref().map(|names| format!("tools={}", names.join(","))),
            limits.mcp.as_ref().map(|names| format!("mcp={}", names.join(","))),
            limits.usd_per_day.map(|usd| format!("{usd} USD/day")),
        ];
        let limits: Vec<String> =
            requests.into_iter().chain(turns).chain(usage.into_iter().flatten()).collect();
        let (limits, label) = (limits.join(" "), entry.label().unwrap_or_default());
        let line = format!("{:<12}{:<22}{role:<9}{limits:<20}{user} {label}", entry.id(), entry.created());
        // A label is arbitrary text, and the output goes to a terminal.
        text.extend(line.trim_end().chars().map(|c| if c.is_control() { ' ' } else { c }));
        text.push('\n');
    }
    // A reader may close the pipe early.
    std::io::stdout().write_all(text.as_bytes()).ok();
}
