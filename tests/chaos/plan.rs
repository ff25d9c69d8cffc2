//! The schedule: a pure function of the seed. It looks at no clock and at no process; what a step finds when it is
//! performed (a child to kill, or none) is the run's business.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::damage::{DAMAGES, Damage};

/// Users of a run. Fewer than the limit on children, so that room is scarce now and then but never for long.
pub const USERS: usize = 20;

/// Steps between two moments of rest, at which everything that adds up is compared.
const BETWEEN_RESTS: usize = 110;

/// After this number of steps in which servers are killed and stopped, as many follow in which one server has to last.
const PHASE: usize = 880;

/// One thing that is done to the system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Turn {
        user: usize,
        kind: Kind,
        reader: Reader,
    },
    Interrupt {
        user: usize,
    },
    Evict {
        user: usize,
    },
    Warm {
        user: usize,
    },
    /// Forget everything about the user.
    Purge {
        user: usize,
    },
    KillChild {
        user: usize,
    },
    StopChild {
        user: usize,
    },
    ContinueChild {
        user: usize,
    },
    KillShim {
        user: usize,
    },
    Panic {
        actor: &'static str,
        user: usize,
    },
    /// Damage a file while no child runs; `seed` decides where.
    Damage {
        user: usize,
        damage: Damage,
        seed: u64,
    },
    KillServer,
    DrainServer,
    /// Wait until nothing runs any more, then compare.
    Rest,
}

