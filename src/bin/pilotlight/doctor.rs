//! `pilotlight doctor`: what is wrong with this host, this configuration or the running server, and what to do.
//!
//! Every examination gives findings; none ends the others. Exit code 1 if one of them is a problem.

use std::process::ExitCode;

use clap::Args;
use pilotlight::config::Rung;
use pilotlight::probe::{Probed, doubts, probe, version};
use pilotlight::server::{attach, exposure, keys, webhooks};
use pilotlight::{Config, RungState};
use serde_json::{Value, json};

use crate::args::{FAILED, Options, block_on, complain, start_log};
use crate::operate::server::{Server, ServerOptions};
use crate::operate::show::{line, plain};
use crate::temp_dir::TempDir;

mod finding;
mod host;

use finding::{Finding, Level};

#[derive(Args)]
pub(crate) struct DoctorOptions {
    #[command(flatten)]
    server: ServerOptions,
    /// Do not start the CLI and the probes of isolation
    #[arg(long)]
    no_start: bool,
}

pub(crate) fn run(options: &DoctorOptions) -> ExitCode {
    if let Err(error) = start_log() {
        return complain(&error.to_string(), FAILED);
    }
    block_on(async {
        let findings = examine(options).await;
        let worst = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Good);
        print(&findings, worst, options.server.json);
        if worst == Level::Problem { ExitCode::from(FAILED) } else { ExitCode::SUCCESS }
    })
}

async fn examine(options: &DoctorOptions) -> Vec<Finding> {
    let found = Options { config: options.server.config.clone(), ..Options::default() };
    let config = match found.configuration() {
        Ok(config) => config,
        Err(error) => {
            return vec![Finding::problem(
                "configuration",
                error.to_string(),
                "correct the key that is named",
            )];
        }
    };
    let mut findings = configured(&config);
    findings.extend(host::examine(&config));
    if !options.no_start {
        findings.extend(started(&config).await);
    }
    findings.extend(running(&options.server).await);
    findings
}

fn configured(config: &Config) -> Vec<Finding> {
    let mut findings = vec![Finding::good("configuration", "valid")];
    let warnings = config.warnings().into_iter();
    findings
        .extend(warnings.map(|text| Finding::warning("configuration", text, "change the key that is named")));
    findings.extend(doubts(config).into_iter().map(|doubt| {
        let text = format!("other users can change the CLI: {doubt}");
        Finding::problem("cli", text, "take away their right to write there, or install the CLI elsewhere")
    }));
    match webhooks::check(config) {
        Ok(0) => {}
        Ok(endpoints) => findings.push(Finding::good("webhooks", format!("{endpoints} endpoints"))),
        Err(error) => {
            let remedy = "the server does not start without it: correct the file that is named";
            findings.push(Finding::problem("webhooks", error.to_string(), remedy));
        }
    }
    let (text, problem) = attach::state(config);
    findings.push(match problem {
        None => Finding::good("attach", text),
        Some(problem) => Finding::warning("attach", problem, "see docs/attach.md; other clients are served"),
    });
    let Some(file) = config.auth.keys_file.as_deref() else { return findings };
    findings.push(match keys::list(file) {
        Ok(entries) => Finding::good("keys", format!("{} keys", entries.len())),
        Err(error) => Finding::problem(
            "keys",
            error.to_string(),
            "the file must belong to the server's user or root, with mode 0600, and hold lines of `pilotlight keys new`",
        ),
    });
    findings
}

/// Starts the CLI once, as a session would.
async fn started(config: &Config) -> Vec<Finding> {
    let remedy =
        "`pilotlight check` shows the same start; the log level debug shows more (PILOTLIGHT_LOG=debug)";
    let temp = match TempDir::new("doctor", false).and_then(|temp| temp.let_pass().map(|()| temp)) {
        Ok(temp) => temp,
        Err(error) => {
            let text = format!("cannot make a temporary directory: {error}");
            return vec![Finding::problem("disk", text, "make room in TMPDIR, or set another")];
        }
    };
    let mut findings = vec![match version(config, temp.path()).await {
        Ok((program, version)) => {
            let version = version.unwrap_or_else(|| "of an unknown version".to_owned());
            Finding::good("cli", format!("{}, {version}", program.display()))
        }
        Err(error) => {
            let text = format!("cli.program `{}`: {error}", config.cli.program);
            return vec![Finding::problem("cli", text, "install the CLI, or set cli.program to its path")];
        }
    }];
    match probe(config, &temp.path().join("data")).await {
        Ok(probed) => findings.extend(probed_findings(config, &probed)),
        Err(error) => findings.push(Finding::problem("cli", error.to_string(), remedy)),
    }
    findings
}

