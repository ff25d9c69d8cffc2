//! Validation of values that parse.

use std::fmt::Display;
use std::time::Duration;

use super::{CliConfig, Config, ConfigError};

pub(super) fn validate(config: &Config) -> Result<(), ConfigError> {
    durations(config)?;
    sizes(config)?;
    if config.cli.program.is_empty() {
        return Err(invalid("cli.program", "must be \"claude\", \"sim\" or a path"));
    }
    variable_names("cli.env", config.cli.env.keys())?;
    if config.cli.env.values().chain(&config.cli.args).any(|value| value.contains('\0')) {
        return Err(invalid("cli.env, cli.args", "must not hold a NUL byte"));
    }
    if config.data_dir.as_os_str().is_empty() {
        return Err(invalid("data_dir", "must be the path of a directory"));
    }
    #[cfg(feature = "server")]
    super::server::validate(config)?;
    #[cfg(feature = "server")]
    super::attach::validate(config)?;
    #[cfg(feature = "server")]
    super::audit::validate(config)?;
    #[cfg(feature = "server")]
    super::webhooks::validate(config)?;
    #[cfg(feature = "cluster")]
    super::cluster::validate(config)?;
    cli(&config.cli)?;
    super::mcp::validate(config)?;
    super::isolation::validate(config)?;
    super::workspace::validate(config)?;
    super::retention::validate(config)?;
    super::spares::validate(config)?;
    super::broker::validate(config)?;
    let prefix = &config.metrics.prefix;
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if !prefix.starts_with(|c: char| c.is_ascii_alphabetic()) || !prefix.chars().all(valid) {
        let problem = "must begin with a letter and hold only letters, digits and \"_\"";
        return Err(invalid("metrics.prefix", problem));
    }
    Ok(())
}

/// See [`Config::warnings`].
pub(super) fn warnings(config: &Config) -> Vec<String> {
    let session = &config.session;
    let is_stopped_first =
        !session.hibernate_after.is_zero() && session.hibernate_after >= session.idle_timeout;
    let warning = "session.hibernate_after has no effect: it is not shorter than session.idle_timeout, after which an idle \
                   child is stopped";
    is_stopped_first.then(|| warning.to_owned()).into_iter().collect()
}

/// Flags that pilotlight itself passes to the CLI.
const OWN_FLAGS: [&str; 8] = [
    "--session-id",
    "--resume",
    "-r",
    "--continue",
    "-c",
    "--fork-session",
    "--input-format",
    "--output-format",
];
/// Variables that pilotlight itself sets for each child.
pub(crate) const OWN_VARIABLES: [&str; 5] =
    ["HOME", "TMPDIR", "PILOTLIGHT_INSTANCE", "PILOTLIGHT_SESSION", "PILOTLIGHT_CHILD"];

/// The CLI's own default. More would only make a turn wait longer for the same error.
const MOST_RETRIES: u32 = 10;

fn cli(cli: &CliConfig) -> Result<(), ConfigError> {
    if cli.model.as_deref().is_some_and(|model| model.is_empty() || model.starts_with('-')) {
        return Err(invalid("cli.model", "must be a model's name; it cannot be empty or begin with \"-\""));
    }
    let own = |arg: &&String| OWN_FLAGS.iter().any(|flag| arg.split('=').next() == Some(*flag));
    if let Some(flag) = cli.args.iter().find(own) {
        return Err(invalid("cli.args", format!("{flag} is set by pilotlight itself; leave it out")));
    }
    if let Some(name) = OWN_VARIABLES.into_iter().find(|name| cli.env.contains_key(*name)) {
        return Err(invalid(
            "cli.env",
            format!("{name} is set by pilotlight for each session; leave it out"),
        ));
    }
    let unfit = |tool: &&String| tool.is_empty() || tool.starts_with('-') || tool.contains(['\0', ',']);
    if let Some(tool) = cli.disallowed_tools.iter().find(unfit) {
        return Err(invalid("cli.disallowed_tools", format!("{tool:?} cannot be the name of a tool")));
    }
    if cli.api_retries > MOST_RETRIES {
        let problem = format!("must be at most {MOST_RETRIES}, which takes three minutes");
        return Err(invalid("cli.api_retries", problem));
    }
    variable_names("cli.env_pass", &cli.env_pass)
}

fn variable_names<'a>(key: &str, names: impl IntoIterator<Item = &'a String>) -> Result<(), ConfigError> {
    match names.into_iter().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
        Some(name) => Err(invalid(key, format!("{name:?} cannot be the name of an environment variable"))),
        None => Ok(()),
    }
}

