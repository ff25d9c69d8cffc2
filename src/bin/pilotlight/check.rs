//! `pilotlight check`: is the configuration right, and does its CLI start?

use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use pilotlight::Config;
use pilotlight::error::StartError;
use pilotlight::server::{exposure, keys};
use pilotlight::system::probe::{ProbeError, Probed, doubts, probe, version};

use crate::args::{FAILED, MISUSED, Options, complain, runtime, start_log};

pub(crate) fn run(options: &Options) -> ExitCode {
    let config = match start_log().and_then(|()| options.configuration()) {
        Ok(config) => config,
        Err(error) => return complain(&error.to_string(), MISUSED),
    };
    let place = match Place::new() {
        Ok(place) => place,
        Err(error) => return complain(&format!("cannot make a temporary directory: {error}"), FAILED),
    };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(code) => return code,
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
    if let Err(error) = exposure::check(&config, entries.as_deref()) {
        return complain(&error.to_string(), MISUSED);
    }
    for doubt in doubts(&config) {
        say(
            "warning",
            &format!("others can change the CLI, and so read every conversation and key: {doubt}"),
        );
    }
    match runtime.block_on(look(&config, &place.0)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(ProbeError::Start(StartError::Config(error))) => complain(&error.to_string(), MISUSED),
        Err(error @ ProbeError::Start(_)) => complain(&format!("{error} [{}]", error.code()), FAILED),
        // What callers read as well holds no path of the server; the operator needs it.
        Err(error) => {
            complain(&format!("cli.program `{}`: {error} [{}]", config.cli.program, error.code()), FAILED)
        }
    }
}

/// Tells each thing as soon as it is known, so that a failure comes after what is well.
async fn look(config: &Config, place: &Path) -> Result<(), ProbeError> {
    let (program, told) = version(config, place).await?;
    say("program", &program.display().to_string());
    say("version", told.as_deref().unwrap_or("not told"));
    report(&probe(config, &place.join("data")).await?);
    Ok(())
}

fn report(probed: &Probed) {
    say("ready after", &format!("{:.2} s", probed.ready_after.as_secs_f64()));
    let memory = match probed.memory_bytes {
        0 => "not measured".to_owned(),
        bytes => format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20)),
    };
    say("memory", &memory);
    say("containment", probed.containment);
    if let Some(warning) = &probed.warning {
        say("warning", warning);
    }
}

fn say(what: &str, value: &str) {
    // Without a standard output the exit code is what is left.
    writeln!(std::io::stdout(), "{what:<14} {value}").ok();
}

/// A directory of our own, removed at the end.
struct Place(PathBuf);

impl Place {
    fn new() -> std::io::Result<Self> {
        let path = std::env::temp_dir().join(format!("pilotlight-check-{}", uuid::Uuid::new_v4()));
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, path = %self.0.display(), "the temporary directory was not removed");
        }
    }
}
