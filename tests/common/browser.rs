//! A headless Chromium, driven over the DevTools protocol through two pipes: JSON, each message ended by a zero byte.
//!
//! One browser with one tab per test. Everything that the tab logs and asks for is kept, for the tests to judge.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::place::{MARK, Place, wait_until};
use crate::process::{Process, descendants};
use crate::{SOON, built, installed};

mod judge;

/// How often a page is asked whether something has come true.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How long the processes of a browser may take to go.
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// Dropped, it is closed.
pub struct Browser {
    child: Child,
    send: ChildStdin,
    receive: BufReader<ChildStdout>,
    calls: u64,
    tab: String,
    events: Vec<Value>,
    /// Presses of the mouse so far.
    pub clicks: u32,
    _place: Arc<Place>,
}

impl Browser {
    /// Starts one with an empty tab; nothing where none is installed.
    pub async fn start(place: &Arc<Place>) -> Option<Self> {
        let program = installed::chromium()?;
        // Descriptors 3 and 4 are the protocol's; a shell puts them there.
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 >&2 2>/dev/null </dev/null"]).arg(program);
        command.args(["--headless", "--remote-debugging-pipe", "--disable-gpu", "--no-first-run"]);
        command.args(["--disable-dev-shm-usage", "--disable-background-networking", "--hide-scrollbars"]);
        command.arg(format!("--user-data-dir={}", place.path().join("browser").display()));
        if rustix::process::geteuid().is_root() {
            // Its sandbox refuses root; what it opens here are our own pages.
            command.arg("--no-sandbox");
        }
        command.arg("about:blank").env(MARK, place.id()).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("the browser starts");
        let send = child.stdin.take().expect("its input");
        let receive = BufReader::new(child.stdout.take().expect("its output"));
        let (calls, events, _place) = (0, Vec::new(), Arc::clone(place));
        let mut browser = Self { child, send, receive, calls, tab: String::new(), events, clicks: 0, _place };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" })).await;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = browser.call("Target.attachToTarget", attach).await;
        browser.tab = attached["sessionId"].as_str().expect("a session").to_owned();
        for domain in ["Page", "Runtime", "Network", "Log", "Performance"] {
            browser.call(&format!("{domain}.enable"), json!({})).await;
        }
        browser.resize(1280, 900, false).await;
        Some(browser)
    }

