//! `pilotlight check`: is the configuration right, and does its CLI start?

use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use pilotlight::Config;
use pilotlight::error::StartError;
use pilotlight::probe::{ProbeError, Probed, probe};

use crate::options::{FAILED, MISUSED, Options, complain, runtime, start_log};

/// How long `--version` may take. The slowest known CLI needs a second and a half from a cold disk.
const VERSION_WITHIN: Duration = Duration::from_secs(20);
/// Longest version text shown.
const VERSION_CHARS: usize = 100;

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
    say("program", &config.cli.program);
    let version = runtime.block_on(version(&config, &place.0));
    say("version", version.as_deref().unwrap_or("it does not tell"));
    match runtime.block_on(probe(&config, &place.0.join("data"))) {
        Ok(probed) => {
            report(&probed);
            ExitCode::SUCCESS
        }
        Err(ProbeError::Start(StartError::Config(error))) => complain(&error.to_string(), MISUSED),
        Err(error) => complain(&format!("{error} [{}]", error.code()), FAILED),
    }
}

fn report(probed: &Probed) {
    say("ready after", &format!("{:.2} s", probed.ready_after.as_secs_f64()));
    let memory = match probed.memory_bytes {
        0 => "not measured".to_owned(),
        bytes => format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20)),
    };
    say("memory", &memory);
}

fn say(what: &str, value: &str) {
    // Without a standard output the exit code is what is left.
    writeln!(std::io::stdout(), "{what:<14} {value}").ok();
}

/// What the CLI says of itself. It gets nothing of our environment but the path to its own interpreter.
async fn version(config: &Config, home: &Path) -> Option<String> {
    let mut command = if config.cli.program == "sim" {
        let mut command = tokio::process::Command::new(std::env::current_exe().ok()?);
        command.arg("sim");
        command
    } else {
        tokio::process::Command::new(&config.cli.program)
    };
    command.arg("--version").env_clear().env("HOME", home).current_dir(home);
    command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command.stdin(std::process::Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(VERSION_WITHIN, command.output()).await.ok()?.ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().filter(|line| output.status.success() && !line.trim().is_empty())?;
    Some(line.chars().filter(|c| !c.is_control()).take(VERSION_CHARS).collect())
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
