//! The adapter for `claude` (stream-json over stdin and stdout).
//!
//! Command line: `launch`, `home`, `judged`. Input lines: `control`, `prompt`. Output lines: `classify`, `fields`, `read`,
//! `terminal`, `answer`. Files: `transcript`, `import`, `credentials`. No other module names a message, a flag or a file
//! of this CLI.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

#[cfg(feature = "server")]
use super::AnswerReader;
use super::{
    Adapter, CommandLine, ControlResponse, HomeCleanup, HostRequest, Import, LaunchPlan, LaunchRefusal,
    LaunchSettings, LineKind, StoredCredentials, Task, Terminal,
};
use crate::config::CliConfig;
use crate::model::{Decision, Dirs, History, OauthCredentials, PermissionRequest, Prompt, PromptRefused};

#[cfg(feature = "server")]
mod answer;
#[cfg(feature = "broker")]
mod broker;
mod classify;
mod control;
mod credentials;
mod fields;
mod home;
mod import;
mod judged;
mod launch;
mod prompt;
mod read;
#[cfg(test)]
mod recordings;
mod terminal;
mod transcript;

/// The `claude` command-line agent, 1.0 and later.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Claude;

/// The stateless adapter.
pub(crate) static CLAUDE: Claude = Claude;

impl Adapter for Claude {
    fn is_judged(&self, version: &str) -> bool {
        judged::is_judged(version)
    }

    fn command(&self, plan: &LaunchPlan<'_>) -> CommandLine {
        launch::command(plan)
    }

    fn home_cleanup(&self, cli: &CliConfig) -> Option<HomeCleanup> {
        home::cleanup(cli)
    }

    fn fixed_variables(&self) -> &'static [&'static str] {
        &[transcript::CONFIG_DIR]
    }

    fn launch_refusal(&self, terminal: Option<&Terminal>, stderr: &str) -> Option<LaunchRefusal> {
        launch::refusal(terminal, stderr)
    }

    fn handshake(&self, request_id: &str, settings: &LaunchSettings) -> Vec<u8> {
        control::handshake(request_id, settings)
    }

    fn mcp_servers(&self, request_id: &str, settings: &LaunchSettings) -> Vec<u8> {
        control::mcp_servers(request_id, settings)
    }

    fn interrupt(&self, request_id: &str) -> Vec<u8> {
        control::request(request_id, "interrupt")
    }

    fn ping(&self, request_id: &str) -> Vec<u8> {
        control::request(request_id, "mcp_status")
    }

    fn encode_turn(&self, prompt: &Prompt, cli: &CliConfig) -> Result<Vec<u8>, PromptRefused> {
        prompt::encode(prompt, cli.slash_commands)
    }

    fn with_message_id(&self, line: &[u8], id: &str) -> Vec<u8> {
        prompt::with_id(line, id)
    }

    fn permission_response(&self, request: &PermissionRequest, decision: &Decision) -> Vec<u8> {
        control::permission_response(request, decision)
    }

    fn unsupported_response(&self, request_id: &str, what: &str) -> Vec<u8> {
        control::unsupported_response(request_id, what)
    }

    fn classify(&self, line: &[u8]) -> LineKind {
        classify::classify(line)
    }

    fn terminal(&self, line: &[u8]) -> Option<Terminal> {
        terminal::terminal(line)
    }

    fn announced_model(&self, line: &[u8]) -> Option<String> {
        read::announced_model(line)
    }

    fn control_response(&self, line: &[u8]) -> Option<ControlResponse> {
        read::control_response(line)
    }

    fn host_request(&self, line: &[u8]) -> Option<HostRequest> {
        read::host_request(line)
    }

    fn cancelled_request(&self, line: &[u8]) -> Option<String> {
        read::cancelled_request(line)
    }

    fn echo(&self, line: &[u8]) -> Option<String> {
        read::echo(line)
    }

    fn task(&self, line: &[u8]) -> Option<Task> {
        read::task(line)
    }

    fn checkpoint(&self, line: &[u8]) -> Option<String> {
        read::checkpoint(line)
    }

    fn text_delta(&self, line: &[u8]) -> Option<String> {
        read::text_delta(line)
    }

    #[cfg(feature = "server")]
    fn answer_reader(&self, by_deltas: bool) -> Box<dyn AnswerReader> {
        Box::new(answer::Reader::new(by_deltas))
    }

    fn config_dir(&self, dirs: &Dirs, cli: &CliConfig) -> PathBuf {
        transcript::config_dir(dirs, cli)
    }

    fn transcript(&self, dirs: &Dirs, cli: &CliConfig, session_id: &str) -> PathBuf {
        transcript::path(dirs, cli, session_id)
    }

    fn transcript_gap(&self, transcript: &File, checkpoint: &str) -> io::Result<Option<String>> {
        transcript::gap(transcript, checkpoint)
    }

    fn import(&self, history: &History, session_id: &str, dirs: &Dirs, now: SystemTime) -> Option<Import> {
        import::transcript(history, session_id, dirs, now)
    }

    fn encode_first_turn(
        &self,
        history: &History,
        imported: bool,
        prompt: &Prompt,
        cli: &CliConfig,
    ) -> Result<Option<Vec<u8>>, PromptRefused> {
        let first = import::first_prompt(history, imported, prompt);
        first.map(|prompt| self.encode_turn(&prompt, cli)).transpose()
    }

    #[cfg(feature = "broker")]
    fn broker(&self) -> &'static dyn super::broker::BrokerProtocol {
        &CLAUDE
    }

    fn credentials_file(&self, dirs: &Dirs, cli: &CliConfig) -> PathBuf {
        transcript::config_dir(dirs, cli).join(".credentials.json")
    }

    fn encode_credentials(&self, credentials: &OauthCredentials) -> Vec<u8> {
        credentials::encode(credentials)
    }

    fn stored_credentials(&self, content: &[u8]) -> Option<StoredCredentials> {
        credentials::stored(content)
    }

    fn variable_beside_oauth(&self, name: &OsStr, value: OsString) -> Option<OsString> {
        credentials::variable_beside_oauth(name, value)
    }
}