    async fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.calls += 1;
        let mut message = json!({ "id": self.calls, "method": method, "params": parameters });
        if !self.tab.is_empty() {
            message["sessionId"] = self.tab.as_str().into();
        }
        let bytes = format!("{message}\0");
        self.send.write_all(bytes.as_bytes()).await.expect("the browser takes commands");
        loop {
            let mut answer = Vec::new();
            let read = timeout(SOON, self.receive.read_until(0, &mut answer)).await;
            let read =
                read.unwrap_or_else(|_| panic!("{method} is not answered")).expect("the browser answers");
            assert!(read > 0, "the browser has ended");
            answer.pop();
            let answer: Value = serde_json::from_slice(&answer).expect("the browser speaks JSON");
            if answer["id"] == self.calls {
                assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return answer["result"].clone();
            }
            if answer["method"].is_string() {
                self.events.push(answer);
            }
        }
    }

    /// Goes to a page.
    pub async fn open(&mut self, url: &str) {
        let gone = self.call("Page.navigate", json!({ "url": url })).await;
        assert!(gone["errorText"].is_null(), "{url}: {gone}");
        self.until("the page is there", "document.readyState === 'complete'").await;
    }

    /// What an expression gives; a promise is waited for.
    pub async fn eval(&mut self, expression: &str) -> Value {
        let question = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let answer = self.call("Runtime.evaluate", question).await;
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {}", answer["exceptionDetails"]);
        answer["result"]["value"].clone()
    }

    pub async fn text(&mut self, selector: &str) -> String {
        let selector = json!(selector);
        let text = self.eval(&format!("document.querySelector({selector})?.innerText ?? ''")).await;
        text.as_str().expect("text").to_owned()
    }

    /// Waits until an expression is true.
    pub async fn until(&mut self, what: &str, expression: &str) {
        self.until_within(SOON, what, expression).await;
    }

    /// The same, for what takes long by its nature.
    pub async fn until_within(&mut self, limit: Duration, what: &str, expression: &str) {
        let deadline = Instant::now() + limit;
        while self.eval(&format!("Boolean({expression})")).await != true {
            if Instant::now() > deadline {
                let page = self.text("body").await;
                panic!("not in time: {what}; the page shows:\n{page}\nit logged {:#?}", self.complaints());
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Waits until an element's text has this in it.
    pub async fn until_text(&mut self, selector: &str, wanted: &str) {
        let (quoted, text) = (json!(selector), json!(wanted));
        let has_it = format!("document.querySelector({quoted})?.innerText.includes({text})");
        self.until(&format!("{selector} says {wanted:?}"), &has_it).await;
    }

    /// Presses the mouse in the middle of what a selector finds.
    pub async fn click(&mut self, selector: &str) {
        let quoted = json!(selector);
        // Once it stands still: what is above it may still be filled.
        let middle = format!(
            "(async () => {{ const it = document.querySelector({quoted}); it.scrollIntoView({{ block: 'center' }}); \
             for (let last = NaN, still = 0; ; ) {{ const box = it.getBoundingClientRect(); \
             still = box.y === last ? still + 1 : 0; last = box.y; \
             if (still > 2) return [box.x + box.width / 2, box.y + box.height / 2]; \
             await new Promise(requestAnimationFrame); }} }})()"
        );
        let at = self.eval(&middle).await;
        self.clicks += 1;
        for kind in ["mousePressed", "mouseReleased"] {
            let event = json!({ "type": kind, "x": at[0], "y": at[1], "button": "left", "clickCount": 1 });
            self.call("Input.dispatchMouseEvent", event).await;
        }
    }

    /// Moves the mouse to the middle of what a selector finds.
    pub async fn hover(&mut self, selector: &str) {
        let quoted = json!(selector);
        let middle = format!(
            "(() => {{ const it = document.querySelector({quoted}); it.scrollIntoView({{ block: 'center' }}); \
             const box = it.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; }})()"
        );
        let at = self.eval(&middle).await;
        self.call("Input.dispatchMouseEvent", json!({ "type": "mouseMoved", "x": at[0], "y": at[1] })).await;
    }

    /// Types into what has the focus.
    pub async fn write(&mut self, text: &str) {
        self.call("Input.insertText", json!({ "text": text })).await;
    }

    /// Presses a key; with Control if asked.
    pub async fn press(&mut self, key: &str, with_control: bool) {
        let (code, text) = match key {
            "Tab" => (9, ""),
            "Enter" => (13, "\r"),
            " " => (32, " "),
            "Escape" => (27, ""),
            "/" => (191, "/"),
            "?" => (191, "?"),
            "j" => (74, "j"),
            "k" => (75, "k"),
            other => panic!("{other} is not known"),
        };
        let modifiers = if with_control { 2 } else { 0 };
        for kind in ["keyDown", "keyUp"] {
            let mut event = json!({
                "type": kind, "key": key, "code": if key == " " { "Space" } else { key },
                "windowsVirtualKeyCode": code, "modifiers": modifiers,
            });
            if kind == "keyDown" && !text.is_empty() && !with_control {
                event["text"] = text.into();
            }
            self.call("Input.dispatchKeyEvent", event).await;
        }
    }

    /// Goes on by the Tab key until what has the focus matches.
    pub async fn tab_to(&mut self, selector: &str) {
        let is_there = format!("document.activeElement?.matches({})", json!(selector));
        for _ in 0..60 {
            if self.eval(&is_there).await == true {
                return;
            }
            self.press("Tab", false).await;
        }
        panic!("the Tab key does not lead to {selector}");
    }

    pub async fn resize(&mut self, width: u32, height: u32, is_phone: bool) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": is_phone });
        self.call("Emulation.setDeviceMetricsOverride", size).await;
    }

    pub async fn darken(&mut self, is_dark: bool) {
        let scheme = if is_dark { "dark" } else { "light" };
        let feature = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": feature })).await;
    }

    /// Milliseconds in each second of this time that the page's scripts and all its work took.
    pub async fn load(&mut self, during: Duration) -> (f64, f64) {
        let before = self.metrics().await;
        sleep(during).await;
        let after = self.metrics().await;
        let share = |at: usize| (after[at] - before[at]) / (after[0] - before[0]) * 1000.0;
        (share(1), share(2))
    }

    async fn metrics(&mut self) -> [f64; 3] {
        let found = self.call("Performance.getMetrics", json!({})).await;
        ["Timestamp", "ScriptDuration", "TaskDuration"].map(|name| {
            let all = found["metrics"].as_array().expect("metrics");
            let it = all.iter().find(|it| it["name"] == name).expect("a metric");
            it["value"].as_f64().expect("a number")
        })
    }

    /// A picture of the whole page, for people to look at: `target/page/NAME.png`.
    pub async fn picture(&mut self, name: &str) {
        let whole = json!({ "format": "png", "captureBeyondViewport": true });
        let picture = self.call("Page.captureScreenshot", whole).await;
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(picture["data"].as_str().expect("a picture"))
            .expect("base64");
        let folder = built::target().join("page");
        std::fs::create_dir_all(&folder).expect("a folder for pictures");
        std::fs::write(folder.join(format!("{name}.png")), bytes).expect("the picture is kept");
    }

    /// The tab's own addresses of everything that it has asked for.
    pub fn asked_for(&self) -> Vec<String> {
        let sent = self.events.iter().filter(|event| event["method"] == "Network.requestWillBeSent");
        sent.filter_map(|event| Some(event["params"]["request"]["url"].as_str()?.to_owned())).collect()
    }

    /// Everything that a developer would see in red in the console.
    pub fn complaints(&self) -> Vec<String> {
        let of = |event: &Value| {
            let parameters = &event["params"];
            let complains = match event["method"].as_str()? {
                "Runtime.exceptionThrown" => true,
                "Runtime.consoleAPICalled" => ["error", "warning"].contains(&parameters["type"].as_str()?),
                "Log.entryAdded" => ["error", "warning"].contains(&parameters["entry"]["level"].as_str()?),
                _ => false,
            };
            complains.then(|| parameters.to_string())
        };
        self.events.iter().filter_map(of).collect()
    }

    /// Nothing went wrong, and nobody else was asked.
    pub async fn was_good(&mut self, site: &str) {
        self.was_good_but(site, &[]).await;
    }

    /// The same, with complaints that belong to the test.
    pub async fn was_good_but(&mut self, site: &str, expected: &[&str]) {
        // What it still has to say comes before the answer to this.
        self.eval("new Promise(requestAnimationFrame)").await;
        let mut complaints = self.complaints();
        complaints.retain(|complaint| !expected.iter().any(|part| complaint.contains(part)));
        assert!(complaints.is_empty(), "{complaints:#?}");
        let asked = self.asked_for();
        assert!(asked.len() > 5, "only {asked:?}");
        let others: Vec<_> = asked.iter().filter(|url| !url.starts_with(site)).collect();
        assert!(others.is_empty(), "{others:?}");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let Some(pid) = self.child.id() else { return };
        let family = descendants(pid.cast_signed());
        self.child.start_kill().ok();
        family.iter().for_each(|process| process.kill());
        wait_until(GONE_WITHIN, || {
            let ended = self.child.try_wait().is_ok_and(|status| status.is_some());
            ended && !family.iter().any(|process: &Process| process.is_alive())
        });
    }
}
