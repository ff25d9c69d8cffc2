use std::collections::VecDeque;

use SpareEnd::{Age, Drain, Memory, Room, Surplus};
use SparePhase::{Ready, Warming};

use super::*;
use crate::session::shelf::Pauses;

const QUIET: Demand = Demand { waiting: 0, is_full: false, is_starting_most: false };

fn kind(name: &str) -> SpareKind {
    let model = (!name.is_empty()).then(|| name.to_owned());
    SpareKind { model, ..SpareKind::default() }
}

fn limits(min: usize, max: usize) -> Limits {
    Limits { min, max, default: kind("") }
}

/// A moment with a past that is long enough.
fn now() -> Instant {
    Instant::now() + Duration::from_secs(100_000)
}

struct Case {
    spares: Vec<Shelved>,
    newcomers: VecDeque<(Instant, SpareKind)>,
    pauses: Pauses,
    has_room: bool,
    closed: bool,
    demand: Demand,
    is_pressed: bool,
    now: Instant,
}

impl Case {
    /// Spares by kind, phase and seconds in it, and newcomers by kind and age in seconds.
    fn new(spares: &[(&str, SparePhase, u64)], newcomers: &[(&str, u64)]) -> Self {
        let now = now();
        let spare = |(at, (name, phase, age)): (usize, &(&str, SparePhase, u64))| {
            Shelved::of_test(at as u64 + 1, kind(name), *phase, now - Duration::from_secs(*age))
        };
        let newcomer = |(name, age): &(&str, u64)| (now - Duration::from_secs(*age), kind(name));
        Self {
            spares: spares.iter().enumerate().map(spare).collect(),
            newcomers: newcomers.iter().map(newcomer).collect(),
            pauses: Pauses::default(),
            has_room: true,
            closed: false,
            demand: QUIET,
            is_pressed: false,
            now,
        }
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    fn decide(&self, limits: &Limits) -> Decision {
        let shelf = OnShelf {
            spares: &self.spares,
            newcomers: &self.newcomers,
            pauses: &self.pauses,
            has_room: self.has_room,
            is_pressed: self.is_pressed,
            closed: self.closed,
        };
        decide(limits, &View { shelf: &shelf, demand: self.demand, now: self.now })
    }
}

fn waits(waiting: usize, is_full: bool, is_starting_most: bool) -> impl FnOnce(&mut Case) {
    move |case| case.demand = Demand { waiting, is_full, is_starting_most }
}

/// A spare of this kind failed as many seconds ago, for the first time: the pause is one second.
fn failed(name: &'static str, ago: u64) -> impl FnOnce(&mut Case) {
    move |case| case.pauses.failed(&kind(name), Duration::ZERO, case.now - Duration::from_secs(ago))
}

#[test]
fn decisions_follow_the_table() {
    let start = |name: &str, wanted| Decision { start: Some(kind(name)), wanted, ..Decision::default() };
    let end = |end: &[(u64, SpareEnd)], wanted| Decision { end: end.to_vec(), wanted, ..Decision::default() };
    let nothing = |wanted| Decision { wanted, ..Decision::default() };
    let two = [("", Ready, 5), ("", Warming, 1)];
    let rested = [("", Ready, 5), ("", Ready, 9)];
    let table = [
        ("none is there", Case::new(&[], &[]), start("", 2)),
        ("one is missing", Case::new(&rested[..1], &[]), start("", 2)),
        ("one at a time", Case::new(&two[1..], &[]), nothing(2)),
        ("all are there", Case::new(&rested, &[]), nothing(2)),
        ("a pause runs", Case::new(&[], &[]).with(failed("", 0)), nothing(2)),
        ("a pause is over", Case::new(&[], &[]).with(failed("", 1)), start("", 2)),
        ("another kind pauses", Case::new(&[], &[]).with(failed("haiku", 0)), start("", 2)),
        (
            "one of two kinds pauses",
            Case::new(&[], &[("haiku", 1), ("haiku", 2), ("opus", 3)]).with(failed("haiku", 0)),
            start("opus", 3),
        ),
        (
            "an old one stays while its kind pauses",
            Case::new(&[("", Ready, 3600), ("", Ready, 5)], &[]).with(failed("", 0)),
            nothing(2),
        ),
        ("no memory is left", Case::new(&[], &[]).with(|it| it.has_room = false), nothing(2)),
        (
            "memory is scarce",
            Case::new(&two, &[]).with(|it| it.is_pressed = true),
            end(&[(1, Memory), (2, Memory)], 0),
        ),
        (
            "the system drains",
            Case::new(&two, &[]).with(|it| it.closed = true),
            end(&[(1, Drain), (2, Drain)], 0),
        ),
        ("a start waits for a child", Case::new(&two, &[]).with(waits(1, true, false)), end(&[(2, Room)], 2)),
        (
            "more wait than there are",
            Case::new(&two, &[]).with(waits(9, true, true)),
            end(&[(2, Room), (1, Room)], 2),
        ),
        ("a start waits for a start", Case::new(&two, &[]).with(waits(9, false, true)), end(&[(2, Room)], 2)),
        ("a start waits for memory", Case::new(&rested, &[]).with(waits(1, false, false)), nothing(2)),
        ("nothing starts beside one", Case::new(&[], &[]).with(waits(1, false, false)), nothing(2)),
        ("newcomers raise it", Case::new(&rested, &[("", 1), ("", 2), ("", 3)]), start("", 3)),
        ("up to the maximum", Case::new(&rested, &[("", 1); 9]), start("", 4)),
        ("and it falls again", Case::new(&rested, &[("", 61); 9]), nothing(2)),
        ("slowly", Case::new(&[("", Ready, 59); 3], &[]), nothing(2)),
        ("one by one", Case::new(&[("", Ready, 60); 4], &[]), end(&[(3, Surplus)], 2)),
        ("a kind is wanted", Case::new(&[], &[("haiku", 200)]), start("haiku", 2)),
        (
            "a kind is no longer wanted",
            Case::new(&[("", Ready, 60); 2], &[("haiku", 1)]),
            end(&[(1, Surplus)], 2),
        ),
        (
            "its place is taken",
            Case::new(&[("", Ready, 60)], &[("haiku", 1)]),
            Decision { end: vec![(1, Surplus)], ..start("haiku", 2) },
        ),
        ("an old wish is forgotten", Case::new(&[], &[("haiku", 600)]), start("", 2)),
        (
            "an old one is replaced",
            Case::new(&[("", Ready, 3600), ("", Ready, 4000)], &[]),
            end(&[(1, Age)], 2),
        ),
        ("not beside another", Case::new(&[("", Ready, 3600), ("", Warming, 1)], &[]), nothing(2)),
    ];
    for (name, case, expected) in table {
        assert_eq!(case.decide(&limits(2, 4)), expected, "{name}");
    }
}

#[test]
fn kinds_share_by_their_newcomers() {
    let shares = |newcomers: &[(&str, u64)], min: usize| {
        let case = Case::new(&[], newcomers);
        let shelf = OnShelf {
            spares: &case.spares,
            newcomers: &case.newcomers,
            pauses: &case.pauses,
            has_room: true,
            is_pressed: false,
            closed: false,
        };
        let view = View { shelf: &shelf, demand: QUIET, now: case.now };
        let kinds = wanted(&limits(min, min), &view);
        kinds.into_iter().map(|kind| kind.model.unwrap_or_default()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(shares(&[], 2), " ", "the default twice");
    assert_eq!(shares(&[("a", 1), ("b", 1), ("b", 2)], 3), "b a b");
    assert_eq!(shares(&[("a", 1), ("b", 1)], 3), "a b a");
    assert_eq!(shares(&[("a", 1), ("b", 1), ("b", 2), ("b", 3)], 1), "b");
}

proptest::proptest! {
    /// Never more than the maximum, never two that start, and nothing starts while a start waits.
    #[test]
    fn decisions_keep_the_bounds(
        spares in proptest::collection::vec((0u8..3, proptest::bool::ANY, 0u64..5000), 0..8),
        newcomers in proptest::collection::vec((0u8..3, 0u64..700), 0..20),
        waiting in 0usize..4,
        is_full in proptest::bool::ANY,
        is_starting_most in proptest::bool::ANY,
    ) {
        let names = ["", "a", "b"];
        let spares: Vec<_> = spares.iter()
            .map(|(name, ready, age)| (names[usize::from(*name)], if *ready { Ready } else { Warming }, *age)).collect();
        let newcomers: Vec<_> = newcomers.iter().map(|(name, age)| (names[usize::from(*name)], *age)).collect();
        let case = Case::new(&spares, &newcomers).with(waits(waiting, is_full, is_starting_most));
        let decision = case.decide(&limits(2, 4));
        proptest::prop_assert!((2..=4).contains(&decision.wanted));
        if decision.start.is_some() {
            proptest::prop_assert!(waiting == 0 && spares.len() < decision.wanted);
            proptest::prop_assert!(case.spares.iter().all(|spare| spare.phase == Ready));
        }
        let mut ended: Vec<_> = decision.end.iter().map(|(id, _)| *id).collect();
        ended.dedup();
        proptest::prop_assert_eq!(ended.len(), decision.end.len());
        if waiting > 0 && is_full {
            proptest::prop_assert_eq!(ended.len(), waiting.min(spares.len()));
        }
    }
}
