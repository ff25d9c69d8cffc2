//! The parts together, over real pipes and without a process: reader, task and session share the connection.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::sync::Mutex;
use std::task::Waker;

use tokio::sync::oneshot;

use super::*;
use crate::child::permissions::Answer;
use crate::child::testing::{job, line};
use crate::error::TurnError;
use crate::model::ids::TurnId;
use crate::model::{Decision, PermissionError};
use crate::turn::{Status, Turn};

/// Collects the events.
#[derive(Default)]
struct Events(Mutex<Vec<String>>);

impl OnChildEvent for Events {
    fn on_child_event(&self, event: ChildEvent) {
        let text = match event {
            ChildEvent::TurnEnded(report) => format!("turn {} ended", report.turn.0),
            ChildEvent::Permissions(pending) => format!("permissions {}", pending.len()),
            ChildEvent::Active(active) => format!("active {active}"),
            ChildEvent::AwaitsCaller(awaits) => format!("awaits caller {awaits}"),
            ChildEvent::Frozen(frozen) => format!("frozen {frozen}"),
            ChildEvent::Model(model) => model,
            ChildEvent::OwnTurn { .. } => "own turn".to_owned(),
            ChildEvent::Greeted => "greeted".to_owned(),
            ChildEvent::Ready => "ready".to_owned(),
            // Always the last, with or without records.
            ChildEvent::Journal(_) => return,
        };
        self.0.lock().unwrap().push(text);
    }
}

/// A connection and the child's ends of its pipes.
struct Bench {
    handle: Arc<ConnectionHandle>,
    events: Arc<Events>,
    input: StdStream,
    output: Option<OwnedFd>,
}

impl Bench {
    fn opening(change: impl FnOnce(&mut Config)) -> Self {
        let (input, their_input) = StdStream::pair().unwrap();
        input.set_nonblocking(true).unwrap();
        their_input.set_nonblocking(true).unwrap();
        let (output, their_output) = std::io::pipe().unwrap();
        let mut config = Config::default();
        config.permissions.policy = crate::config::PermissionPolicy::Ask;
        config.cli.background_tasks = false;
        change(&mut config);
        let events = Arc::new(Events::default());
        let context = ChildContext {
            config: Arc::new(config),
            metrics: Arc::new(Metrics::register(&::metrics::NoopRecorder, "t")),
            secrets: Secrets::default(),
            events: events.clone(),
        };
        let pipes =
            (UnixStream::from_std(input).unwrap(), pipe::Receiver::from_owned_fd(output.into()).unwrap());
        let connection =
            Connection::open(context, pipes, None, None, Instant::now(), &LaunchSettings::default());
        let handle = Arc::new(ConnectionHandle::new(connection));
        Self { handle, events, input: their_input, output: Some(their_output.into()) }
    }

    async fn serving() -> Self {
        let mut bench = Self::opening(|_| ());
        bench.say(line::GREETING);
        bench.run_task().await;
        assert!(bench.heard().contains("initialize"));
        assert_eq!(bench.events(), ["greeted", "ready"]);
        bench
    }

    /// Writes a line as the child.
    fn say(&self, line: &str) {
        let line = format!("{line}\n");
        rustix::io::write(self.output.as_ref().unwrap(), line.as_bytes()).unwrap();
    }

    /// What the child has been written since the last call.
    fn heard(&mut self) -> String {
        let mut text = vec![0; 1 << 20];
        let length = std::io::Read::read(&mut self.input, &mut text).unwrap_or(0);
        String::from_utf8_lossy(&text[..length]).into_owned()
    }

    fn events(&self) -> Vec<String> {
        std::mem::take(&mut *self.events.0.lock().unwrap())
    }

    /// Lets the child's task do its work until it has nothing to do.
    async fn run_task(&self) {
        for _ in 0..3 {
            // Lets the runtime notice what is on the pipes.
            tokio::time::sleep(Duration::from_millis(1)).await;
            let mut context = Context::from_waker(Waker::noop());
            while self.handle.with(|connection| connection.poll_for_task(&mut context))
                == Some(Poll::Ready(()))
            {}
        }
    }

    /// Ends the lease of the reader.
    fn expire_lease(&self) {
        self.handle.with(|connection| connection.handoff.revoke()).unwrap();
    }

