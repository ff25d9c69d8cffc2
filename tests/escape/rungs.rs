//! Rungs, and the combinations of them that this machine can build.

use std::collections::BTreeSet;
use std::fmt;
use std::process::Command;
use std::sync::OnceLock;

use rustix::process::geteuid;

use crate::common::installed::{is_long, left_out};
use crate::scene;

/// A condition under which a promise holds: a rung, or the server's user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Term {
    Landlock,
    Seccomp,
    Namespaces,
    Uid,
    Cgroup,
    /// The server runs as root.
    Root,
    /// The server runs without privileges.
    Unprivileged,
}

use Term::{Cgroup, Landlock, Namespaces, Root, Seccomp, Uid, Unprivileged};

pub(crate) const RUNGS: [Term; 5] = [Landlock, Seccomp, Namespaces, Uid, Cgroup];

impl Term {
    /// The name in `isolation.rungs`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Landlock => "landlock",
            Seccomp => "seccomp",
            Namespaces => "namespaces",
            Uid => "uid",
            Cgroup => "cgroup",
            Root => "root",
            Unprivileged => "unprivileged",
        }
    }
}

/// Who runs the server, and which rungs are on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Walls(BTreeSet<Term>);

impl Walls {
    pub(crate) fn new(user: Term, rungs: impl IntoIterator<Item = Term>) -> Self {
        Self(rungs.into_iter().chain([user]).collect())
    }

    pub(crate) fn has(&self, term: Term) -> bool {
        self.0.contains(&term)
    }

    pub(crate) fn rungs(&self) -> Vec<Term> {
        RUNGS.into_iter().filter(|rung| self.has(*rung)).collect()
    }

    /// Whether any of the alternatives is met by what is on.
    pub(crate) fn meet(&self, alternatives: &[&[Term]]) -> bool {
        alternatives.iter().any(|all| all.iter().all(|term| self.has(*term)))
    }

    /// The section of the configuration.
    pub(crate) fn config(&self) -> String {
        section(&self.rungs(), &self.rungs())
    }
}

impl fmt::Display for Walls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = if self.has(Root) { "root" } else { "unprivileged" };
        let rungs: Vec<_> = self.rungs().into_iter().map(Term::name).collect();
        write!(f, "[{}] as {user}", rungs.join(" "))
    }
}

fn section(rungs: &[Term], require: &[Term]) -> String {
    let list = |terms: &[Term]| {
        let names: Vec<_> = terms.iter().map(|term| format!("\"{}\"", term.name())).collect();
        format!("[{}]", names.join(", "))
    };
    format!("[isolation]\nrungs = {}\nrequire = {}\naccept_none = true\n", list(rungs), list(require))
}

/// The users that a server of this run may have.
pub(crate) fn users() -> Vec<Term> {
    if geteuid().is_root() { vec![Root, Unprivileged] } else { vec![Unprivileged] }
}

/// The rungs that this machine can build for a server of this user. Those that it cannot are named as left out.
pub(crate) fn available(user: Term) -> Vec<Term> {
    static OF_ROOT: OnceLock<Vec<Term>> = OnceLock::new();
    static OF_OTHERS: OnceLock<Vec<Term>> = OnceLock::new();
    let known = if user == Root { &OF_ROOT } else { &OF_OTHERS };
    let found = known.get_or_init(|| RUNGS.into_iter().filter(|rung| can_build(user, *rung)).collect());
    for rung in RUNGS.into_iter().filter(|rung| !found.contains(rung)) {
        left_out(&format!("the rung {} as {}: this machine cannot build it", rung.name(), user.name()));
    }
    found.clone()
}

/// Whether a server that requires this rung passes its own check.
fn can_build(user: Term, rung: Term) -> bool {
    let place = scene::place_for(user);
    let file = place.path().join("check.toml");
    let data = place.data_dir();
    let config = format!("data_dir = {data:?}\n[cli]\nprogram = \"sim\"\n{}", section(&[rung], &[rung]));
    std::fs::write(&file, config).unwrap();
    let mut check: Command = scene::as_user(user);
    let output = check.args(["check", "--config"]).arg(&file).output().expect("the program runs");
    output.status.success()
}

/// All walls to be tested: every set of rungs in a long run, else none, each alone and all. The latter has each pair of
/// rungs in each of its four states.
pub(crate) fn all_walls() -> Vec<Walls> {
    let of = |user| {
        let available = available(user);
        let sets = if is_long() { subsets(&available) } else { pairwise(&available) };
        sets.into_iter().map(move |rungs| Walls::new(user, rungs)).collect::<Vec<_>>()
    };
    users().into_iter().flat_map(of).collect()
}

/// No rung and every rung: the real CLI differs from the simulated one in nothing that a single rung touches.
pub(crate) fn extreme_walls() -> Vec<Walls> {
    if is_long() {
        return all_walls();
    }
    let of = |user| [Walls::new(user, []), Walls::new(user, available(user))];
    let mut all: Vec<_> = users().into_iter().flat_map(of).collect();
    // Where no rung can be built, both are the same.
    all.dedup();
    all
}

fn pairwise(available: &[Term]) -> Vec<Vec<Term>> {
    let mut sets = vec![Vec::new()];
    sets.extend(available.iter().map(|rung| vec![*rung]));
    if available.len() > 1 {
        sets.push(available.to_vec());
    }
    sets
}

fn subsets(available: &[Term]) -> Vec<Vec<Term>> {
    let has = |number: usize, index: usize| number >> index & 1 == 1;
    let of = |number: usize| {
        let chosen = available.iter().enumerate().filter(|(index, _)| has(number, *index));
        chosen.map(|(_, rung)| *rung).collect()
    };
    (0..1 << available.len()).map(of).collect()
}

#[test]
fn pairwise_sets_have_every_pair_in_every_state() {
    for count in 2..=RUNGS.len() {
        let available = RUNGS[..count].to_vec();
        let sets = pairwise(&available);
        for one in &available {
            for other in available.iter().filter(|other| *other != one) {
                for state in [(false, false), (false, true), (true, false), (true, true)] {
                    let is_there = |set: &Vec<Term>| (set.contains(one), set.contains(other)) == state;
                    assert!(sets.iter().any(is_there), "{one:?} {other:?} {state:?}");
                }
            }
        }
        assert!(sets.iter().all(|set| subsets(&available).contains(set)));
    }
}