fn durations(config: &Config) -> Result<(), ConfigError> {
    let (session, restart) = (&config.session, &config.restart);
    let checked = [
        ("drain_timeout", config.drain_timeout),
        ("session.idle_timeout", session.idle_timeout),
        ("session.spawn_timeout", session.spawn_timeout),
        ("session.stall_timeout", session.stall_timeout),
        ("session.ping_timeout", session.ping_timeout),
        ("session.turn_timeout", session.turn_timeout),
        ("session.permission_timeout", session.permission_timeout),
        ("session.tool_timeout", session.tool_timeout),
        ("session.stop_interrupt", session.stop_interrupt),
        ("session.stop_eof", session.stop_eof),
        ("session.stop_term", session.stop_term),
        ("session.write_timeout", session.write_timeout),
        ("restart.window", restart.window),
        ("restart.backoff", restart.backoff),
        ("restart.backoff_max", restart.backoff_max),
        ("restart.circuit_pause", restart.circuit_pause),
        ("limits.queue_deadline", config.limits.queue_deadline),
        ("mcp.connect_timeout", config.mcp.connect_timeout),
        ("metrics.sample_interval", config.metrics.sample_interval),
    ];
    let shortest = [
        ("session.ping_timeout", session.ping_timeout, Duration::from_millis(10)),
        ("session.stall_timeout", session.stall_timeout, Duration::from_millis(10)),
        ("session.spawn_timeout", session.spawn_timeout, Duration::from_millis(10)),
        ("metrics.sample_interval", config.metrics.sample_interval, Duration::from_millis(100)),
    ];
    for (key, value, least) in shortest {
        if value < least {
            return Err(invalid(key, format!("must be longer than 0, at least {}ms", least.as_millis())));
        }
    }
    for (key, value) in checked {
        duration(key, value)?;
    }
    // 0 switches it off.
    if !session.hibernate_after.is_zero() {
        duration("session.hibernate_after", session.hibernate_after)?;
    }
    if restart.backoff > restart.backoff_max {
        return Err(invalid("restart.backoff", "must not be longer than restart.backoff_max"));
    }
    Ok(())
}

fn sizes(config: &Config) -> Result<(), ConfigError> {
    let (session, limits) = (&config.session, &config.limits);
    // (key, value, smallest, largest)
    let checked = [
        ("session.turn_queue", session.turn_queue, 0, 10_000),
        ("session.event_buffer", session.event_buffer, 1, 1 << 20),
        ("session.event_buffer_bytes", session.event_buffer_bytes, 1 << 10, 1 << 30),
        ("session.line_limit", session.line_limit, 1 << 10, 1 << 30),
        ("session.prompt_limit", session.prompt_limit, 1 << 10, 1 << 30),
        ("session.history_limit", session.history_limit, 1 << 10, 1 << 30),
        ("session.system_prompt_limit", session.system_prompt_limit, 1 << 10, 1 << 30),
        ("session.tools_limit", session.tools_limit, 1 << 10, 1 << 24),
        (
            "session.journal_bytes",
            usize::try_from(session.journal_bytes).unwrap_or(usize::MAX),
            1 << 20,
            1 << 30,
        ),
        ("session.stderr_tail", session.stderr_tail, 0, 1 << 20),
        ("limits.max_children", limits.max_children, 1, 1 << 20),
        ("limits.starts_in_flight", limits.starts_in_flight, 1, 1 << 16),
        ("limits.max_sessions", limits.max_sessions, 1, 1 << 24),
        ("limits.sessions_per_user", limits.sessions_per_user, 1, 1 << 20),
        ("limits.queue", limits.queue, 0, 1 << 20),
        ("restart.intensity", config.restart.intensity as usize, 0, 1 << 16),
    ];
    bounded("limits.child_oom_score", limits.child_oom_score, 0, 1000)?;
    if limits.child_open_files.is_some_and(|files| files < 32) {
        return Err(invalid("limits.child_open_files", "must be at least 32: the CLI breaks with fewer"));
    }
    if limits.cpu_per_session.is_some_and(|cores| !(LEAST_CORES..=MOST_CORES).contains(&cores)) {
        let problem = format!("must be a number of cores from {LEAST_CORES} to {MOST_CORES}, such as 1.5");
        return Err(invalid("limits.cpu_per_session", problem));
    }
    for (key, value, smallest, largest) in checked {
        bounded(key, value, smallest, largest)?;
    }
    // With less the CLI's own files do not fit.
    for (key, value, smallest) in [
        ("limits.workspace_bytes", limits.workspace_bytes, 1 << 20),
        ("limits.workspace_files", limits.workspace_files, 100),
    ] {
        if let Some(value) = value {
            bounded(key, value, smallest, u64::MAX)?;
        }
    }
    Ok(())
}

/// With less the CLI is not ready in time.
const LEAST_CORES: f64 = 0.1;
/// More than any machine has.
const MOST_CORES: f64 = 4096.0;

/// Maximum duration: beyond a year arithmetic on deadlines is unsafe.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

pub(super) fn duration(key: &str, value: Duration) -> Result<(), ConfigError> {
    if value.is_zero() || value > LONGEST {
        return Err(invalid(key, "must be longer than 0 and at most a year, such as \"300s\""));
    }
    Ok(())
}

pub(super) fn bounded<T: Copy + Display + PartialOrd>(
    key: &str,
    value: T,
    smallest: T,
    largest: T,
) -> Result<(), ConfigError> {
    if !(smallest..=largest).contains(&value) {
        return Err(invalid(key, format!("must be at least {smallest} and at most {largest}, not {value}")));
    }
    Ok(())
}

pub(super) fn invalid(key: impl Into<String>, problem: impl Into<String>) -> ConfigError {
    ConfigError::Key { key: key.into(), problem: problem.into() }
}
