//! Which spare starts, and which end. Pure.
//!
//! At rest the configured minimum is ready. New users of the last minute raise the number, up to the maximum, and decide of
//! which kind the spares are. One starts at a time, and none while a start is in flight or waits.

use tokio::time::{Duration, Instant};

use crate::admission::Demand;
use crate::session::shelf::{OnShelf, Shelved, SpareKind, SparePhase};
use crate::telemetry::metrics::SpareEnd;

/// New users of this time decide how many spares there are.
const RECENT: Duration = Duration::from_secs(60);
/// New users of this time decide of which kind they are.
const REMEMBERED: Duration = Duration::from_secs(600);
/// A spare that is no longer wanted stays this long: wishes come back, and its start has been paid for.
const LINGER: Duration = Duration::from_secs(60);
/// A spare older than this is replaced: it has the files of the template as they were at its start.
const OLDEST: Duration = Duration::from_secs(3600);

/// What is configured.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) min: usize,
    pub(super) max: usize,
    /// What a new user gets who asks for nothing special.
    pub(super) default: SpareKind,
}

/// What the decision depends on.
#[derive(Debug)]
pub(super) struct View<'a> {
    pub(super) shelf: &'a OnShelf<'a>,
    pub(super) demand: Demand,
    pub(super) now: Instant,
}

#[derive(Debug, Default, PartialEq)]
pub(super) struct Decision {
    pub(super) end: Vec<(u64, SpareEnd)>,
    pub(super) start: Option<SpareKind>,
    /// Number of spares that should be ready.
    pub(super) wanted: usize,
}

pub(super) fn decide(limits: &Limits, view: &View<'_>) -> Decision {
    let (shelf, spares) = (view.shelf, view.shelf.spares);
    let all = |why| spares.iter().map(|spare| (spare.id, why)).collect();
    if shelf.closed {
        return Decision { end: all(SpareEnd::Drain), ..Decision::default() };
    }
    if shelf.is_pressed {
        return Decision { end: all(SpareEnd::Memory), ..Decision::default() };
    }
    let wanted = wanted(limits, view);
    let given_way = give_way(spares, view.demand);
    if !given_way.is_empty() {
        let end = given_way.into_iter().map(|id| (id, SpareEnd::Room)).collect();
        return Decision { end, start: None, wanted: wanted.len() };
    }
    let unwanted = unwanted(spares, &wanted, view.now);
    let old = spares.iter().find(|spare| is_old(spare, view.now));
    let is_due = |kind: &SpareKind| shelf.pauses.are_over(kind, view.now);
    let is_quiet = view.demand.waiting == 0 && spares.iter().all(|spare| spare.phase == SparePhase::Ready);
    let start = missing(spares, &wanted, is_due).filter(|_| is_quiet && shelf.has_room);
    let end = match (unwanted, old) {
        (Some(id), _) => vec![(id, SpareEnd::Surplus)],
        // Not two at once: the others serve meanwhile.
        (None, Some(old)) if is_quiet && is_due(&old.kind) => vec![(old.id, SpareEnd::Age)],
        _ => Vec::new(),
    };
    // What ends makes the room first.
    let is_room = spares.len() < wanted.len();
    Decision { end, start: start.filter(|_| is_room), wanted: wanted.len() }
}

/// The kinds of all spares that should be there.
fn wanted(limits: &Limits, view: &View<'_>) -> Vec<SpareKind> {
    let since = |age: Duration| {
        let newcomers = view.shelf.newcomers.iter();
        newcomers.filter(move |(at, _)| view.now.saturating_duration_since(*at) < age)
    };
    let number = since(RECENT).count().clamp(limits.min, limits.max);
    let mut counts: Vec<(&SpareKind, usize)> = Vec::new();
    for (_, kind) in since(REMEMBERED) {
        match counts.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, count)) => *count += 1,
            None => counts.push((kind, 1)),
        }
    }
    if counts.is_empty() {
        counts.push((&limits.default, 1));
    }
    // Shares by the highest quotient: each next spare goes to the kind with the most newcomers for each spare.
    let mut chosen: Vec<SpareKind> = Vec::with_capacity(number);
    for _ in 0..number {
        let given = |kind: &SpareKind| chosen.iter().filter(|it| *it == kind).count() + 1;
        // Of two the first: the last maximum of the reversed list.
        let next =
            counts.iter().rev().max_by(|(a, of_a), (b, of_b)| (of_a * given(b)).cmp(&(of_b * given(a))));
        chosen.extend(next.map(|(kind, _)| (*kind).clone()));
    }
    chosen
}

/// Those that go for starts that wait: as many as wait, or those that take the place of a start.
fn give_way(spares: &[Shelved], demand: Demand) -> Vec<u64> {
    let of = |phase: SparePhase| spares.iter().filter(move |it| it.phase == phase).map(|it| it.id);
    let (warming, ready) = (of(SparePhase::Warming), of(SparePhase::Ready));
    if demand.waiting == 0 {
        Vec::new()
    } else if demand.is_full {
        warming.chain(ready).take(demand.waiting).collect()
    } else if demand.is_starting_most {
        warming.take(demand.waiting).collect()
    } else {
        Vec::new()
    }
}

/// The first wanted kind that too few spares have, and that does not pause.
fn missing(
    spares: &[Shelved],
    wanted: &[SpareKind],
    is_due: impl Fn(&SpareKind) -> bool,
) -> Option<SpareKind> {
    let have = |kind: &SpareKind| spares.iter().filter(|spare| spare.kind == *kind).count();
    let want = |kind: &SpareKind| wanted.iter().filter(|it| *it == kind).count();
    wanted.iter().find(|kind| have(kind) < want(kind) && is_due(kind)).cloned()
}

/// A spare beyond what is wanted of its kind, which has waited for long.
fn unwanted(spares: &[Shelved], wanted: &[SpareKind], now: Instant) -> Option<u64> {
    let mut left = wanted.to_vec();
    let beyond = spares.iter().filter(|spare| match left.iter().position(|kind| *kind == spare.kind) {
        Some(at) => {
            left.swap_remove(at);
            false
        }
        None => true,
    });
    let mut beyond = beyond.filter(|spare| is_ready_for(spare, LINGER, now));
    beyond.next().map(|spare| spare.id)
}

fn is_old(spare: &Shelved, now: Instant) -> bool {
    is_ready_for(spare, OLDEST, now)
}

fn is_ready_for(spare: &Shelved, time: Duration, now: Instant) -> bool {
    spare.phase == SparePhase::Ready && now.saturating_duration_since(spare.since) >= time
}

#[cfg(test)]
mod tests;
