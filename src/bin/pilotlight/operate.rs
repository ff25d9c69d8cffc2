//! `pilotlight sessions|session|tail|evict|warm|interrupt|usage`: what an operator asks a running server.
//!
//! All of them use the HTTP interface of the public listener as an admin: without keys the server trusts this machine, with
//! keys a file holds the admin's.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::args::{FAILED, MISUSED, block_on, complain, note};

#[cfg(feature = "cluster")]
pub(crate) mod cluster;
pub(crate) mod server;
pub(crate) mod show;
mod tail;

use server::{Problem, Server, ServerOptions};

/// The names of `SessionState`.
const STATES: [&str; 7] = ["dormant", "starting", "idle", "busy", "stopping", "backoff", "failed"];

#[derive(Args)]
pub(crate) struct SessionsOptions {
    /// Only sessions in this state
    #[arg(long, value_parser = STATES)]
    state: Option<String>,
    /// Only sessions of this user
    #[arg(long, value_name = "ID")]
    user: Option<String>,
    /// Largest first, or latest
    #[arg(long, default_value = "used")]
    sort: Sort,
    /// Maximum number of sessions that the server lists
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    #[command(flatten)]
    server: ServerOptions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sort {
    /// Time of the last use
    Used,
    Memory,
    Cost,
    Turns,
    Restarts,
}

/// One session.
#[derive(Args)]
pub(crate) struct SessionOptions {
    /// Name of the conversation
    #[arg(default_value = "default")]
    name: String,
    /// Its user
    #[arg(long, value_name = "ID")]
    user: String,
    #[command(flatten)]
    server: ServerOptions,
}

#[derive(Args)]
pub(crate) struct TailOptions {
    /// Only events of this user
    #[arg(long, value_name = "ID")]
    user: Option<String>,
    /// End after the events that the server remembers
    #[arg(long)]
    no_follow: bool,
    #[command(flatten)]
    server: ServerOptions,
}

#[derive(Args)]
pub(crate) struct UsageOptions {
    /// The user
    #[arg(long, value_name = "ID")]
    user: String,
    #[command(flatten)]
    server: ServerOptions,
}

/// What is done with one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Show,
    Evict,
    Warm,
    Interrupt,
}

pub(crate) fn sessions(options: &SessionsOptions) -> ExitCode {
    with_server(&options.server, async |server| {
        let limit = options.limit.to_string();
        let mut fields = vec![("limit", limit.as_str())];
        fields.extend(options.user.iter().map(|user| ("user", user.as_str())));
        let mut answer = server.get("/v1/sessions", &fields).await?;
        let is_truncated = answer["truncated"] == true;
        let mut found = answer["sessions"].as_array_mut().map(std::mem::take).unwrap_or_default();
        found.retain(|session| options.state.as_deref().is_none_or(|state| session["state"] == state));
        sort(&mut found, options.sort);
        if options.server.json {
            answer["sessions"] = found.into();
            return show::json(&answer);
        }
        show::sessions(&found, options.user.as_deref());
        if is_truncated {
            note("the server has more sessions: --user and --limit choose among them");
        }
        Ok(())
    })
}

fn sort(sessions: &mut [Value], by: Sort) {
    let field = match by {
        Sort::Used => "last_used",
        Sort::Memory => "memory_bytes",
        Sort::Cost => "total_cost_usd",
        Sort::Turns => "turns",
        Sort::Restarts => "restarts",
    };
    let number = |session: &Value| session[field].as_f64().unwrap_or(0.0);
    sessions.sort_by(|one, other| number(other).total_cmp(&number(one)));
}

pub(crate) fn session(options: &SessionOptions, verb: Verb) -> ExitCode {
    if matches!(options.name.as_str(), "" | "." | "..") {
        // Clients resolve them in a path, also when they are encoded.
        return complain("a session is not named so; `pilotlight sessions` lists them", MISUSED);
    }
    with_server(&options.server, async |server| {
        let path = format!("/v1/sessions/{}", server::encode(&options.name));
        let user = [("user", options.user.as_str())];
        let answer = match verb {
            Verb::Show => server.get(&path, &user).await?,
            Verb::Evict => server.delete(&path, &user).await?,
            Verb::Warm => server.post(&format!("{path}/warm"), &user).await?,
            Verb::Interrupt => server.post(&format!("{path}/interrupt"), &user).await?,
        };
        let is_shown = verb == Verb::Show;
        let pending = match is_shown {
            true => server.get(&format!("{path}/permissions"), &user).await?["permissions"].take(),
            false => Value::Null,
        };
        if options.server.json {
            let mut answer = answer;
            if is_shown {
                answer["permissions"] = pending;
            }
            return show::json(&answer);
        }
        match verb {
            Verb::Show => show::session(&answer, &pending),
            Verb::Evict => show::line("stopped; the next message resumes the conversation"),
            Verb::Warm => show::session(&answer, &Value::Null),
            Verb::Interrupt if answer["interrupted"] == true => show::line("interrupted"),
            Verb::Interrupt => show::line("no turn was running"),
        }
        Ok(())
    })
}

pub(crate) fn usage(options: &UsageOptions) -> ExitCode {
    with_server(&options.server, async |server| {
        let answer = server.get("/v1/usage", &[("user", options.user.as_str())]).await?;
        if options.server.json {
            return show::json(&answer);
        }
        show::usage(&answer);
        Ok(())
    })
}

pub(crate) fn tail(options: &TailOptions) -> ExitCode {
    with_server(&options.server, async |server| {
        tail::run(&server, options.user.as_deref(), !options.no_follow, options.server.json).await
    })
}

fn with_server(options: &ServerOptions, work: impl AsyncFnOnce(Server) -> Result<(), Problem>) -> ExitCode {
    let server = match Server::of(options) {
        Ok(server) => server,
        Err(problem) => return complain(&problem, MISUSED),
    };
    block_on(async {
        match work(server).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(problem) => complain(&problem, FAILED),
        }
    })
}
