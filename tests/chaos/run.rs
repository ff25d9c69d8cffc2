//! One run: performs the steps of a plan and checks after each of them, from outside, what must hold.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pilotlight::model::ids::{SessionKey, UserId};
use rustix::process::Signal;
use tokio::time::Instant;

use crate::common::place::Place;
use crate::disk::Transcripts;
use crate::host::name;
use crate::link::{Link, SOON, Silence};
use crate::model::Model;
use crate::plan::{Kind, Plan, Reader, Step, USERS};
use crate::process::{self, Id};
use crate::summary::Summary;
use crate::table::Table;
use crate::wire::{News, Order};

mod damage;
mod rest;
mod server;

/// An eviction or a panic that was ordered has happened by then.
const ORDERS_ARRIVE_WITHIN: Duration = Duration::from_millis(500);

/// How many steps are shown after a failure.
const SHOWN: usize = 150;

/// How long a run goes on.
#[derive(Debug, Clone, Copy)]
pub enum Limit {
    Steps(usize),
    Time(Duration),
}

/// A rule that was broken.
pub type Broken = String;

pub struct Run {
    place: Place,
    table: Table,
    link: Link,
    servers: u64,
    model: Model,
    sessions: Vec<Session>,
    transcripts: Transcripts,
    stopped: HashMap<usize, Id>,
    /// The last child of each user to which something was done.
    struck: HashMap<usize, Id>,
    /// Until when an order to an actor may still be on its way.
    ordered: HashMap<usize, Instant>,
    /// When a start was ordered last.
    warmed: HashMap<usize, Instant>,
    shim_killed: Option<Instant>,
    /// Descriptors and memory of this server at its rests.
    rests: Vec<(usize, u64)>,
    latest: VecDeque<String>,
    summary: Summary,
    begun: Instant,
}

struct Session {
    record: PathBuf,
}

impl Session {
    /// The hash of its key.
    fn hash(&self) -> std::borrow::Cow<'_, str> {
        self.record.file_name().unwrap().to_string_lossy()
    }

    /// The name of its directory: what its processes are known by.
    fn directory(&self, data: &Path) -> String {
        let directory = crate::common::layout::directory_of(data, &self.record);
        directory.file_name().unwrap().to_string_lossy().into_owned()
    }

    /// The HOME of its children, as long as it is there.
    fn home(&self, data: &Path) -> PathBuf {
        crate::common::layout::directory_of(data, &self.record).join("home")
    }
}

/// Runs a seed's plan; a failure is reported with everything that is needed to see it again.
pub fn run(seed: u64, limit: Limit) -> Summary {
    crate::common::installed::say(&format!(
        "chaos: seed {seed}, {limit:?} (again: PILOTLIGHT_CHAOS_SEED={seed})"
    ));
    let mut run = Run::new(seed);
    match run.go(seed, limit) {
        Ok(()) => run.summary,
        Err(broken) => {
            let (steps, log) = (run.latest.make_contiguous().join("\n  "), run.link.log());
            let message = format!(
                "seed {seed}: {broken}\nthe last steps:\n  {steps}\nthe server wrote:\n{log}\n\
                 again: PILOTLIGHT_CHAOS_SEED={seed}"
            );
            run.table.end_all();
            run.link.signal(Signal::KILL);
            panic!("{message}");
        }
    }
}

impl Run {
    fn new(seed: u64) -> Self {
        let place = Place::new();
        let link = Link::start(&place, 0).unwrap();
        let table = Table::watch();
        table.set_host(link.process.pid);
        let session = |user: usize| {
            let key = SessionKey::new(UserId::new(name(user)).unwrap(), "default").unwrap();
            Session { record: place.data_dir().join("records").join(key.hash().as_str()) }
        };
        Self {
            sessions: (0..USERS).map(session).collect(),
            table,
            link,
            servers: 1,
            model: Model::new(),
            transcripts: Transcripts::default(),
            stopped: HashMap::new(),
            struck: HashMap::new(),
            ordered: HashMap::new(),
            warmed: HashMap::new(),
            shim_killed: None,
            rests: Vec::new(),
            latest: VecDeque::new(),
            summary: Summary { seed, ..Summary::default() },
            begun: Instant::now(),
            place,
        }
    }

    fn go(&mut self, seed: u64, limit: Limit) -> Result<(), Broken> {
        for (number, (step, pause)) in Plan::new(seed).enumerate() {
            match limit {
                Limit::Steps(most) if number >= most => break,
                Limit::Time(most) if self.begun.elapsed() >= most => break,
                _ => {}
            }
            self.note(format!("{number}: {step:?}, then {pause:?}"));
            *self.summary.steps.entry(step.name()).or_default() += 1;
            if !self.perform(step)? {
                self.summary.in_vain += 1;
            }
            self.listen(pause)?;
            self.check()?;
        }
        self.end()
    }

    fn note(&mut self, what: String) {
        if self.latest.len() >= SHOWN {
            self.latest.pop_front();
        }
        self.latest.push_back(format!("{:8.3} {what}", self.begun.elapsed().as_secs_f64()));
    }

