//! What pilotlight relies on in the CLI itself, without pilotlight: if a new version breaks one of these, the tests
//! here say which. They also show that the other tests can fail.

use std::process::Stdio;

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use crate::bench::{Bench, transcripts};
use crate::common::place::MARK;
use crate::common::process::Process;
use crate::common::{SOON, eventually, shown};

const FLAGS: [&str; 13] = [
    "--print",
    "--verbose",
    "--input-format",
    "stream-json",
    "--output-format",
    "stream-json",
    "--include-partial-messages",
    "--setting-sources",
    "",
    "--strict-mcp-config",
    "--permission-prompt-tool",
    "stdio",
    "--disable-slash-commands",
];

/// A CLI on its pipes. What it starts is found by the place's mark.
struct Bare {
    child: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
}

impl Bare {
    /// Starts one that is ready for its first message.
    async fn start(bench: &Bench) -> Self {
        let home = bench.place.path().join("home");
        let work = bench.place.path().join("work");
        std::fs::create_dir_all(&work).expect("a working directory");
        let mut child = Command::new(&bench.cli)
            .args(FLAGS)
            .current_dir(work)
            .env_clear()
            .envs(bench.environment())
            .env("PATH", std::env::var_os("PATH").expect("PATH"))
            .env("CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS", "1")
            .env("CLAUDE_CODE_TMPDIR", bench.place.path())
            .env("HOME", home)
            .env(MARK, bench.place.id())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .expect("the CLI starts");
        let output = BufReader::new(child.stdout.take().expect("its output")).lines();
        let input = child.stdin.take();
        let mut bare = Self { child, input, output };
        let initialize = json!({"subtype": "initialize"});
        bare.send(json!({"type": "control_request", "request_id": "ready?", "request": initialize})).await;
        bare.until(|line| line["type"] == "control_response").await;
        bare
    }

    async fn send(&mut self, line: Value) {
        let input = self.input.as_mut().expect("its input is open");
        input.write_all(format!("{line}\n").as_bytes()).await.expect("it reads");
    }

    async fn say(&mut self, text: &str) {
        self.send(json!({"type": "user", "message": {"role": "user", "content": text}})).await;
    }

    /// All lines up to the first that is wanted.
    async fn until(&mut self, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut lines = Vec::new();
        loop {
            let next = timeout(SOON, self.output.next_line()).await;
            let next =
                next.unwrap_or_else(|_| panic!("nothing more after {}", shown(&lines))).expect("it writes");
            let line =
                serde_json::from_str(&next.unwrap_or_else(|| panic!("it ended after {}", shown(&lines))));
            lines.push(line.expect("a line of JSON"));
            if lines.last().is_some_and(&wanted) {
                return lines;
            }
        }
    }

    async fn turn(&mut self, text: &str) -> Vec<Value> {
        self.say(text).await;
        self.until(is_result).await
    }

    fn process(&self) -> Process {
        Process::of(self.child.id().expect("it runs").cast_signed()).expect("it lives")
    }

    async fn exit_code(mut self) -> Option<i32> {
        timeout(SOON, self.child.wait()).await.expect("it ends").expect("it is our child").code()
    }
}

fn is_result(line: &Value) -> bool {
    line["type"] == "result"
}

fn final_text(lines: &[Value]) -> &str {
    lines.last().and_then(|line| line["result"].as_str()).expect("a result with text")
}

