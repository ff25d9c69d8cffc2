//! Values that can be read but make no sense.

use std::time::Duration;

use super::{CliConfig, Config, ConfigError};
use crate::model::ids::UserId;

pub(super) fn validate(config: &Config) -> Result<(), ConfigError> {
    durations(config)?;
    sizes(config)?;
    if config.cli.program.is_empty() {
        return Err(wrong("cli.program", "must be \"claude\", \"sim\" or a path"));
    }
    if let Some(name) = config.cli.env.keys().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
        return Err(wrong("cli.env", format!("{name:?} cannot be the name of an environment variable")));
    }
    if config.cli.env.values().chain(&config.cli.args).any(|value| value.contains('\0')) {
        return Err(wrong("cli.env, cli.args", "must not hold a NUL byte"));
    }
    if config.data_dir.as_os_str().is_empty() {
        return Err(wrong("data_dir", "must be the path of a directory"));
    }
    if config.auth.keys_file.as_deref().is_some_and(|file| file.as_os_str().is_empty()) {
        return Err(wrong("auth.keys_file", "must be the path of a file"));
    }
    if config.auth.keys_file.is_some() && config.auth.allow_unauthenticated {
        return Err(wrong("auth.allow_unauthenticated", "contradicts auth.keys_file; set one of them"));
    }
    callers(config)?;
    cli(&config.cli)?;
    super::mcp::validate(config)?;
    if config.http.models.iter().any(|model| !crate::model::is_model_name(model)) {
        return Err(wrong("http.models", "must be models' names such as \"sonnet\" or full ids"));
    }
    let prefix = &config.metrics.prefix;
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if !prefix.starts_with(|c: char| c.is_ascii_alphabetic()) || !prefix.chars().all(valid) {
        return Err(wrong(
            "metrics.prefix",
            "must begin with a letter and hold only letters, digits and \"_\"",
        ));
    }
    Ok(())
}

fn callers(config: &Config) -> Result<(), ConfigError> {
    let (http, has_keys) = (&config.http, config.auth.keys_file.is_some());
    if let Some(user) = &http.default_user {
        if let Err(error) = UserId::new(user) {
            return Err(wrong("http.default_user", error.to_string()));
        }
        if has_keys || !http.listen.ip().to_canonical().is_loopback() {
            let problem = "works only without keys and where http.listen is a loopback address; a key of a user names it";
            return Err(wrong("http.default_user", problem));
        }
    }
    if !http.cors_origins.is_empty() && !has_keys {
        return Err(wrong(
            "http.cors_origins",
            "needs keys (auth.keys_file): without them every page could call",
        ));
    }
    if let Some(other) = http.cors_origins.iter().find(|origin| !is_origin(origin)) {
        let problem = format!(
            "{other:?} is no exact origin such as \"https://chat.example.org\" or \"http://localhost:3000\""
        );
        return Err(wrong("http.cors_origins", problem));
    }
    Ok(())
}

/// Scheme, host and port as a browser writes them: in small letters, nothing behind.
fn is_origin(text: &str) -> bool {
    let Some((scheme, host)) = text.split_once("://") else { return false };
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-:[]".contains(&byte);
    ["http", "https"].contains(&scheme) && !host.is_empty() && host.bytes().all(allowed)
}

/// What pilotlight itself says to the CLI cannot be said twice.
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
/// What pilotlight itself sets for each child.
pub(crate) const OWN_VARIABLES: [&str; 5] =
    ["HOME", "TMPDIR", "PILOTLIGHT_INSTANCE", "PILOTLIGHT_SESSION", "PILOTLIGHT_CHILD"];

/// The CLI's own default. More would only make a turn wait longer for the same error.
const MOST_RETRIES: u32 = 10;

