//! A server as a process: started, watched from outside, ended.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

pub(crate) struct Server {
    child: Child,
    is_ours: bool,
    pub(crate) address: SocketAddr,
    admin: Option<String>,
    _data: Option<tempfile::TempDir>,
}

/// Processor time of a process by thread, in nanoseconds.
pub(crate) struct Cpu(HashMap<String, u64>);

impl Server {
    /// Another server that this program is, if it is started with these arguments.
    pub(crate) fn role(arguments: &[&str]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(arguments);
        Self::start(&mut command, None, false)
    }

    /// `pilotlight serve` with the child that answers at once, and this configuration.
    pub(crate) async fn ours(config: &str) -> Self {
        let config = format!("{config}\n[cli.env]\n{} = \"1\"\n", crate::instant::SWITCH);
        Self::ready(&config, &std::env::current_exe().unwrap()).await
    }

    /// The same with the simulated CLI, whose turns can be silent.
    pub(crate) async fn with_sim(config: &str) -> Self {
        Self::ready(config, Path::new("sim")).await
    }

    async fn ready(config: &str, cli: &Path) -> Self {
        let data = tempfile::tempdir().unwrap();
        let directory = data.path().to_owned();
        let server = Self::started(&directory, config, cli, Some(data));
        while !server.is_ready().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server
    }

    /// The same in this directory. Returns when it listens.
    pub(crate) fn at(directory: &Path, config: &str) -> Self {
        Self::started(directory, config, Path::new("sim"), None)
    }

    fn started(directory: &Path, config: &str, cli: &Path, data: Option<tempfile::TempDir>) -> Self {
        let file = directory.join("config.toml");
        std::fs::write(&file, config).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_pilotlight"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--cli"]).arg(cli);
        command.arg("--data-dir").arg(directory.join("data")).arg("--config").arg(file);
        Self::start(&mut command, data, true)
    }

    fn start(command: &mut Command, data: Option<tempfile::TempDir>, is_ours: bool) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.split_once("http=http://").unwrap().1.split(' ').next().unwrap();
        let admin = line.split_once("admin=").map(|(_, admin)| admin.trim().to_owned());
        Self { child, is_ours, address: address.parse().unwrap(), admin, _data: data }
    }

    /// The value of a metric without labels; 0 before it has one.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let text = reqwest::get(format!("{}/metrics", self.admin.as_ref().unwrap())).await.unwrap();
        let text = text.text().await.unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or_default()
    }

    /// Ends it at once.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
    }

    async fn is_ready(&self) -> bool {
        let answer = reqwest::get(format!("http://{}/readyz", self.address)).await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    /// Processor time so far. By thread, the only form in nanoseconds.
    pub(crate) fn cpu(&self) -> Cpu {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap().flatten();
        let read = |entry: std::fs::DirEntry| {
            let text = std::fs::read_to_string(entry.path().join("schedstat")).ok()?;
            Some((entry.file_name().into_string().ok()?, text.split(' ').next()?.parse().ok()?))
        };
        Cpu(tasks.filter_map(read).collect())
    }

    /// Processor time since then, in seconds. What a thread used that has ended meanwhile is not in it.
    pub(crate) fn cpu_since(&self, before: &Cpu) -> f64 {
        let now = self.cpu();
        let used = |(thread, now): (&String, &u64)| now - before.0.get(thread).copied().unwrap_or(0);
        now.0.iter().map(used).sum::<u64>() as f64 / 1e9
    }

    /// Anonymous memory of the process alone, in KiB.
    pub(crate) fn memory(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The end of its input is the floor's sign, a signal is ours.
        drop(self.child.stdin.take());
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()).filter(|_| self.is_ours) {
            kill_process(pid, Signal::TERM).ok();
        }
        self.child.wait().ok();
    }
}
