//! The program as a process whose arguments, output and exit code are the test's subject, and raw requests to it.

use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;

use reqwest::RequestBuilder;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::guard::Guard;
use crate::metrics::Scrape;
use crate::output::Output;
use crate::place::{MARK, Place, wait_until};
use crate::process::Process;
use crate::{SOON, eventually_some};

/// A running `pilotlight`; dropped, it is killed, and its place looks for what is left.
pub struct Program {
    _guard: Guard,
    child: Child,
    /// None if it had ended before anybody looked.
    process: Option<Process>,
    out: Output,
    err: Output,
    _place: Arc<Place>,
}

impl Program {
    /// Starts it with these arguments and variables.
    pub fn start(place: &Arc<Place>, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::start_by(place, Command::new(crate::built::pilotlight()), arguments, variables)
    }

    /// The same by a command that becomes the program.
    fn start_by(
        place: &Arc<Place>,
        mut command: Command,
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> Self {
        let mut child = command
            .args(arguments)
            .envs(variables.iter().copied())
            .env(MARK, place.id())
            .env("PILOTLIGHT_CLI__ENV__PILOTLIGHT_TEST_ID", place.id())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let (out, err) = (Output::default(), Output::default());
        out.drain(child.stdout.take().expect("its standard output"));
        err.drain(child.stderr.take().expect("its standard error"));
        let process = Process::of(child.id().cast_signed());
        let guard = Guard::of(child.id());
        Self { _guard: guard, child, process, out, err, _place: Arc::clone(place) }
    }

    /// `serve` on free ports with the simulated CLI and this configuration.
    pub async fn serve(place: &Arc<Place>, config: &str) -> (Self, Site) {
        Self::serve_by(place, Command::new(crate::built::pilotlight()), config).await
    }

    /// The same by a command that becomes the program.
    pub async fn serve_by(place: &Arc<Place>, command: Command, config: &str) -> (Self, Site) {
        let file = place.path().join("served.toml");
        std::fs::write(&file, config).expect("the configuration is written");
        let data = place.data_dir().display().to_string();
        let file = file.display().to_string();
        let listen = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
        let mut arguments = vec!["serve", "--config", &file, "--data-dir", &data];
        arguments.extend(listen);
        if !config.contains("program") {
            arguments.extend(["--cli", "sim"]);
        }
        // The tests' users accept each other's tools; the check itself is tested with `start`.
        let mut accepted = vec![("PILOTLIGHT_ISOLATION__ACCEPT_NONE", "true")];
        // As in `server::program`.
        if !config.contains("rungs") && !crate::installed::has_walls() {
            accepted.push(("PILOTLIGHT_ISOLATION__RUNGS", "[]"));
        }
        let mut program = Self::start_by(place, command, &arguments, &accepted);
        let site = program.listening().await;
        (program, site)
    }

    /// The same, and it takes turns.
    pub async fn ready(place: &Arc<Place>, config: &str) -> (Self, Site) {
        let (program, site) = Self::serve(place, config).await;
        site.ready().await;
        (program, site)
    }

    /// The same by a command that becomes the program.
    pub async fn ready_by(place: &Arc<Place>, command: Command, config: &str) -> (Self, Site) {
        let (program, site) = Self::serve_by(place, command, config).await;
        site.ready().await;
        (program, site)
    }

    /// Where it listens, once it does.
    pub async fn listening(&mut self) -> Site {
        eventually_some("the program listens", SOON, async || {
            if let Some(status) = self.ended() {
                panic!("the program ended with {status}: {}", self.err.text());
            }
            let line = self.out.after("listening http=")?;
            let (http, admin) = line.split_once(" admin=")?;
            Some(Site::new(http, admin))
        })
        .await
    }

    pub fn process(&self) -> Process {
        self.process.expect("it runs")
    }

    pub fn signal(&self, signal: Signal) {
        self.process.expect("it runs").signal(signal);
    }

    /// Its exit code, once it has ended by itself and what it wrote was read.
    pub async fn code(&mut self) -> Option<i32> {
        let status = eventually_some("the program ends", SOON, async || self.ended()).await;
        // What outlives it, and what it wrote to, is the test's own business.
        wait_until(SOON, || self.out.is_whole() && self.err.is_whole());
        status.code()
    }

    pub fn is_running(&mut self) -> bool {
        self.ended().is_none()
    }

    pub fn out(&self) -> String {
        self.out.text()
    }

    pub fn err(&self) -> String {
        self.err.text()
    }

    /// Whether it writes this to standard error soon: what it has written arrives a moment later.
    pub fn logs(&self, text: &str) -> bool {
        wait_until(SOON, || self.err().contains(text))
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the program is our child")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            crate::installed::say(&format!("--- the program wrote:\n{}", self.err.text()));
        }
    }
}

/// Where a program listens.
#[derive(Clone)]
pub struct Site {
    pub http: String,
    pub admin: String,
    web: reqwest::Client,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: String,
}