    /// Whether the target was there.
    fn perform(&mut self, step: Step) -> Result<bool, Broken> {
        match step {
            Step::Turn { user, kind, reader } => {
                self.send(user, &kind, reader);
                return Ok(true);
            }
            Step::Interrupt { user } => {
                self.model.disturb(user);
                self.link.order(&Order::Interrupt { user });
            }
            Step::Evict { user } => {
                self.disturb_by_order(user);
                self.model.asked.evictions += 1;
                self.link.order(&Order::Evict { user });
            }
            Step::Warm { user } => {
                self.warmed.insert(user, Instant::now());
                self.link.order(&Order::Warm { user });
            }
            Step::Purge { user } => return self.purge(user),
            Step::KillChild { user } => return Ok(self.strike(user, Signal::KILL, false)),
            Step::StopChild { user } => return Ok(self.strike(user, Signal::STOP, false)),
            Step::KillShim { user } => return Ok(self.strike(user, Signal::KILL, true)),
            Step::ContinueChild { user } => {
                self.struck.remove(&user);
                return Ok(self
                    .stopped
                    .remove(&user)
                    .is_some_and(|child| process::signal(child, Signal::CONT)));
            }
            Step::Panic { actor, user } => {
                self.model.asked.panics += 1;
                match actor {
                    "session" => self.disturb_by_order(user),
                    "supervisor" => (0..USERS).for_each(|user| self.disturb_by_order(user)),
                    _ => {}
                }
                self.link.order(&Order::Panic { actor: actor.to_owned(), user });
            }
            Step::Damage { user, damage, seed } => return self.damage(user, damage, seed),
            Step::KillServer => self.kill_server()?,
            Step::DrainServer => self.drain_server()?,
            Step::Rest => self.rest()?,
        }
        Ok(true)
    }

    fn send(&mut self, user: usize, kind: &Kind, reader: Reader) {
        if *kind == Kind::Recall {
            let written = self.transcripts.new_in(&self.sessions[user].home(&self.place.data_dir()));
            self.model.written_down(user, written);
        }
        self.see_journal(user);
        let number = self.model.send(user, kind, reader, self.is_shaky(user));
        let nonce = crate::wire::Nonce { user, number }.to_string();
        // In the session's workspace: a child reaches no other place.
        let text = kind.text(&nonce, &format!("died-{number}"));
        self.link.order(&Order::Turn { number, user, text, reader });
    }

    fn disturb_by_order(&mut self, user: usize) {
        self.model.disturb(user);
        self.ordered.insert(user, Instant::now() + ORDERS_ARRIVE_WITHIN);
    }

    /// Whether what was done to the user last may not have had its effect yet: a turn that is answered now proves nothing.
    fn is_shaky(&self, user: usize) -> bool {
        self.ordered.get(&user).is_some_and(|until| Instant::now() < *until)
            || self.struck.get(&user).is_some_and(|child| process::is_alive(*child))
    }

    /// The directories of children that no session has yet.
    fn spares(&self) -> Vec<String> {
        let marks = std::fs::read_dir(self.place.data_dir().join("records/.spares")).into_iter().flatten();
        marks.flatten().map(|mark| mark.file_name().to_string_lossy().into_owned()).collect()
    }

    fn strike(&mut self, user: usize, signal: Signal, shim: bool) -> bool {
        let session = &self.sessions[user].directory(&self.place.data_dir());
        let target = if shim { self.table.shim(session) } else { self.table.cli(session) };
        let Some(target) = target else { return false };
        self.model.disturb(user);
        if let Some(child) = self.table.cli(session) {
            self.struck.insert(user, child);
        }
        if shim {
            self.shim_killed = Some(Instant::now());
        }
        if signal == Signal::STOP {
            self.stopped.insert(user, target);
        }
        process::signal(target, signal)
    }

    /// Only for a user of whom nothing is under way: else it could not be said which turns are forgotten.
    fn purge(&mut self, user: usize) -> Result<bool, Broken> {
        if !self.model.is_quiet(user) {
            return Ok(false);
        }
        let home = self.sessions[user].home(&self.place.data_dir());
        self.link.order(&Order::Purge { user });
        let deadline = Instant::now() + SOON;
        loop {
            match self.link.hear(deadline.saturating_duration_since(Instant::now())) {
                Ok(News::Purged { error: Some(error), .. }) => {
                    return Err(format!("a purge failed: {error}"));
                }
                Ok(News::Purged { .. }) => break,
                Ok(news) => self.take(news)?,
                Err(silence) => return Err(format!("a purge does not end: {silence:?}")),
            }
        }
        self.model.forget(user);
        self.transcripts.forget(&home);
        Ok(true)
    }

    // ---- Hearing and checking ----

    fn listen(&mut self, time: Duration) -> Result<(), Broken> {
        let until = Instant::now() + time;
        loop {
            match self.link.hear(until.saturating_duration_since(Instant::now())) {
                Ok(news) => self.take(news)?,
                Err(Silence::NothingYet) => return Ok(()),
                Err(Silence::Ended) => return Err("the server ended unasked".to_owned()),
            }
        }
    }

    fn take(&mut self, news: News) -> Result<(), Broken> {
        match news {
            News::Ended(ended) => self.model.ended(&ended),
            News::Refused { number, code } => self.model.refused(number, &code),
            News::Ready | News::Purged { .. } | News::Report(_) => Ok(()),
        }
    }

    fn check(&self) -> Result<(), Broken> {
        match self.table.violations().first() {
            Some(violation) => Err(violation.clone()),
            None => Ok(()),
        }
    }
}

fn described(ids: &[Id]) -> Vec<String> {
    ids.iter().map(|id| process::describe(*id)).collect()
}