    fn turn(&self, turn: u64) -> Turn {
        let (job, reader) = job(turn);
        assert!(self.handle.take_turn(job).is_ok());
        reader
    }
}

#[tokio::test]
async fn reader_gets_lines_from_the_pipe_itself() {
    let bench = Bench::serving().await;
    let mut reader = bench.turn(1);
    bench.say(line::DELTA);
    assert_eq!(reader.next_lines().await.unwrap().unwrap(), format!("{}\n", line::DELTA));
    bench.say(line::RESULT);
    assert_eq!(reader.next_lines().await.unwrap().unwrap(), format!("{}\n", line::RESULT));
    assert!(reader.next_lines().await.is_none());
    assert_eq!(reader.outcome().unwrap().text, "hi");
    assert_eq!(bench.events(), ["turn 1 ended"]);
}

#[tokio::test]
async fn task_reads_when_the_lease_has_expired() {
    let bench = Bench::serving().await;
    let mut reader = bench.turn(1);
    bench.say(line::DELTA);
    bench.run_task().await;
    assert!(bench.events().is_empty(), "the reader has the lease");
    bench.expire_lease();
    bench.run_task().await;
    bench.say(line::RESULT);
    bench.run_task().await;
    assert_eq!(bench.events(), ["turn 1 ended"], "without its reader");
    assert_eq!(reader.next_lines().await.unwrap().unwrap(), format!("{}\n", line::DELTA));
    assert_eq!(reader.next_lines().await.unwrap().unwrap(), format!("{}\n", line::RESULT));
    assert!(reader.next_lines().await.is_none());
}

