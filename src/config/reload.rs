//! Which keys of a changed configuration a running system takes over, and which wait for the next start. Pure.

use super::Config;

/// What became of the keys that a changed configuration has with other values. Names only: a value may be a secret.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Reloaded {
    /// Keys that are in effect with their new values.
    pub applied: Vec<&'static str>,
    /// Keys that keep their values until the next start.
    pub waiting: Vec<&'static str>,
}

type Take = fn(&mut Config, &Config);

struct Key {
    name: &'static str,
    differs: fn(&Config, &Config) -> bool,
    /// Takes the value over, if a running system can.
    take: Option<Take>,
}

macro_rules! take {
    (live $($part:ident).+) => { Some(|to: &mut Config, from: &Config| to.$($part).+.clone_from(&from.$($part).+)) };
    (start $($part:ident).+) => { None };
}

macro_rules! keys {
    ($($kind:ident $section:ident $(. $key:ident)?;)*) => {
        &[$(Key {
            name: concat!(stringify!($section) $(, ".", stringify!($key))?),
            differs: |one, other| one.$section$(.$key)? != other.$section$(.$key)?,
            take: take!($kind $section $(.$key)?),
        },)*]
    };
}

/// Every key. `live` ones are read where they are used; `start` ones are part of what the start has built or proven: listeners,
/// buffers, rungs of isolation, ways to the model's API, the environment of children.
const KEYS: &[Key] = keys! {
    start data_dir;
    live drain_timeout;

    start cli.program;
    start cli.args;
    start cli.env;
    start cli.user_env_file;
    start cli.env_pass;
    start cli.shim;
    start cli.model;
    start cli.partial_messages;
    start cli.setting_sources;
    start cli.strict_mcp_config;
    start cli.disallowed_tools;
    start cli.unknown_version;
    start cli.attachments;
    start cli.api_retries;
    start cli.background_tasks;
    start cli.slash_commands;

    live session.idle_timeout;
    live session.hibernate_after;
    live session.spawn_timeout;
    live session.stall_timeout;
    live session.ping_timeout;
    live session.turn_timeout;
    live session.permission_timeout;
    start session.tool_timeout;
    start session.turn_queue;
    start session.event_buffer;
    start session.event_buffer_bytes;
    start session.line_limit;
    live session.prompt_limit;
    live session.history_limit;
    live session.tools_limit;
    live session.system_prompt_limit;
    start session.journal;
    start session.journal_bytes;
    start session.stderr_tail;
    start session.stop_interrupt;
    start session.stop_eof;
    start session.stop_term;
    start session.write_timeout;

    live restart.intensity;
    live restart.window;
    live restart.backoff;
    live restart.backoff_max;
    live restart.circuit_pause;
    live restart.retry_turn;

    start permissions.policy;

    start isolation.rungs;
    start isolation.require;
    start isolation.uids;
    start isolation.mounts;
    start isolation.egress;
    start isolation.accept_none;

    start broker.credentials;
    start broker.upstream_concurrency;
    start broker.proxy;
    start broker.ca_file;
    start broker.max_connections;
    start broker.connect_timeout;
    start broker.first_byte_timeout;
    start broker.idle_timeout;
    start broker.token_url;

    start mcp.callers;
    start mcp.allow_hosts;
    start mcp.connect_timeout;
    start mcp.servers;

    start workspace.template;

    live limits.max_children;
    live limits.starts_in_flight;
    live limits.memory_budget;
    start limits.memory_per_session;
    live limits.max_sessions;
    live limits.sessions_per_user;
    live limits.queue;
    live limits.queue_deadline;
    start limits.child_open_files;
    start limits.child_processes;
    start limits.cpu_per_session;
    start limits.child_file_size;
    start limits.workspace_bytes;
    start limits.workspace_files;
    live limits.usd_per_user_day;
    start limits.child_oom_score;

    start spares.min;
    start spares.max;

    start retention.idle_days;
    start retention.bytes_per_user;
    start retention.sessions_per_user;
    start retention.sweep_interval;

    start metrics.prefix;
    start metrics.sample_interval;
};