impl Answer {
    pub async fn of(request: RequestBuilder) -> Self {
        let answer = request.send().await.expect("an answer");
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Self { status, headers, body: answer.text().await.expect("a whole body") }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name).unwrap_or_else(|| panic!("no {name} in {self:?}"));
        value.to_str().expect("a header of text")
    }

    /// Status, code and message of a typed error, after checking its form.
    pub fn error(&self) -> (u16, String, String) {
        let body = self.json();
        assert_eq!(body["type"], "error", "{body}");
        assert!(body["error"]["type"].is_string(), "{body}");
        assert_eq!(body["request_id"], self.header("x-request-id"));
        let text = |key: &str| body["error"][key].as_str().expect("text").to_owned();
        (self.status, text("code"), text("message"))
    }

    /// The events of a stream, after checking the framing byte by byte.
    pub fn events(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{self:?}");
        let body = self.body.strip_suffix("data: [DONE]\n\n").expect("[DONE] at the very end");
        let frames = body.split_terminator("\n\n").filter(|frame| *frame != ": ping");
        let lines = frames.map(|frame| {
            let data = frame.strip_prefix("data: ").unwrap_or_else(|| panic!("not data: {frame:?}"));
            assert!(!data.contains(['\n', '\r']), "{data:?}");
            serde_json::from_str(data).unwrap_or_else(|error| panic!("{error} in {data}"))
        });
        lines.collect()
    }

    /// The final text of a turn that went well.
    pub fn text(&self) -> String {
        let events = self.events();
        let last = events.iter().rfind(|event| event["type"] == "result");
        let last = last.unwrap_or_else(|| panic!("no result in {events:#?}"));
        assert_eq!(last["is_error"], false, "{last}");
        last["result"].as_str().expect("result").to_owned()
    }
}

impl Site {
    fn new(http: &str, admin: &str) -> Self {
        // No connection is kept: what a test leaves open is what the test is about.
        let web = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().expect("a client");
        Self { http: http.trim().to_owned(), admin: admin.trim().to_owned(), web }
    }

    pub fn web(&self) -> &reqwest::Client {
        &self.web
    }

    /// A request for a turn, without a user and a body.
    pub fn post(&self) -> RequestBuilder {
        self.web.post(format!("{}/v1/messages/keepalive", self.http))
    }

    /// A request for a turn of `user` with this body.
    pub fn asking(&self, user: &str, body: &Value) -> RequestBuilder {
        self.post().header("x-pilotlight-user", user).json(body)
    }

    /// A request of `user`.
    pub fn of(&self, method: &str, path: &str, user: &str) -> RequestBuilder {
        let method = method.parse().expect("a method");
        let request = self.web.request(method, format!("{}{path}", self.http));
        request.header("x-pilotlight-user", user)
    }

    /// A request of `user` about one of its sessions.
    pub fn session(&self, method: &str, path: &str, user: &str) -> RequestBuilder {
        self.of(method, &format!("/v1/sessions/{path}"), user)
    }

    /// A whole turn.
    pub async fn turn(&self, user: &str, text: &str) -> Answer {
        Answer::of(self.asking(user, &message(text))).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        Answer::of(self.web.get(format!("{}{path}", self.http))).await
    }

    pub async fn get_admin(&self, path: &str) -> Answer {
        Answer::of(self.web.get(format!("{}{path}", self.admin))).await
    }

    pub async fn ready(&self) {
        let is_ready = async || (self.get("/readyz").await.status == 200).then_some(());
        eventually_some("/readyz says 200", SOON, is_ready).await;
    }

    /// The entry of a conversation in the pool's statistics.
    pub async fn entry(&self, user: &str, conversation: &str) -> Value {
        let stats = self.get("/v1/pool/stats").await.json();
        let shown: String = user.chars().take(8).chain("...".chars()).collect();
        let users = stats["active_users"].as_array().expect("active_users");
        let found =
            users.iter().find(|entry| entry["user_id"] == shown.as_str() && entry["session"] == conversation);
        found.cloned().unwrap_or_else(|| panic!("no {shown} {conversation} in {stats}"))
    }

    /// Whether a turn of anybody runs.
    pub async fn is_busy(&self) -> bool {
        let stats = self.get("/v1/pool/stats").await.json();
        let users = stats["active_users"].as_array().expect("active_users");
        users.iter().any(|entry| entry["state"] == "busy")
    }

    /// Waits until a turn of anybody runs.
    pub async fn until_busy(&self) {
        eventually_some("a turn runs", SOON, async || self.is_busy().await.then_some(())).await;
    }

    /// Waits until no turn runs: one may end a moment after its answer.
    pub async fn until_quiet(&self) {
        eventually_some("no turn runs", SOON, async || (!self.is_busy().await).then_some(())).await;
    }

    /// Sum of a metric of `/metrics`, without the prefix of its name, over the series with these labels.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let scrape = Scrape::parse(&self.get_admin("/metrics").await.body);
        scrape.sum(&format!("pilotlight_{name}"), labels)
    }

    /// The process of a user's default conversation.
    pub async fn pid(&self, user: &str) -> u64 {
        let entry = self.entry(user, "default").await;
        entry["pid"].as_u64().unwrap_or_else(|| panic!("no process: {entry}"))
    }
}

/// A body with one message.
pub fn message(text: &str) -> Value {
    json!({ "messages": [{ "role": "user", "content": text }] })
}

pub fn place() -> Arc<Place> {
    Arc::new(Place::new())
}

/// Names of the files below `directory` that hold `text`.
pub fn holding(directory: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(holding(&path, text));
        } else if String::from_utf8_lossy(&std::fs::read(&path).unwrap_or_default()).contains(text) {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    found
}