fn cli(cli: &CliConfig) -> Result<(), ConfigError> {
    if cli.model.as_deref().is_some_and(|model| model.is_empty() || model.starts_with('-')) {
        return Err(wrong("cli.model", "must be a model's name; it cannot be empty or begin with \"-\""));
    }
    let own = |arg: &&String| OWN_FLAGS.iter().any(|flag| arg.split('=').next() == Some(*flag));
    if let Some(flag) = cli.args.iter().find(own) {
        return Err(wrong("cli.args", format!("{flag} is said by pilotlight itself; leave it out")));
    }
    if let Some(name) = OWN_VARIABLES.into_iter().find(|name| cli.env.contains_key(*name)) {
        return Err(wrong("cli.env", format!("{name} is set by pilotlight for each session; leave it out")));
    }
    let unfit = |tool: &&String| tool.is_empty() || tool.starts_with('-') || tool.contains(['\0', ',']);
    if let Some(tool) = cli.disallowed_tools.iter().find(unfit) {
        return Err(wrong("cli.disallowed_tools", format!("{tool:?} cannot be the name of a tool")));
    }
    if cli.api_retries > MOST_RETRIES {
        return Err(wrong(
            "cli.api_retries",
            format!("must be at most {MOST_RETRIES}, which takes three minutes"),
        ));
    }
    if let Some(name) = cli.env_pass.iter().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
        return Err(wrong("cli.env_pass", format!("{name:?} cannot be the name of an environment variable")));
    }
    Ok(())
}

fn durations(config: &Config) -> Result<(), ConfigError> {
    let (session, restart) = (&config.session, &config.restart);
    // A year: beyond it arithmetic on deadlines is no longer safe, and nobody means it.
    let longest = Duration::from_secs(365 * 24 * 3600);
    let checked = [
        ("drain_timeout", config.drain_timeout),
        ("http.heartbeat", config.http.heartbeat),
        ("http.write_timeout", config.http.write_timeout),
        ("http.header_timeout", config.http.header_timeout),
        ("http.body_timeout", config.http.body_timeout),
        ("session.idle_timeout", session.idle_timeout),
        ("session.spawn_timeout", session.spawn_timeout),
        ("session.stall_timeout", session.stall_timeout),
        ("session.ping_timeout", session.ping_timeout),
        ("session.turn_timeout", session.turn_timeout),
        ("session.permission_timeout", session.permission_timeout),
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
            return Err(wrong(key, format!("must be longer than 0, at least {}ms", least.as_millis())));
        }
    }
    for (key, value) in checked {
        if value.is_zero() || value > longest {
            return Err(wrong(key, "must be longer than 0 and at most a year, such as \"300s\""));
        }
    }
    if restart.backoff > restart.backoff_max {
        return Err(wrong("restart.backoff", "must not be longer than restart.backoff_max"));
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
        ("session.stderr_tail", session.stderr_tail, 0, 1 << 20),
        ("http.body_limit", config.http.body_limit, 1 << 10, 1 << 30),
        ("http.conversations_per_user", config.http.conversations_per_user, 1, 10_000),
        ("http.replay_bytes", config.http.replay_bytes, 4 << 10, 1 << 30),
        ("http.max_connections", config.http.max_connections, 1, 1 << 20),
        ("http.turns_per_user", config.http.turns_per_user as usize, 1, 1 << 20),
        ("limits.max_children", limits.max_children, 1, 1 << 20),
        ("limits.starts_in_flight", limits.starts_in_flight, 1, 1 << 16),
        ("limits.max_sessions", limits.max_sessions, 1, 1 << 24),
        ("limits.sessions_per_user", limits.sessions_per_user, 1, 1 << 20),
        ("limits.queue", limits.queue, 0, 1 << 20),
        ("restart.intensity", config.restart.intensity as usize, 0, 1 << 16),
    ];
    let score = limits.child_oom_score;
    if !(0..=1000).contains(&score) {
        return Err(wrong(
            "limits.child_oom_score",
            format!("must be at least 0 and at most 1000, not {score}"),
        ));
    }
    if limits.child_open_files.is_some_and(|files| files < 32) {
        return Err(wrong("limits.child_open_files", "must be at least 32: the CLI breaks with fewer"));
    }
    for (key, value, smallest, largest) in checked {
        if !(smallest..=largest).contains(&value) {
            return Err(wrong(
                key,
                format!("must be at least {smallest} and at most {largest}, not {value}"),
            ));
        }
    }
    Ok(())
}

fn wrong(key: &str, problem: impl Into<String>) -> ConfigError {
    ConfigError::Key { key: key.to_owned(), problem: problem.into() }
}