/// Those of the server.
#[cfg(feature = "server")]
const SERVER_KEYS: &[Key] = keys! {
    start http.listen;
    start http.body_limit;
    start http.heartbeat;
    start http.write_timeout;
    start http.header_timeout;
    start http.body_timeout;
    start http.max_connections;
    live http.requests_per_minute;
    live http.new_users_per_minute;
    live http.turns_per_user;
    start http.conversations_per_user;
    live http.on_disconnect;
    start http.replay_bytes;
    live http.strict;
    start http.default_user;
    live http.cors_origins;
    live http.models;

    start auth.keys_file;
    start auth.allow_unauthenticated;

    start admin.listen;

    start attach.socket;
    start attach.connections;
    start attach.idle_timeout;

    start audit.file;
    start audit.max_bytes;
    start audit.files;

    live webhooks.endpoints;
    live webhooks.timeout;
    live webhooks.attempts;
    live webhooks.backoff;
};
#[cfg(not(feature = "server"))]
const SERVER_KEYS: &[Key] = &[];

/// The keys of the cluster: a node is what it was when it joined.
#[cfg(feature = "cluster")]
const CLUSTER_KEYS: &[Key] = keys! {
    start cluster.etcd;
    start cluster.node;
    start cluster.listen;
    start cluster.address;
    start cluster.secret_file;
    start cluster.store;
    start cluster.replication;
    start cluster.commit_timeout;
    start cluster.route_timeout;
    start cluster.lease;
    start cluster.release_after;
    start cluster.room;
    start cluster.rebalance_per_minute;
    start cluster.prefix;
    start cluster.etcd_user;
    start cluster.etcd_password_file;
    start cluster.tls_identity_file;
    start cluster.tls_ca_file;
    start cluster.etcd_ca_file;
    start cluster.etcd_identity_file;
    start cluster.credentials;
};
#[cfg(not(feature = "cluster"))]
const CLUSTER_KEYS: &[Key] = &[];

fn all() -> impl Iterator<Item = &'static Key> {
    KEYS.iter().chain(SERVER_KEYS).chain(CLUSTER_KEYS)
}

/// Every key with whether a running system takes it over.
pub fn reloadable() -> impl Iterator<Item = (&'static str, bool)> {
    all().map(|key| (key.name, key.take.is_some()))
}

/// The configuration that is in effect once a running system has taken over what it can of another one. May be invalid: keys
/// that wait and keys that do not may contradict each other.
pub(crate) fn merged(running: &Config, other: &Config) -> (Config, Reloaded) {
    let (mut merged, mut reloaded) = (running.clone(), Reloaded::default());
    for key in all().filter(|key| (key.differs)(running, other)) {
        match key.take {
            Some(take) => {
                take(&mut merged, other);
                reloaded.applied.push(key.name);
            }
            None => reloaded.waiting.push(key.name),
        }
    }
    (merged, reloaded)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn live_keys_are_taken_others_wait() {
        let running = Config::new("/srv/a");
        let mut other = Config::new("/srv/b");
        other.limits.max_children = 7;
        other.session.turn_timeout = Duration::from_secs(7);
        other.cli.env.insert("ANTHROPIC_API_KEY".to_owned(), "sk-secret".to_owned());
        let (merged, reloaded) = merged(&running, &other);
        assert_eq!(reloaded.applied, ["session.turn_timeout", "limits.max_children"]);
        assert_eq!(reloaded.waiting, ["data_dir", "cli.env"]);
        assert!(!format!("{reloaded:?}").contains("secret"));
        let taken = Config { limits: other.limits, session: other.session, ..running.clone() };
        assert!(merged == taken, "nothing else has changed");
    }

    #[test]
    fn same_configuration_changes_nothing() {
        let running = Config::new("/srv/a");
        let (merged, reloaded) = merged(&running, &running);
        assert!(merged == running && reloaded == Reloaded::default());
    }
}