#[tokio::test]
async fn slow_reader_stops_the_task_from_reading() {
    let bench = Bench::serving().await;
    let mut reader = bench.turn(1);
    bench.expire_lease();
    // Eight reads of a thousand bytes fit.
    let long = format!(r#"{{"type":"stream_event","event":"{}"}}"#, "x".repeat(400));
    for _ in 0..10 {
        bench.say(&long);
        bench.run_task().await;
    }
    let waits = bench.handle.with(|connection| connection.for_reader()).unwrap();
    assert!(waits > 0, "no room for more");
    let mut got = 0;
    while got < 10 * (long.len() + 1) {
        got += reader.next_lines().await.unwrap().unwrap().len();
    }
    assert_eq!(got, 10 * (long.len() + 1));
}

/// The pipe is read before the turn is given: a turn that the CLI has begun of its own accord right after the last one
/// is not taken for the answer of the next.
#[tokio::test]
async fn own_turn_right_after_a_turn_is_noticed() {
    let mut bench = Bench::serving().await;
    let mut first = bench.turn(1);
    bench.say(line::RESULT);
    while first.next_lines().await.is_some() {}
    bench.heard();
    bench.events();
    // Nobody has read this when the next turn comes.
    bench.say(line::WORKING);
    bench.say(line::DELTA);
    let second = bench.turn(2);
    assert_eq!(bench.heard(), "", "it waits");
    assert_eq!(bench.events(), ["active true"]);
    bench.say(line::OWN_RESULT);
    bench.say(line::WAITING);
    bench.expire_lease();
    bench.run_task().await;
    assert_eq!(bench.events(), ["own turn", "active false"]);
    assert!(bench.heard().contains("\"message\":2"));
    bench.say(line::RESULT);
    let outcome = second.finish().await;
    assert_eq!((outcome.status, outcome.text.as_str()), (Status::Completed, "hi"));
}

#[tokio::test]
async fn dropped_reader_interrupts_and_the_task_reads_on() {
    let mut bench = Bench::serving().await;
    let reader = bench.turn(1);
    bench.heard();
    drop(reader);
    bench.handle.cancel(TurnId(1));
    assert!(bench.heard().contains("interrupt"));
    bench.say(line::RESULT);
    bench.run_task().await;
    assert_eq!(bench.events(), ["turn 1 ended"]);
}

#[tokio::test]
async fn oversized_line_ends_the_turn_for_its_reader() {
    let bench = Bench::opening(|config| config.session.line_limit = 300);
    bench.say(line::GREETING);
    bench.run_task().await;
    let reader = bench.turn(1);
    bench.say(&"x".repeat(400));
    let status = reader.finish().await.status;
    assert_eq!(status, Status::Aborted(TurnError::LineTooLong { limit: 300 }));
}

#[tokio::test]
async fn permission_is_answered_through_the_handle() {
    let mut bench = Bench::serving().await;
    let mut reader = bench.turn(1);
    bench.say(&line::permission("p"));
    assert!(reader.next_lines().await.unwrap().is_ok());
    assert_eq!(bench.events(), ["permissions 1"]);
    let answer =
        |reply| Answer { request_id: "p".into(), decision: Decision::Allow { updated_input: None }, reply };
    let (reply, answered) = oneshot::channel();
    bench.handle.answer(answer(reply));
    assert_eq!(answered.await.unwrap(), Ok(()));
    assert!(bench.heard().contains("allow"));
    let (reply, answered) = oneshot::channel();
    bench.handle.answer(answer(reply));
    assert_eq!(answered.await.unwrap(), Err(PermissionError::Late));
}

#[tokio::test]
async fn stop_and_memory_limit_call_the_task() {
    let bench = Bench::serving().await;
    bench.handle.with(Connection::stop).unwrap();
    assert!(bench.handle.with(Connection::take_signal).unwrap().is_none(), "its input ends first");
    bench.handle.kill(KillReason::MemoryLimit(7));
    assert_eq!(bench.handle.with(Connection::take_signal), Some(Some(Signal::KillTree)));
    let exit = bench.handle.close().unwrap().into_exit(None, &OomKills::default(), String::new());
    assert_eq!(exit.cause, ExitCause::Killed(KillReason::MemoryLimit(7)));
    assert!(exit.ready && exit.requested && exit.forced && exit.unfinished.is_none());
    bench.handle.kill(KillReason::MemoryLimit(7));
}

#[tokio::test]
async fn silent_child_is_pinged_when_its_deadline_comes() {
    let mut bench = Bench::opening(|config| {
        config.session.stall_timeout = Duration::from_millis(1);
        config.session.ping_timeout = Duration::from_secs(60);
    });
    bench.say(line::GREETING);
    bench.run_task().await;
    let _reader = bench.turn(1);
    bench.heard();
    tokio::time::sleep(Duration::from_millis(5)).await;
    bench.handle.with(Connection::on_time).unwrap();
    bench.run_task().await;
    assert!(bench.heard().contains("mcp_status"));
    assert!(bench.handle.with(|connection| connection.arm(true)).unwrap().is_some());
}

#[tokio::test]
async fn last_output_is_part_of_the_unfinished_turn() {
    let mut bench = Bench::serving().await;
    let _reader = bench.turn(1);
    bench.say(line::DELTA);
    rustix::io::write(bench.output.as_ref().unwrap(), b"half").unwrap();
    bench.output = None;
    bench.handle.with(Connection::set_over).unwrap();
    let read_on = || std::future::poll_fn(|context| bench.handle.with(|it| it.poll_last(context)).unwrap());
    while read_on().await {}
    bench.handle.with(Connection::close_output).unwrap();
    let exit =
        bench.handle.close().unwrap().into_exit(Some(Exit::Code(3)), &OomKills::default(), String::new());
    assert_eq!(exit.cause, ExitCause::Code(3));
    let unfinished = exit.unfinished.unwrap();
    assert_eq!(*unfinished.rest, format!("{}\n", line::DELTA));
    let (job, _reader) = job(2);
    assert!(bench.handle.take_turn(job).is_err(), "it is closed");
    assert!(bench.handle.with(Connection::stop).is_none());
}

#[tokio::test]
async fn flood_of_requests_breaks_the_protocol() {
    let bench = Bench::serving().await;
    let request = r#"{"type":"control_request","request_id":"h","request":{"subtype":"hook_callback"}}"#;
    // More answers than the socket and the outbox hold.
    for _ in 0..40 {
        let many = vec![request; 200].join("\n");
        bench.say(&many);
        let mut context = Context::from_waker(Waker::noop());
        tokio::time::sleep(Duration::from_millis(1)).await;
        while bench.handle.with(|it| it.poll_for_task(&mut context)) == Some(Poll::Ready(())) {}
    }
    assert_eq!(bench.handle.with(Connection::take_signal), Some(Some(Signal::KillTree)));
}