/// What a message asks the simulated CLI to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Plain,
    /// Everything said so far in the conversation.
    Recall,
    /// Markers after which the turn is answered as any other.
    Answered(&'static str),
    /// Markers after which the CLI reports an error of its API and lives on.
    Refused(&'static str),
    /// The child dies once, before a word: the next one has to answer.
    DiesOnce,
    /// Markers after which anything may become of the turn or of its child.
    Breaks(&'static str),
}

/// How the answer is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reader {
    Eager,
    /// Leaves after this number of events.
    Drops(usize),
    /// Takes its time for the first events.
    Slow,
}

const ANSWERED: &[&str] = &[
    "[[slow:4]] and some more words that come one by one",
    "[[sleep:60]]",
    "[[sleep:400]]",
    // Longer than a child may be idle.
    "[[sleep:1300]]",
    "[[deltas:40]][[delay:4]]",
    "[[bytes:400000]]",
    "[[think:hm]]",
    "[[tool:Bash {\"command\":\"sleep 0.05\"}]]",
    "[[tool:Bash {\"command\":\"sleep 0.4\"}]]",
    "[[background:0.15]]",
    "[[api_retry:2,20]]",
    "[[fault:mute=300]]",
    "[[fault:garbage-line]]",
    "[[fault:invalid-utf8]]",
    "[[fault:long-line=200000]]",
    "[[fault:stderr-flood=1000000]]",
    "[[fault:outlive]]",
    "[[fault:outlive-holding-pipes]]",
    "[[fault:ignore-term]]",
    "[[fault:ignore-eof]]",
];

const REFUSED: &[&str] = &["[[api_error:429]]", "[[api_error:529]]", "[[refusal]]"];

const BREAKS: &[&str] = &[
    "[[fault:crash-before]]",
    "[[fault:crash-before=abort]]",
    "[[fault:crash-init=kill]]",
    "[[fault:crash-mid]]",
    "[[fault:crash-mid=kill]]",
    "[[fault:crash-after]]",
    "[[fault:crash-after=kill]]",
    "[[fault:exit0-mid]]",
    "[[fault:half-line]]",
    "[[fault:long-line=3000000]]",
    "[[fault:close-stdout]]",
    "[[fault:no-read]]",
    "[[fault:outlive]][[fault:crash-after]]",
    "[[fault:ignore-term]][[fault:ignore-eof]][[fault:crash-mid]]",
];

/// They cost seconds each, until the child is found to hang.
const HANGS: &[&str] = &["[[fault:hang]]", "[[fault:spin]]", "[[fault:stop-self]]"];

/// Turns of a crash loop; each of them costs two children.
const CRASH_LOOP: usize = 9;
const CRASH: &str = "[[fault:crash-before]]";

const ACTORS: &[&str] = &["session", "session", "supervisor", "evictor", "sampler"];

/// The endless schedule of a seed: each step with the pause after it.
pub struct Plan {
    random: fastrand::Rng,
    made: usize,
    /// Steps that were decided together with an earlier one.
    next: Vec<(Step, Duration)>,
}

impl Plan {
    pub fn new(seed: u64) -> Self {
        Self { random: fastrand::Rng::with_seed(seed), made: 0, next: Vec::new() }
    }

    fn choose(&mut self, from: &[&'static str]) -> &'static str {
        self.random.choice(from).copied().expect("not empty")
    }

    fn turn(&mut self, user: usize) -> Step {
        let kind = match self.random.u32(0..100) {
            0..30 => Kind::Plain,
            30..44 => Kind::Recall,
            44..78 => Kind::Answered(self.choose(ANSWERED)),
            78..81 => Kind::Refused(self.choose(REFUSED)),
            81..85 => Kind::DiesOnce,
            85..98 => Kind::Breaks(self.choose(BREAKS)),
            _ => Kind::Breaks(self.choose(HANGS)),
        };
        let reader = match self.random.u32(0..100) {
            0..82 => Reader::Eager,
            82..92 => Reader::Drops(self.random.usize(0..12)),
            _ => Reader::Slow,
        };
        Step::Turn { user, kind, reader }
    }

    fn decide(&mut self) -> Step {
        let user = self.random.usize(0..USERS);
        let lasts = self.made / PHASE % 2 == 1;
        match self.random.u32(0..1000) {
            0..550 => self.turn(user),
            550..600 => {
                let damage = *self.random.choice(DAMAGES).expect("not empty");
                Step::Damage { user, damage, seed: self.random.u64(..) }
            }
            600..650 => {
                // Several at once, behind each other.
                for _ in 0..self.random.usize(2..7) {
                    let turn = self.turn(user);
                    self.next.push((turn, Duration::ZERO));
                }
                self.turn(user)
            }
            650..658 => {
                // More failures than are answered with restarts.
                for _ in 0..CRASH_LOOP {
                    let step = Step::Turn { user, kind: Kind::Breaks(CRASH), reader: Reader::Eager };
                    self.next.push((step, Duration::ZERO));
                }
                Step::Evict { user }
            }
            658..700 => Step::Interrupt { user },
            700..750 => Step::Evict { user },
            750..765 => Step::Warm { user },
            765..780 => Step::Purge { user },
            780..860 => Step::KillChild { user },
            860..890 => Step::StopChild { user },
            890..910 => Step::ContinueChild { user },
            910..945 => Step::KillShim { user },
            945..980 => Step::Panic { actor: self.choose(ACTORS), user },
            980..992 if !lasts => Step::KillServer,
            992..996 if !lasts => {
                // What the shim leaves is for the server that stops.
                self.next.push((Step::DrainServer, Duration::ZERO));
                Step::KillShim { user }
            }
            996.. if !lasts => Step::DrainServer,
            _ => Step::KillChild { user },
        }
    }
}

impl Iterator for Plan {
    type Item = (Step, Duration);

    fn next(&mut self) -> Option<Self::Item> {
        self.made += 1;
        if let Some(decided) = self.next.pop() {
            return Some(decided);
        }
        if self.made.is_multiple_of(BETWEEN_RESTS) {
            return Some((Step::Rest, Duration::ZERO));
        }
        let step = self.decide();
        let pause = match self.random.u32(0..10) {
            0..3 => 0,
            3..9 => self.random.u64(1..80),
            _ => self.random.u64(80..400),
        };
        Some((step, Duration::from_millis(pause)))
    }
}

impl Kind {
    /// The message. `nonce` comes back in the answer, and in no other; `scratch` is a file that does not exist yet.
    pub fn text(&self, nonce: &str, scratch: &str) -> String {
        match self {
            Self::Plain => format!("hello {nonce}"),
            Self::Recall => format!("[[say:{nonce}]][[recall]]"),
            Self::DiesOnce => format!("[[say:{nonce}]][[fault:die-once={scratch}]]"),
            Self::Answered(markers) | Self::Refused(markers) | Self::Breaks(markers) => {
                format!("[[say:{nonce}]]{markers}")
            }
        }
    }

    /// Whether something may happen to the child, and with it to the turns around this one.
    pub fn disturbs(&self) -> bool {
        matches!(self, Self::Breaks(_) | Self::DiesOnce)
    }
}

impl Step {
    /// For the table at the end.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Turn { reader: Reader::Drops(_), .. } => "turns whose reader drops",
            Self::Turn { reader: Reader::Slow, .. } => "turns with a slow reader",
            Self::Turn { kind: Kind::Breaks(_) | Kind::DiesOnce, .. } => "turns with a fault",
            Self::Turn { .. } => "other turns",
            Self::Interrupt { .. } => "interrupts",
            Self::Evict { .. } => "evictions",
            Self::Warm { .. } => "warm starts",
            Self::Purge { .. } => "purges",
            Self::KillChild { .. } => "SIGKILL to a child",
            Self::StopChild { .. } => "SIGSTOP to a child",
            Self::ContinueChild { .. } => "SIGCONT to a child",
            Self::KillShim { .. } => "SIGKILL to a shim",
            Self::Panic { .. } => "panics in actors",
            Self::Damage { damage, .. } if damage.is_to_journal() => "damages to a journal",
            Self::Damage { .. } => "damages to a transcript",
            Self::KillServer => "SIGKILL to the server",
            Self::DrainServer => "SIGTERM to the server",
            Self::Rest => "rests with all metrics compared",
        }
    }
}
