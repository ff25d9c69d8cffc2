//! `pilotlight check`: validates the configuration and starts its CLI once.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use pilotlight::Config;
use pilotlight::error::StartError;
use pilotlight::probe::{ProbeError, Probed, doubts, probe, version};
use pilotlight::server::{attach, exposure, keys, webhooks};

use crate::args::{FAILED, MISUSED, Options, block_on, complain, start_log};
use crate::temp_dir::TempDir;

pub(crate) fn run(options: &Options) -> ExitCode {
    let config = match start_log().and_then(|()| options.configuration()) {
        Ok(config) => config,
        Err(error) => return complain(&error.to_string(), MISUSED),
    };
    // Children may run as users of their own.
    let temp = match TempDir::new("check", false).and_then(|temp| temp.let_pass().map(|()| temp)) {
        Ok(temp) => temp,
        Err(error) => return complain(&format!("cannot make a temporary directory: {error}"), FAILED),
    };
    say(
        "configuration",
        &options.config.as_ref().map_or("defaults".into(), |file| file.display().to_string()),
    );
    let entries = match config.auth.keys_file.as_deref().map(keys::list).transpose() {
        Ok(entries) => entries,
        Err(error) => return complain(&format!("configuration key `auth.keys_file`: {error}"), MISUSED),
    };
    if let Some(entries) = &entries {
        say("keys", &entries.len().to_string());
    }
    match webhooks::check(&config) {
        Ok(0) => {}
        Ok(endpoints) => say("webhooks", &endpoints.to_string()),
        Err(error) => return complain(&error.to_string(), MISUSED),
    }
    let (attach, problem) = attach::state(&config);
    say("attach", &attach);
    for warning in config.warnings().into_iter().chain(problem.map(str::to_owned)) {
        say("warning", &warning);
    }
    for doubt in doubts(&config) {
        say(
            "warning",
            &format!("other users can change the CLI, and so read every conversation and key: {doubt}"),
        );
    }
    block_on(async {
        let separated = match look(&config, temp.path()).await {
            Ok(separated) => separated,
            Err(error) => return report_failure(&error, &config),
        };
        match exposure::check(&config, entries.as_deref(), separated) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => complain(&error.to_string(), MISUSED),
        }
    })
}

fn report_failure(error: &ProbeError, config: &Config) -> ExitCode {
    match error {
        ProbeError::Start(StartError::Config(error)) => complain(&error.to_string(), MISUSED),
        ProbeError::Start(error @ StartError::Isolation { .. }) => complain(&error.to_string(), MISUSED),
        ProbeError::Start(_) => complain(&format!("{error} [{}]", error.code()), FAILED),
        // The error's text has no server paths, because callers see it; the operator needs the path.
        _ => complain(&format!("cli.program `{}`: {error} [{}]", config.cli.program, error.code()), FAILED),
    }
}

/// Prints each fact as soon as it is known, so that a failure comes last. Returns whether users are kept apart.
async fn look(config: &Config, directory: &Path) -> Result<bool, ProbeError> {
    let (program, version) = version(config, directory).await?;
    say("program", &program.display().to_string());
    say("version", version.as_deref().unwrap_or("unknown"));
    let probed = probe(config, &directory.join("data")).await?;
    report(&probed);
    Ok(exposure::is_separated(config, probed.separates_users, probed.restricts_network))
}

fn report(probed: &Probed) {
    say("ready after", &format!("{:.2} s", probed.ready_after.as_secs_f64()));
    let memory = match probed.memory_bytes {
        0 => "not measured".to_owned(),
        bytes => format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20)),
    };
    say("memory", &memory);
    say("containment", probed.containment);
    for (rung, state) in &probed.isolation {
        say("isolation", &format!("{:<11} {state}", rung.as_str()));
    }
    for warning in probed.egress_warning.into_iter().chain(probed.warning.as_deref()) {
        say("warning", warning);
    }
}

fn say(what: &str, value: &str) {
    // A closed standard output leaves the exit code.
    writeln!(std::io::stdout(), "{what:<14} {value}").ok();
}