/// What a line is, in one word.
fn kind(line: &Value) -> String {
    let of = |name: &str| line[name].as_str().map(str::to_owned);
    of("state").or_else(|| of("subtype")).or_else(|| of("type")).expect("a type")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn states_stand_around_every_turn() {
    let Some(bench) = Bench::new().await else { return };
    let mut cli = Bare::start(&bench).await;
    for text in ["[[think:hm]][[say:one]]", "[[say:two]]"] {
        cli.say(text).await;
        let kinds: Vec<_> = cli.until(|line| line["state"] == "idle").await.iter().map(kind).collect();
        assert_eq!(kinds.iter().take(2).collect::<Vec<_>>(), ["running", "init"]);
        assert_eq!(kinds.iter().rev().take(2).collect::<Vec<_>>(), ["idle", "success"]);
        assert_eq!(kinds.iter().filter(|kind| *kind == "success").count(), 1);
    }
    assert_eq!(cli.process(), bench.only_cli());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orderly_end_keeps_the_last_turn() {
    let Some(bench) = Bench::new().await else { return };
    for (word, code) in [("amaranth", 143), ("bergamot", 0)] {
        let mut cli = Bare::start(&bench).await;
        let lines = cli.turn(&format!("the word is {word} [[say:noted]]")).await;
        match word {
            "amaranth" => cli.process().signal(Signal::TERM),
            _ => drop(cli.input.take()),
        }
        assert_eq!(cli.exit_code().await, Some(code));
        let answer = lines.iter().rfind(|line| line["type"] == "assistant").expect("an answer");
        let uuid = answer["uuid"].as_str().expect("uuid");
        let kept = transcripts(bench.place.path());
        assert!(kept.contains(&format!(r#""uuid":"{uuid}""#)), "the answer's line is in the transcript");
        assert!(kept.contains(word));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_line_of_a_turn_is_found_again_in_the_transcript() {
    let Some(bench) = Bench::new().await else { return };
    let mut cli = Bare::start(&bench).await;
    for text in
        ["[[think:hm]][[say:one]]", r#"[[tool:Bash {"command":"echo x"}]]"#, "[[error:400]]", "[[say:two]]"]
    {
        let lines = cli.turn(text).await;
        let last = lines.iter().rfind(|line| line["type"] == "assistant" || line["type"] == "user");
        let uuid = last.and_then(|line| line["uuid"].as_str()).expect("uuid");
        let entry = format!(r#""uuid":"{uuid}""#);
        eventually(&format!("the last line of {text} on disk"), SOON, || {
            transcripts(bench.place.path()).contains(&entry)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupt_ends_the_turn_and_the_request_and_nothing_else() {
    let Some(bench) = Bench::new().await else { return };
    let mut cli = Bare::start(&bench).await;
    cli.say("[[say:beginning]][[hold:never]]").await;
    bench.api.entered("never", 1).await;
    cli.send(json!({"type": "control_request", "request_id": "stop", "request": {"subtype": "interrupt"}}))
        .await;
    let lines = cli.until(is_result).await;
    assert_eq!(lines.last().map(kind).as_deref(), Some("error_during_execution"));
    bench.api.aborted("[[hold:never]]").await;
    let recalled = cli.turn("[[recall]]").await;
    assert!(final_text(&recalled).contains("beginning"), "the interrupted prompt stays in the context");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tool_asks_before_it_runs() {
    let Some(bench) = Bench::new().await else { return };
    let mut cli = Bare::start(&bench).await;
    cli.say(r#"[[tool:Bash {"command":"touch made-by-a-tool"}]]"#).await;
    let lines = cli.until(|line| line["type"] == "control_request").await;
    let request = lines.last().expect("a request");
    let input = &request["request"]["input"];
    let response = json!({"behavior": "allow", "updatedInput": input});
    let response = json!({"subtype": "success", "request_id": request["request_id"], "response": response});
    cli.send(json!({"type": "control_response", "response": response})).await;
    let lines = cli.until(is_result).await;
    assert_eq!(final_text(&lines), "TOOLS:ok");
    assert!(bench.place.path().join("work/made-by-a-tool").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_the_workspace_are_not_obeyed() {
    let Some(bench) = Bench::new().await else { return };
    let root = bench.place.path();
    let mark = root.join("obeyed");
    let command = format!("touch {}", mark.display());
    let hook = json!([{"hooks": [{"type": "command", "command": command}]}]);
    let settings =
        json!({"env": {"ANTHROPIC_BASE_URL": "http://127.0.0.1:1"}, "hooks": {"SessionStart": hook}});
    let servers = json!({"mcpServers": {"x": {"command": "touch", "args": [mark]}}});
    std::fs::create_dir_all(root.join("work/.claude")).expect("a directory");
    std::fs::write(root.join("work/.claude/settings.json"), settings.to_string()).expect("written");
    std::fs::write(root.join("work/.mcp.json"), servers.to_string()).expect("written");
    let mut cli = Bare::start(&bench).await;
    assert_eq!(final_text(&cli.turn("[[say:from the real address]]").await), "from the real address");
    assert!(!mark.exists(), "a program of the workspace was started");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_it_leaves_its_tools_running() {
    let Some(bench) = Bench::new().await else { return };
    let mut cli = Bare::start(&bench).await;
    // Harmless enough to run without a permission.
    cli.say(r#"[[tool:Bash {"command":"sleep 86400"}]]"#).await;
    let tool = bench.tool(&["sleep", "86400"]).await;
    cli.process().kill();
    assert_eq!(cli.exit_code().await, None);
    assert!(tool.is_alive(), "if it ended by itself, much of the shim would not be needed");
    assert!(!bench.place.leftovers().is_empty(), "and the tests see it");
}