fn probed_findings(config: &Config, probed: &Probed) -> Vec<Finding> {
    let took = probed.ready_after.as_secs_f64();
    let mut findings = vec![Finding::good("cli", format!("ready after {took:.2} s"))];
    let remedy = "see docs/operations.md, CLI versions";
    findings.extend(probed.warning.iter().map(|text| Finding::warning("cli", text.clone(), remedy)));
    let remedy = "see isolation.egress in docs/configuration.md";
    findings.extend(probed.egress_warning.map(|text| Finding::warning("isolation", text, remedy)));
    for (rung, state) in &probed.isolation {
        findings.push(of_rung(config, *rung, state));
    }
    if !probed.separates_users {
        findings.push(Finding::warning(
            "isolation",
            "tools of one user can read the files of another",
            "get one of the missing rungs, or leave tools denied (permissions.policy = \"deny\")",
        ));
    }
    let entries = config.auth.keys_file.as_deref().and_then(|file| keys::list(file).ok());
    let separated = exposure::is_separated(config, probed.separates_users, probed.restricts_network);
    if let Err(error) = exposure::check(config, entries.as_deref(), separated) {
        findings.push(Finding::problem("exposure", error.to_string(), "see docs/security.md"));
    }
    findings
}

fn of_rung(config: &Config, rung: Rung, state: &RungState) -> Finding {
    let name = rung.as_str();
    match state {
        RungState::Unavailable { reason, remedy } => {
            let text = format!("{name}: {reason}");
            match config.isolation.require.contains(&rung) {
                true => Finding::problem("isolation", text, *remedy),
                false => Finding::warning("isolation", text, *remedy),
            }
        }
        other => Finding::good("isolation", format!("{name}: {other}")),
    }
}

/// What the running server says of itself.
async fn running(options: &ServerOptions) -> Vec<Finding> {
    let server = match Server::of(options) {
        Ok(server) => server,
        Err(problem) => return vec![Finding::warning("server", problem, "name it with --server")],
    };
    let Ok(health) = server.health().await else {
        return vec![Finding::good("server", "none runs at this address")];
    };
    of_health(&health)
}

fn of_health(health: &Value) -> Vec<Finding> {
    let texts = |field: &str| -> Vec<String> {
        health[field].as_array().into_iter().flatten().filter_map(Value::as_str).map(plain).collect()
    };
    let mut findings = Vec::new();
    let version = health["version"].as_str().unwrap_or("unknown");
    findings.push(match version == env!("CARGO_PKG_VERSION") {
        true => Finding::good("server", format!("runs, version {version}")),
        false => Finding::warning(
            "server",
            format!("runs with version {}, this program has {}", plain(version), env!("CARGO_PKG_VERSION")),
            "restart the server after an upgrade",
        ),
    });
    let remedy = "new turns are refused until this is over; `pilotlight tail` shows what happens";
    findings.extend(texts("reasons").into_iter().map(|text| Finding::problem("server", text, remedy)));
    let remedy = "see docs/operations.md, health";
    findings.extend(texts("warnings").into_iter().map(|text| Finding::warning("server", text, remedy)));
    findings
}

fn print(findings: &[Finding], worst: Level, as_json: bool) {
    if as_json {
        let list: Vec<Value> = findings.iter().map(Finding::json).collect();
        return line(&json!({ "level": worst.as_str(), "findings": list }).to_string());
    }
    for finding in findings {
        finding.lines().iter().for_each(|text| line(text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_of_a_server_becomes_findings() {
        let of =
            |health: Value| of_health(&health).into_iter().map(|it| (it.level, it.text)).collect::<Vec<_>>();
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(
            of(json!({"version": version, "reasons": [], "warnings": []})),
            [(Level::Good, format!("runs, version {version}"))]
        );
        let found = of(json!({"version": "0.0.1", "reasons": ["no CLI has started"], "warnings": ["old"]}));
        let levels: Vec<_> = found.iter().map(|(level, _)| *level).collect();
        assert_eq!(levels, [Level::Warning, Level::Problem, Level::Warning]);
    }
}
