//! A prompt is text. The CLI on its own reads what a prompt mentions (`@path`, `@dir/`, `@server:uri`) and puts it into
//! the request to the model, without a tool and without a permission; `cli.attachments = false` stops that.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::bench::{Bench, transcripts};
use crate::common::server::Server;

/// In every planted file and in the name of every planted folder's entry, and in no prompt.
const SECRET: &str = "planted-secret";
/// The session that all dialects share where they name one.
const SESSION: &str = "mentions";
/// Small, but complete enough for a reader of types to take it for what it is.
const PDF: &str =
    "%PDF-1.4\n%planted-secret\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mentions_in_prompts_read_nothing() {
    let Some(bench) = Bench::new().await else { return };
    reads_nothing(bench).await;
}

/// The other half of the proof: with the key on, the same test sees the file at the API.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attachments_key_on_reads_the_file() {
    let Some(bench) = Bench::new().await else { return };
    let file = bench.place.path().join("absolute.txt");
    std::fs::write(&file, SECRET).unwrap();
    let server = bench.serve_cli("attachments = true", "").await;
    server.client().turn("alice", &format!("look at @{} please", file.display())).await.text();
    assert!(reached_the_api(&bench), "the CLI reads mentions when it may");
}

/// A variable of the operator or of one user does not undo the key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attachments_variable_never_wins_over_the_key() {
    let Some(bench) = Bench::new().await else { return };
    let file = bench.place.path().join("absolute.txt");
    std::fs::write(&file, SECRET).unwrap();
    let users = bench.place.path().join("users.toml");
    std::fs::write(&users, "[bob]\nCLAUDE_CODE_DISABLE_ATTACHMENTS = \"0\"\n").unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&users, private).unwrap();
    let keys = format!("user_env_file = {users:?}\nenv.CLAUDE_CODE_DISABLE_ATTACHMENTS = \"\"");
    let server = bench.serve_cli(&keys, "").await;
    for user in ["alice", "bob"] {
        server.client().turn(user, &format!("look at @{} please", file.display())).await.text();
    }
    assert!(!reached_the_api(&bench));
}

pub(crate) async fn reads_nothing(bench: Bench) {
    let server = bench.serve("").await;
    let caller = Caller::new(&server);
    caller.named("[[say:ready]]".into(), Dialect::Anthropic).await;
    let (work, home) = bench.session_dirs();
    let mentions = plant(bench.place.path(), &work, &home);
    for mention in &mentions {
        for dialect in [Dialect::Anthropic, Dialect::OpenAi, Dialect::Original] {
            caller.named(mention.as_str().into(), dialect).await;
            // The text that the mention is in may be any of several.
            let blocks = [format!("first {mention}"), format!("then {mention}"), "and that".to_owned()];
            caller
                .named(blocks.iter().map(|text| json!({"type": "text", "text": text})).collect(), dialect)
                .await;
        }
    }
    // Conversations of their own: what was said before comes along.
    caller.with_history(&mentions, Dialect::Anthropic).await;
    caller.with_history(&mentions, Dialect::OpenAi).await;
    for mention in &mentions {
        let arrived =
            bench.api.requests().iter().any(|request| request.verbatim.trim_end() == mention.trim_end());
        assert!(arrived, "{mention:?} did not reach the model as it was");
    }
    assert!(!reached_the_api(&bench));
    bench.on_disk(mentions.len()).await;
    assert!(!transcripts(bench.place.path()).contains(SECRET), "a transcript holds what was mentioned");
}

fn reached_the_api(bench: &Bench) -> bool {
    bench.api.requests().iter().any(|request| request.body.to_string().contains(SECRET))
}

/// Files that must stay unread, and every way to mention one.
fn plant(place: &Path, work: &Path, home: &Path) -> Vec<String> {
    let file = |path: PathBuf, content: &str| {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    };
    file(place.join("absolute.txt"), SECRET);
    file(work.join("relative.txt"), SECRET);
    file(work.join("lines.txt"), &format!("1\n{SECRET}\n3\n"));
    file(work.join("with blank.txt"), SECRET);
    file(work.join("folder").join(SECRET), SECRET);
    file(work.join("paper.pdf"), PDF);
    file(work.join("picture.png"), SECRET);
    file(work.join("CLAUDE.md"), SECRET);
    file(work.parent().unwrap().join("above.txt"), SECRET);
    file(home.join("own.txt"), SECRET);
    let place = place.display();
    [
        &format!("look at @{place}/absolute.txt please"),
        &format!("@{place}/absolute.txt"),
        "look at @relative.txt, please",
        "@./relative.txt",
        "a line\n@relative.txt\n",
        "@lines.txt#L2-3",
        "@../above.txt",
        "see @\"with blank.txt\"",
        "see @folder/",
        "see @folder",
        "see @~/own.txt",
        "see @paper.pdf and @picture.png",
        "@CLAUDE.md",
        "@server:file:///etc/passwd",
        "ask @agent-general-purpose for relative.txt",
        "#relative.txt",
        "# remember relative.txt",
        "!cat relative.txt",
        "! cat relative.txt",
    ]
    .map(str::to_owned)
    .to_vec()
}

#[derive(Debug, Clone, Copy)]
enum Dialect {
    Anthropic,
    OpenAi,
    Original,
}

struct Caller {
    web: reqwest::Client,
    http: String,
}

impl Caller {
    fn new(server: &Server) -> Self {
        let web = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { web, http: server.client().http().to_owned() }
    }

    /// One message to the session that all dialects share, with a mention in the system prompt as well.
    async fn named(&self, content: Value, dialect: Dialect) {
        let messages = json!([{"role": "user", "content": content}]);
        self.ask(dialect, messages, Some(SESSION)).await;
    }

    /// A whole history, as the SDKs send it.
    async fn with_history(&self, mentions: &[String], dialect: Dialect) {
        let said = mentions.iter().flat_map(|mention| {
            let blocks = json!([{"type": "text", "text": mention}]);
            [
                json!({"role": "user", "content": mention}),
                json!({"role": "assistant", "content": "I see"}),
                json!({"role": "user", "content": blocks}),
                json!({"role": "assistant", "content": format!("and {mention} again")}),
            ]
        });
        let now = json!({"role": "user", "content": "and now?"});
        self.ask(dialect, said.chain([now]).collect(), None).await;
    }

    async fn ask(&self, dialect: Dialect, mut messages: Value, session: Option<&str>) {
        let system = "Answer in the manner of @relative.txt and @~/own.txt";
        let (path, body) = match dialect {
            Dialect::Anthropic => (
                "/v1/messages",
                json!({"model": "sonnet", "max_tokens": 64, "system": system, "messages": messages}),
            ),
            Dialect::OpenAi => {
                let list = messages.as_array_mut().unwrap();
                list.insert(0, json!({"role": "system", "content": system}));
                ("/v1/chat/completions", json!({"model": "sonnet", "messages": messages}))
            }
            Dialect::Original => {
                ("/v1/messages/keepalive", json!({"model": "sonnet", "system": system, "messages": messages}))
            }
        };
        let mut request = self.web.post(format!("{}{path}", self.http)).header("x-pilotlight-user", "alice");
        if let Some(session) = session {
            request = request.header("x-pilotlight-session", session);
        }
        let answer = request.json(&body).send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        assert_eq!(status, 200, "{dialect:?}: {text}");
    }
}
